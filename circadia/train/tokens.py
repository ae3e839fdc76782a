"""Text to numbers: bytes, or any Hugging Face tokenizer; how many bytes each token stands for; new tokenizers."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from circadia.train.sources import Document

END = "<|end|>"


@dataclass(frozen=True)
class Tokenizer:
    """``name`` is "bytes", a folder, a tokenizer.json or a Hub id. Small and picklable, like a source."""

    name: str = "bytes"

    @cached_property
    def _fast(self) -> Any:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            if Path(self.name).is_file():
                found: Any = PreTrainedTokenizerFast(tokenizer_file=self.name)
            else:
                found = AutoTokenizer.from_pretrained(self.name)
        except Exception as error:  # unknown, offline, broken files: each has its own class
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"data.tokenizer={self.name!r} cannot be loaded: give bytes or a folder ({said})"
            ) from error
        if not found.is_fast:
            raise ValueError(f"data.tokenizer={self.name!r} has no fast form, which knows where its tokens stand")
        return found

    @property
    def bytes(self) -> bool:
        return self.name == "bytes"

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return 256 if self.bytes else len(self._fast)

    @property
    def end(self) -> int | None:
        """The token after each document, if there is one."""
        if self.bytes:
            return None
        known = self._fast.get_vocab()
        return known.get(END) if self._fast.eos_token_id is None else self._fast.eos_token_id

    def fingerprint(self) -> str:
        """Changes with the vocabulary, the rules, and the end of documents, which the backend does not know."""
        if self.bytes:
            return "bytes"
        return hashlib.sha256(f"{self._fast.backend_tokenizer.to_str()} {self.end}".encode()).hexdigest()

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and the bytes of text that each stands for: they add up to those of the text."""
        if self.bytes:
            tokens = np.frombuffer(text.encode(), np.uint8)
            return tokens, np.ones_like(tokens)
        coded = self._fast(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = np.array(coded["input_ids"], np.uint32)
        # A token's bytes reach from the end of the one before to its own end, so that characters which are split over
        # tokens, or which the tokenizer drops, are counted once.
        sizes = np.fromiter((len(c.encode()) for c in text), np.int64, len(text))
        until = np.concatenate(([0], np.cumsum(sizes)))
        ends = np.maximum.accumulate(np.array([end for _, end in coded["offset_mapping"]], np.int64))
        if len(ends):
            ends[-1] = len(text)
        widths = np.diff(until[ends], prepend=0).astype(np.uint32)
        if self.end is not None:
            tokens, widths = np.append(tokens, np.uint32(self.end)), np.append(widths, np.uint32(0))
        return tokens, widths

    def save(self, folder: Path) -> None:
        """Beside a model, where `AutoTokenizer` finds it; bytes need no file."""
        if not self.bytes:
            self._fast.save_pretrained(folder)


def train_tokenizer(documents: Iterable[Document], size: int, out: Path) -> int:
    """Byte-level BPE as a Hugging Face tokenizer in a folder; returns how many tokens it has."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if size < 257:
        raise ValueError(f"--size {size}: a byte-level vocabulary needs at least 257 tokens: the bytes and {END}")
    if out.exists():
        raise ValueError(f"--out {out} exists: choose another folder or remove it")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((document.text for document in documents), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)
    made.save_pretrained(out)
    return len(made)
