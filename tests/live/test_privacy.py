"""Deletion that is real, and encryption: looked for in the raw bytes of every file."""

import hashlib

import pytest
import torch

from circadia.live import Damaged, Store, StoreError
from tests.live.conftest import raw, state

SECRET = b"Mira's number is 4711 and nobody may know it"


def parts(x: torch.Tensor) -> list[bytes]:
    """Pieces of a tensor's bytes: a part of it must not stay either."""
    content = x.reshape(-1).view(torch.uint8).numpy().tobytes()
    return [content[i : i + 32] for i in range(0, len(content) - 32, 97)]


def test_no_byte_of_what_was_forgotten_stays(store, folder):
    with store.writer("ana") as writer:
        for i in range(60):  # of many sizes, so that rows move between pages
            writer.remember(f"harmless {i} ".encode() * (1 + 37 * i % 90), source="book")
            if i % 10 == 5:
                writer.remember(SECRET * (1 + i * 7 % 200), source="mail", trust=0.5)
            if i % 20 == 9:
                writer.commit(state(i, slow=i // 40), reason="observe", tokens=i)
        mail = [e.number for e in store.experiences("ana", source="mail")]
        gone = store.influenced("ana", mail)
        assert gone == [1, 2, 3]
        writer.record("guard", {"about": "a note that goes with version 2"}, version=2)
        influenced = [x for n in gone for name, x in store.load("ana", n).items() if x.numel() > 100]
        before = raw(folder)
        assert SECRET in before and b"goes with version 2" in before
        assert all(piece in before for x in influenced for piece in parts(x))
        with pytest.raises(StoreError, match="came out of those"):
            writer.erase(mail, gone[:1])
        with pytest.raises(StoreError, match="'main' points to 3"):
            writer.erase(mail, gone)
        with pytest.raises(StoreError, match="is to be erased"):
            writer.erase(mail, gone, move={"main": 2})
        report = writer.erase(mail, gone, move={"main": None}, reason="asked for")
        after = raw(folder)  # with the store open: also what its write-ahead log holds
        # No number: digests hold any four digits once in some runs.
        assert SECRET not in after and b"nobody may know" not in after and b"goes with version 2" not in after
        assert b"mail" not in after
        assert not any(piece in after for x in influenced for piece in parts(x))
        assert b"harmless 59" in after
        assert writer.current is None
        # What remains is to be learned again, in its order.
        again = [e.number for e in writer.pending()]
        assert again == [e.number for e in store.experiences("ana")] and len(again) == 60
        assert set(report.pending) == {n for n in again if n <= 55}
        writer.commit(state(1), reason="replay", tokens=1)
    assert [e["number"] for e in report.experiences] == mail and report.versions == (1, 2, 3)
    assert report.experiences[0]["bytes"] == 32 + len(SECRET) * 36
    assert len(report.files.blobs) == 3 and report.shared == 0 and report.exports == ()
    assert store.version("ana", 4).parent is None
    assert store.verify().ok


def test_of_a_blob_that_others_need_only_the_rest_goes(store, folder):
    with store.writer("ana") as writer:
        writer.commit(state(1), reason="a", tokens=1)
        writer.rollback(None, "again")
        writer.commit(state(2), reason="b", tokens=1)  # its slow level lies in the first blob
        fast, slow = state(1)["fast/w"], state(1)["slow/w"]
        report = writer.erase(versions=[1])
    after = raw(folder)
    assert not any(piece in after for piece in parts(fast)) and all(piece in after for piece in parts(slow))
    assert report.files.rewritten == 1 and report.shared == 1
    assert torch.equal(store.load("ana", 2)["slow/w"], slow) and store.verify().ok


def test_what_gc_left_in_a_blob_goes_with_the_next_erasure(store, folder):
    with store.writer("ana") as writer:
        big = torch.randn(9000)
        writer.commit({"big": big, "small": (small := torch.randn(300))}, reason="a", tokens=1)
        writer.commit({"big": big, "small": torch.randn(300)}, reason="b", tokens=1)
        assert writer.gc(keep=1).versions == (1,)
        assert parts(small)[0] in raw(folder)  # not worth writing 36 kB anew
        writer.remember(b"x", source="s")
        writer.erase([1])
    after = raw(folder)
    assert not any(piece in after for piece in parts(small)) and all(piece in after for piece in parts(big))
    assert store.verify().ok


def test_deleting_a_learner_leaves_nothing_of_it(store, folder, tmp_path):
    store.create("bea", base="weights-of-bea", config={"mark": "configured"})
    with store.writer("bea") as writer:
        writer.remember(SECRET, source="mail")
        version = writer.commit(state(3), reason="because of mail", tokens=1, notes="noted")
        x = store.load("bea", version.number)["fast/w"]
    written = store.export("bea", tmp_path / "bea.circadia")
    assert b"configured" in raw(folder)
    report = store.delete("bea")
    after = raw(folder)
    for text in (SECRET, b"weights-of-bea", b"configured", b"because of mail", b"noted", b"bea.circadia", *parts(x)):
        assert text not in after
    assert report.exports == (written,) and report.experiences[0]["source"] == "mail"
    assert store.learners() == ["ana"] and store.verify().ok


def test_a_report_names_the_exports_that_hold_it(store, tmp_path):
    with store.writer("ana") as writer:
        writer.remember(b"one", source="s")
        writer.commit(state(1), reason="a", tokens=1)
        first = store.export("ana", tmp_path / "first.circadia")
        writer.remember(b"two", source="s")
        second = store.export("ana", tmp_path / "second.circadia")
        assert writer.erase([2]).exports == (second,)
        assert writer.erase([1]).exports == (first, second)
    assert store.exports("ana") == [first, second]
    assert first.hash == hashlib.sha256((tmp_path / "first.circadia").read_bytes()).hexdigest()


@pytest.mark.parametrize("key", ["a passphrase", bytes(range(32))])
def test_with_a_key_experiences_cannot_be_read_in_the_files(folder, key):
    with Store.open(folder, key=key) as store:
        store.create("ana", base="w")
        with store.writer("ana") as writer:
            for _ in range(2):
                writer.remember(SECRET, source="mail")
        assert store.payload("ana", 1) == SECRET
        assert b"nobody may know" not in raw(folder)
        rows = store.db.all("SELECT sealed FROM experiences")
        assert rows[0][0] != rows[1][0]  # equal texts do not look equal
    with Store.open(folder, key=key) as store:
        assert [e.payload for e in store.experiences("ana", payload=True)] == [SECRET] * 2
        assert store.verify().ok
    for wrong, words in (
        (None, "with its key"),
        ("another", "does not fit"),
        (b"x" * 32, "does not fit"),
        (b"x", "length 1"),
    ):
        with pytest.raises(StoreError, match=words):
            Store.open(folder, key=wrong)
    with Store.open(folder, key=key) as store:  # two rows exchanged
        store.db.run("UPDATE experiences SET sealed = ? WHERE number = 1", rows[1][0])
        assert any("cannot be decrypted" in fault for fault in store.verify().faults)
        with pytest.raises(Damaged, match="decrypted"):
            store.payload("ana", 1)


def test_a_store_without_a_key_takes_none_later(store, folder):
    with pytest.raises(StoreError, match="made without one"):
        Store.open(folder, key="late")


def test_equal_payloads_have_different_digests(store):
    with store.writer("ana") as writer:
        for _ in range(2):
            writer.remember(b"yes", source="s")
    digests = [e.payload["digest"] for e in store.events("ana", kind="observe")]
    assert digests[0] != digests[1]  # salted: a guess cannot be tried once the salt is gone
