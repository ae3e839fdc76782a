"""The tasks of ``benchmarks.optim``: images, novels, and four domains one after another."""

import gzip
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VALID_ROWS, WINDOW, BATCH = 32, 128, 8  # language models: windows of a measurement, tokens of each, windows of a step
MOST = 12_000_000  # bytes of text that are read for training


class ViT(nn.Module):
    """Patches of 2 x 2 pixels, pre-norm blocks, a mean over the tokens."""

    def __init__(self, side: int = 8, classes: int = 10, width: int = 32, blocks: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.heads = nn.Linear(4, width), heads
        self.pos_embed = nn.Parameter(torch.randn(side * side // 4, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        n, side, _ = images.shape
        x = images.reshape(n, side // 2, 2, side // 2, 2).transpose(2, 3).reshape(n, -1, 4)
        x = self.patch(x) + self.pos_embed
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
            x = x + block["out"](read)
            x = x + block["down"](F.gelu(block["up"](block["norm2"](x))))
        return self.head(self.norm(x.mean(1)))


class Digits:
    """(a) The 1,797 images of handwritten digits that come with scikit-learn: 1,257, 180 and 360 of them."""

    steps, tune_steps, full_steps, full_tune_steps, rest, constant = 200, 200, 200, 200, 3e-3, False
    architecture = "vit"

    def __init__(self, data: Path | None, full: bool = False) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
        images = torch.tensor(found.images, dtype=torch.float32)[order] / 8 - 1
        self.split(images, torch.tensor(found.target)[order], [1257, 180, 360])

    def split(self, images: Tensor, labels: Tensor, sizes: list[int]) -> None:
        self.parts = dict(zip(("train", "valid", "test"), zip(images.split(sizes), labels.split(sizes))))

    def model(self) -> nn.Module:
        return ViT()

    def loss(self, model: nn.Module, step: int, steps: int, generator: torch.Generator) -> Tensor:
        images, labels = self.parts["train"]
        rows = torch.randint(len(images), (64,), generator=generator)
        return F.cross_entropy(model(images[rows]), labels[rows])

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Losses, and the share of test images that are right."""
        out = {name: model(images) for name, (images, _) in self.parts.items()}
        found = {name: F.cross_entropy(logits, self.parts[name][1]).item() for name, logits in out.items()}
        right = (out["test"].argmax(-1) == self.parts["test"][1]).double().mean().item()
        return {**found, "accuracy": right}

    def marks(self, steps: int) -> list[int]:
        return []


class Images(Digits):
    """(a) The same on any folder of images with a folder for each class: grey, 16 x 16 pixels; 70, 10 and 20 %."""

    side = 16

    def __init__(self, data: Path | None, full: bool = False) -> None:
        from PIL import Image

        folders = sorted(path for path in data.iterdir() if path.is_dir()) if data and data.is_dir() else []
        known = Image.registered_extensions()
        files = [(f, i) for i, held in enumerate(folders) for f in sorted(held.rglob("*")) if f.suffix.lower() in known]
        if len({i for _, i in files}) < 2 or len(files) < 10:
            raise ValueError(
                f"--data {data}: there are no two folders with images in it, one for each class, ten in all"
            )
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        pixels = []
        for file, _ in (files[i] for i in order):
            try:
                with Image.open(file) as image:
                    small = image.convert("L").resize((self.side, self.side))
            except OSError as error:
                raise ValueError(f"--data {data}: {file} cannot be read as an image: {error}") from error
            pixels.append(torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8))
        images = torch.stack(pixels).reshape(-1, self.side, self.side) / 127.5 - 1
        valid, test = max(1, len(files) // 10), max(1, len(files) // 5)
        self.split(images, torch.tensor([files[i][1] for i in order]), [len(files) - valid - test, valid, test])
        self.classes = len(folders)
        self.architecture = f"vit, {data.name}" if data else "vit"  # runs of other images are other runs

    def model(self) -> nn.Module:
        return ViT(self.side, self.classes)


@dataclass
class Text:
    """Bytes to train on, and windows to measure on."""

    train: Tensor
    valid: Tensor
    test: Tensor

    @classmethod
    def of(cls, train: bytes, valid: bytes, test: bytes) -> "Text":
        def windows(text: bytes) -> Tensor:
            held = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            starts = torch.linspace(0, len(held) - WINDOW - 1, VALID_ROWS).long()
            return torch.stack([held[start : start + WINDOW + 1] for start in starts]).long()

        return cls(torch.frombuffer(bytearray(train), dtype=torch.uint8), windows(valid), windows(test))

    def batch(self, generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(self.train) - WINDOW - 1, (BATCH,), generator=generator)
        return torch.stack([self.train[start : start + WINDOW + 1] for start in starts]).long()


def next_byte(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean loss in nats a byte."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


class Novels:
    """(b) transformer++ `tiny` on the bytes of novels; every tenth book is for tuning, every tenth for testing."""

    steps, tune_steps, full_steps, full_tune_steps, rest, constant = 160, 50, 300, 100, 1e-3, False
    architecture = "transformer++"

    def __init__(self, data: Path | None, full: bool = False) -> None:
        self.data = data
        list(self._books())[:1]  # a wrong folder is told before anything is trained

    def _books(self) -> Iterator[bytes]:
        files = sorted((self.data or Path()).glob("novels*/*.jsonl*"))
        if self.data is None or not files:
            raise ValueError(f"--data {self.data}: there is no novels*/*.jsonl.xz with a field 'text' in it")
        size = 0
        for file in files:
            for line in lines(file):
                text = json.loads(line)["text"].encode()
                size += len(text)
                yield text
                if size > MOST:
                    return

    @cached_property
    def text(self) -> Text:
        parts = [bytearray(), bytearray(), bytearray()]
        for i, book in enumerate(self._books()):
            parts[{3: 1, 7: 2}.get(i % 10, 0)] += book
        return Text.of(*map(bytes, parts))

    def model(self) -> nn.Module:
        from circadia.models import HopeForCausalLM
        from circadia.models.presets import preset

        return HopeForCausalLM(preset(self.architecture, "tiny"))

    def loss(self, model: nn.Module, step: int, steps: int, generator: torch.Generator) -> Tensor:
        return next_byte(model, self.text.batch(generator))

    def measure(self, model: nn.Module) -> dict[str, float]:
        return {name: next_byte(model, getattr(self.text, name)).item() for name in ("valid", "test")}

    def marks(self, steps: int) -> list[int]:
        return []


class Hope(Novels):
    """(c) The same with Hope `tiny`."""

    architecture = "hope"


class SmallHope(Novels):
    """The same with a Hope that has about as long a step as transformer++ `tiny`."""

    architecture = "hope 64x3"

    def model(self) -> nn.Module:
        from circadia.models import HopeConfig, HopeForCausalLM
        from circadia.models.presets import preset

        shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
        periods = preset("hope", "tiny").periods
        return HopeForCausalLM(HopeConfig(vocab_size=256, mixers=["self_modifying"], periods=periods, **shape))


class Continual(Novels):
    """(d) Four domains one after another at a constant rate, so that no schedule protects the first one."""

    steps, tune_steps, full_steps, full_tune_steps, rest, constant = 200, 48, 400, 200, 1e-3, True
    count = 4

    def __init__(self, data: Path | None, full: bool = False) -> None:
        self.data = data
        files: dict[str, list[Path]] = {}
        for file in sorted((data or Path()).glob("domains/*")):
            if file.name.split(".", 1)[-1] in ("txt", "txt.gz", "jsonl", "jsonl.gz"):
                files.setdefault(file.name.split(".")[0].split("_")[0], []).append(file)
        if data is None or len(files) < self.count:
            raise ValueError(
                f"--data {data}: there are no {self.count} domains as NAME*.txt.gz or NAME*.jsonl.gz in domains/"
            )
        self.files = dict(list(files.items())[: self.count])

    @cached_property
    def domains(self) -> dict[str, Text]:
        found = {}
        for name, files in self.files.items():
            text = "\n\n".join(document for file in files for document in documents(file)).encode()[:MOST]
            tenth = len(text) // 10
            found[name] = Text.of(text[: 8 * tenth], text[8 * tenth : 9 * tenth], text[9 * tenth :])
        return found

    def loss(self, model: nn.Module, step: int, steps: int, generator: torch.Generator) -> Tensor:
        which = min(step * self.count // steps, self.count - 1)
        return next_byte(model, list(self.domains.values())[which].batch(generator))

    def measure(self, model: nn.Module) -> dict[str, Any]:
        """The mean over all domains, and of the first one."""
        found: dict[str, Any] = {}
        for split in ("valid", "test"):
            losses = {name: next_byte(model, getattr(text, split)).item() for name, text in self.domains.items()}
            found[split] = sum(losses.values()) / len(losses)
            found[f"{split}_domains"] = losses
        found["first"] = next(iter(found["test_domains"].values()))
        return found

    def marks(self, steps: int) -> list[int]:
        """The last step of each domain."""
        return [-(-steps * (i + 1) // self.count) for i in range(self.count - 1)]


def lines(file: Path) -> Iterator[str]:
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
    with opener(file, "rt", encoding="utf-8") as stream:
        yield from stream


def documents(file: Path) -> Iterator[str]:
    """The text of a file, or what is text in each line of JSON."""
    if ".jsonl" not in file.name:
        yield "".join(lines(file))
        return
    for line in lines(file):
        yield "\n".join(value for value in json.loads(line).values() if isinstance(value, str))


TASKS: dict[str, Any] = {
    "digits": Digits,
    "images": Images,
    "novels": Novels,
    "hope": Hope,
    "hope-small": SmallHope,
    "continual": Continual,
}
