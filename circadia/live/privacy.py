"""Experience at rest: AES-256-GCM from the `cryptography` package, or as it is where the store has no key.

What is sealed is a random salt and the payload together, so that the salted hash in the log (chain.py) betrays nothing
about a payload to somebody without the key. Source, trust, time and kind stay readable: queries need them.
"""

import hashlib
import hmac
import secrets

from circadia.live.errors import Damaged, StoreError

SALT = 32
NONCE = 12
KEY = 32


class Seal:
    """Opens and closes payloads with the key of one store, or with none."""

    def __init__(self, key: bytes | None = None) -> None:
        self.key = key
        self._cipher = None
        if key is not None:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError:
                raise StoreError("key: needs the package cryptography, pip install 'circadia[privacy]'") from None
            self._cipher = AESGCM(key)

    def close(self, salt: bytes, payload: bytes, about: str) -> bytes:
        """Salt and payload for the disk; `about` says where they belong, so that rows cannot be exchanged."""
        if self._cipher is None:
            return salt + payload
        nonce = secrets.token_bytes(NONCE)  # fresh each time: AES-GCM allows no second use
        return nonce + self._cipher.encrypt(nonce, salt + payload, about.encode())

    def open(self, sealed: bytes, about: str) -> tuple[bytes, bytes]:
        """Salt and payload as they were closed."""
        if self._cipher is not None:
            from cryptography.exceptions import InvalidTag

            try:
                sealed = self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], about.encode())
            except (InvalidTag, ValueError):
                raise Damaged(f"experience {about} cannot be decrypted: it was changed, or has another key") from None
        return sealed[:SALT], sealed[SALT:]

    def sign(self, head: bytes, about: str) -> bytes | None:
        """What only the holder of the key can compute about the head of a log."""
        if self.key is None:
            return None
        return hmac.digest(hmac.digest(self.key, b"head", "sha256"), about.encode() + head, "sha256")


def derive(key: str | bytes, salt: bytes) -> bytes:
    """The key itself, or the one that scrypt makes of a passphrase."""
    if isinstance(key, str):
        if not key:
            raise StoreError("key is empty: give a passphrase or 32 bytes")
        return hashlib.scrypt(key.encode(), salt=salt, n=2**15, r=8, p=1, maxmem=2**26, dklen=KEY)
    if not isinstance(key, bytes) or len(key) != KEY:
        raise StoreError(f"key is {type(key).__name__} of length {len(key)}: give a passphrase or {KEY} bytes")
    return key


def lock(key: str | bytes) -> tuple[Seal, dict[str, str]]:
    """A seal for a new store, and what the store notes to know the key again."""
    salt = secrets.token_bytes(16)
    seal = Seal(derive(key, salt))
    return seal, {"cipher": "aes-256-gcm", "salt": salt.hex(), "check": seal.close(bytes(SALT), b"", "key").hex()}


def unlock(key: str | bytes, noted: dict[str, str], what: str) -> Seal:
    """The seal of a store or an export that was locked before."""
    seal = Seal(derive(key, bytes.fromhex(noted["salt"])))
    try:
        seal.open(bytes.fromhex(noted["check"]), "key")
    except Damaged:
        raise StoreError(f"key does not fit {what}: give the one that it was made with") from None
    return seal
