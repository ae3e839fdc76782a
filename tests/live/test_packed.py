"""Our own safetensors files: byte for byte those of the package, and nothing stays behind when they are read."""

import gc
import tracemalloc

import pytest
import safetensors.torch
import torch

from circadia.live.packed import KINDS, pack, pick, raw


def tensors(extra=0):
    torch.manual_seed(0)
    found = {f"{name} {i}": torch.randint(0, 2, (3, 5 + i + extra)).to(kind)
             for name, kind in KINDS.items() for i in range(2)}  # fmt: skip
    return found | {"one": torch.tensor(1.5), "none": torch.zeros(0, 4), "ä": torch.randn(4, 6).T}


def test_the_bytes_are_those_of_the_package(tmp_path):
    given = tensors()
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack(given))
    assert path.read_bytes() == safetensors.torch.save({name: x.contiguous() for name, x in given.items()})
    theirs = safetensors.torch.load_file(path)
    mine = dict(pick(path, given))
    for name, x in given.items():
        for other in (mine[name], theirs[name]):
            assert other.dtype == x.dtype and other.shape == x.shape and bytes(raw(other)) == bytes(raw(x)), name
    assert [name for name, _ in pick(path, ["one"])] == ["one"] and pack({})[8:].strip() == b"{}"
    with pytest.raises(ValueError, match="complex64 cannot be stored"):
        pack({"x": torch.zeros(2, dtype=torch.complex64)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:5], "cut off"),
        (lambda text: text[:40], "cut off"),
        (lambda text: text[:-1], "place"),
        (lambda text: text.replace(b"F32", b"F64"), "place"),
        (lambda text: text.replace(b"F32", b"F99"), "head"),
        (lambda text: text.replace(b"[0,", b"[9,"), "place"),
        (lambda text: text.replace(b"[3,", b"{3,"), "Expecting"),
        (lambda text: b"\xff" * 8 + text[8:], "cut off"),
        (lambda text: text.replace(b'"x"', b'"y"'), "not in its head"),
    ],
)
def test_a_file_that_is_not_whole_is_an_error(tmp_path, change, said):
    text = pack({"x": torch.ones(3, 4)})
    (tmp_path / "x").write_bytes(change(text))
    with pytest.raises(ValueError, match=said):
        list(pick(tmp_path / "x", ["x"]))


def test_new_sizes_and_many_readings_leave_nothing(tmp_path):
    def work(times, begin):
        for i in range(times):
            path = tmp_path / "x"
            path.write_bytes(pack(tensors(begin + i)))
            list(pick(path, tensors(begin + i)))
        gc.collect()

    work(3, 0)
    tracemalloc.start()
    try:
        work(2, 3)
        before = tracemalloc.get_traced_memory()[0]
        work(20, 100)  # 660 tensors of 640 sizes, which took 3 MB
        assert tracemalloc.get_traced_memory()[0] - before < 20_000
    finally:
        tracemalloc.stop()
