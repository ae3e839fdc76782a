"""A learner in one file, and out of it again."""

import zipfile

import pytest
import torch

from circadia.live import Damaged, Store, StoreError
from tests.live.conftest import raw, state


def live(store, name="ana"):
    with store.writer(name) as writer:
        for i in range(3):
            writer.remember(f"text {i}".encode(), source="notes", time=float(i), start=i, stop=i + 1)
            writer.commit(state(i), reason=f"step {i}", tokens=i, probes={"loss": i})
        writer.remember(b"pending", source="notes")
        writer.branch("side", 2)
        writer.rollback(1, "worse")
        writer.remember(b"still pending", source="notes")
        writer.erase([2], reason="asked")


def everything(store, name):
    states = {v.number: store.load(name, v.number) for v in store.versions(name)}
    return (
        store.versions(name),
        list(store.experiences(name, payload=True)),
        store.learner(name).branches,
        {n: {k: (x.dtype, x.tolist()) for k, x in s.items()} for n, s in states.items()},
        [(e.kind, e.payload, e.hash) for e in store.events(name)],
    )


@pytest.mark.parametrize("key", [None, "here"])
@pytest.mark.parametrize("other", [None, "there"])
def test_a_life_moves_to_another_store(tmp_path, key, other):
    path = tmp_path / "ana.circadia"
    with Store.open(tmp_path / "a", key=key) as store:
        store.create("ana", base="weights", config={"period": 512})
        live(store)
        written = store.export("ana", path)
        want = everything(store, "ana")
        assert [e.file for e in store.exports("ana")] == ["ana.circadia"] and store.verify().ok
        assert want[-1].pop()[:2] == ("export", vars(written))
    with Store.open(tmp_path / "b", key=other) as store:
        if key is not None:
            with pytest.raises(StoreError, match="key of another store"):
                store.import_(path)
            with pytest.raises(StoreError, match="does not fit"):
                store.import_(path, key="wrong")
        life = store.import_(path, key=key)
        assert (life.name, life.base, life.config) == ("ana", "weights", {"period": 512})
        found = everything(store, "ana")
        assert found[-1].pop()[0] == "import"
        assert found == want
        assert store.verify().ok
        assert (b"still pending" in raw(tmp_path / "b")) == (other is None)
        with store.writer("ana") as writer:  # and goes on
            assert [e.payload for e in writer.pending(payload=True)] == [b"still pending"]
            assert writer.commit(state(9), reason="on", tokens=9).number == 4
        assert store.verify().ok


def test_a_copy_in_the_same_store_has_its_own_life(store, tmp_path, folder):
    live(store)
    store.export("ana", tmp_path / "x")
    blobs = len(store.blobs.names())
    with pytest.raises(StoreError, match="name='ana'"):
        store.import_(tmp_path / "x")
    store.import_(tmp_path / "x", name="eva")
    assert len(store.blobs.names()) == blobs  # equal tensors are there already
    store.delete("ana")
    assert torch.equal(store.load("eva", 2)["fast/w"], state(1)["fast/w"])
    assert store.verify().ok and not store.blobs.unfinished()


def test_an_export_holds_nothing_of_another_learner(store, tmp_path):
    """Two learners that share a tensor: the file of one must not hold the blob of the other."""
    store.create("bea", base="weights")
    for i, name in enumerate(("ana", "bea")):
        with store.writer(name) as writer:
            writer.commit(state(i), reason="x", tokens=1)
    store.export("bea", tmp_path / "bea")
    piece = lambda i, name: state(i)[name].reshape(-1).view(torch.uint8).numpy().tobytes()[:400]  # noqa: E731
    content = (tmp_path / "bea").read_bytes()
    assert piece(1, "fast/w") in content and piece(0, "slow/w") in content
    assert piece(0, "fast/w") not in content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda name, x: x[:-1] + bytes([x[-1] ^ 1]) if name.startswith("tensors/") else x, "has changed"),
        (lambda name, x: x.replace(b'"step 1"', b'"step 9"', 1) if name == "learner.json" else x, "damaged"),
        (lambda name, x: x.replace(b'"weights"', b'"forgery"') if name == "learner.json" else x, "base, config"),
        (lambda name, x: x.replace(b'"version": 1', b'"version": 2', 1) if name == "learner.json" else x, "up to 1"),
        (lambda name, x: x.replace(b"circadia learner", b"other") if name == "learner.json" else x, "format 'other'"),
        (lambda name, x: x[: len(x) // 2] if name == "learner.json" else x, "damaged"),
        (lambda name, x: None if name == "learner.json" else x, "damaged"),
        (lambda name, x: b"[1]" if name == "learner.json" else x, "no export"),
        (lambda name, x: x.replace(b'"name": "ana"', b'"name": "../a"'), "name='../a'"),
        (lambda name, x: x.replace(b'"branches": [[', b'"branches": [["main", 1], [', 1), "no export"),
        (lambda name, x: None if name.startswith("tensors/") else x, "damaged"),
    ],
)
def test_a_changed_file_is_refused_whole(store, tmp_path, change, words):
    live(store)
    store.export("ana", tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x") as old, zipfile.ZipFile(tmp_path / "y", "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    with Store.open(tmp_path / "b") as other:
        with pytest.raises(StoreError, match=words):
            other.import_(tmp_path / "y")
        assert other.learners() == [] and other.blobs.names() == set() and other.verify().ok
    with Store.open(tmp_path / "b") as other:
        assert all("interrupted" in text for text in other.found)


def test_other_files_are_refused(store, tmp_path):
    (tmp_path / "text").write_text("no export")
    live(store)
    store.export("ana", tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    with zipfile.ZipFile(tmp_path / "x") as file:
        info = file.getinfo("learner.json")
    for at in range(info.header_offset + 42, info.header_offset + info.compress_size, info.compress_size // 40):
        (tmp_path / "bits").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with pytest.raises(Damaged, match="no export"):
            store.import_(tmp_path / "bits", name="b")
    (tmp_path / "bits").unlink()
    half = (tmp_path / "x").read_bytes()[:3000]
    (tmp_path / "half").write_bytes(half)
    for name in ("text", "half"):
        with pytest.raises(Damaged, match="no export"):
            store.import_(tmp_path / name, name="b")
    with pytest.raises(StoreError, match="no file"):
        store.import_(tmp_path / "missing")
    for path in (tmp_path, tmp_path / "none" / "x"):
        with pytest.raises(StoreError, match="folder"):
            store.export("ana", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["half", "store", "text", "x"]
