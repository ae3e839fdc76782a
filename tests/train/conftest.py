"""Small text, a small model, and a cache of tokens of their own for all tests of training."""

import random

import pytest

from circadia.train import load

MODEL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "chunk": 8, "intermediate_size": 16}
# What differs between two runs of the same computation.
TIMES = ("seconds", "waited")


def passage(seed, words):
    """Text with something to learn: each word calls for one of three others."""
    chance = random.Random(seed)
    known = [f"{a}{b}" for a in "bdlmnrst" for b in ("a", "e", "io", "u")]
    at, found = 0, []
    for _ in range(words):
        found.append(known[at])
        at = (at + chance.choice((1, 5, 11))) % len(known)
    return " ".join(found) + "\n"


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with five documents of different lengths."""
    folder = tmp_path_factory.mktemp("text")
    for i, words in enumerate((300, 40, 500, 9, 200)):
        (folder / f"{i}.txt").write_text(passage(i, words), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCADIA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def config(text, tmp_path):
    """`config("optim.lr=1", ...)`: eight steps of a tiny model unless told otherwise."""

    def make(*overrides, **parts):
        base = {
            "model": {"preset": "gated-deltanet/tiny", "config": MODEL},
            "data": {"path": str(text), "length": 32, "heldout": ["1.txt"]},
            "optim": {"lr": 1e-2},
            "train": {
                "tokens": 8 * 4 * 32,
                "batch": 4,
                "eval_every": 4,
                "save_every": 3,
                "eval_tokens": 0,
                "device": "cpu",
            },
            "out": str(tmp_path / "run"),
        }
        return load({**base, **parts}, overrides)

    return make


def curve(lines):
    """What a log says of the computation: everything but the clock."""
    kept = [line for line in lines if line["kind"] in ("step", "eval")]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in kept]
