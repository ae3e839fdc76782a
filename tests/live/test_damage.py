"""Broken files, foreign files, no room, no right to write: clear errors, and nothing committed is lost."""

import errno
import os
import resource
import sqlite3
import subprocess

import pytest
import torch

from circadia.live import Damaged, Full, Store, StoreError, Unwritable
from tests.live.conftest import state


@pytest.fixture
def two(store, folder):
    """Versions 1 and 2 of ana; the path of the second one's blob."""
    with store.writer("ana") as writer:
        writer.commit(state(1), reason="x", tokens=1)
        before = set((folder / "blobs").iterdir())
        writer.commit(state(2), reason="x", tokens=1)
    (path,) = set((folder / "blobs").iterdir()) - before
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def swap(path):
    (other,) = set(path.parent.iterdir()) - {path}
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("break_", "words"), [(cut, "damaged"), (flip, "has changed"), (swap, "damaged"), (os.unlink, "missing")]
)
def test_a_damaged_blob_is_found_and_the_rest_stays(store, folder, two, break_, words):
    break_(two)
    with pytest.raises(Damaged, match=f"{two.name}.*{words}.*restore"):
        store.load("ana", 2)
    (fault,) = store.verify().faults
    assert two.name in fault and "needed by ana 2" in fault
    assert torch.equal(store.load("ana", 1)["fast/w"], state(1)["fast/w"])
    store.close()
    with Store.open(folder) as again:
        assert bool(again.found) == (break_ is os.unlink)
        with again.writer("ana") as writer:
            writer.rollback(1, "damaged")
            writer.commit(state(3), reason="on", tokens=3)
        assert torch.equal(again.load("ana")["fast/w"], state(3)["fast/w"])


def test_a_list_of_tensors_that_was_changed_is_found_by_load(store, two):
    store.db.run("UPDATE contents SET tensor = (SELECT max(tensor) FROM contents) WHERE place = 0")
    with pytest.raises(Damaged, match="version 2: its list"):
        store.load("ana", 2)


def test_a_store_whose_database_is_missing_is_not_begun_anew(store, folder, two):
    store.close()
    blobs = sorted((folder / "blobs").iterdir())
    os.rename(folder / "store.db", folder / "away")
    with pytest.raises(Damaged, match=r"store\.db is missing.*backup"):
        Store.open(folder)
    assert sorted((folder / "blobs").iterdir()) == blobs
    os.rename(folder / "away", folder / "store.db")
    with Store.open(folder) as again:
        assert again.verify().ok


def test_an_older_copy_of_the_database_costs_no_blob(store, folder, two):
    with Store.open(folder) as again:
        content = sqlite3.connect(folder / "older.db")
        again.db.connection.backup(content)
        content.close()
        with again.writer("ana") as writer:
            writer.commit(state(5), reason="newer", tokens=1)
    store.close()
    os.replace(folder / "older.db", folder / "store.db")
    with Store.open(folder) as again:
        assert len(again.blobs.names()) == 3 and "older copy" in again.found[0]
        assert len(again.gc()["ana"].blobs) == 1 and len(again.blobs.names()) == 2
        assert again.verify().ok


def test_foreign_newer_and_broken_databases_are_refused(tmp_path):
    newer, foreign, broken = (tmp_path / name for name in ("newer", "foreign", "broken"))
    Store.open(newer).close()
    with sqlite3.connect(newer / "store.db") as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    foreign.mkdir()
    with sqlite3.connect(foreign / "store.db") as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    broken.mkdir()
    (broken / "store.db").write_bytes(b"no database at all, but long enough to be read as one" * 100)
    for folder, kind, words in (
        (newer, StoreError, "schema 9.*update Circadia"),
        (foreign, Damaged, "another program"),
        (broken, Damaged, "damaged or none"),
    ):
        before = (folder / "store.db").read_bytes()
        with pytest.raises(kind, match=words):
            Store.open(folder)
        assert (folder / "store.db").read_bytes() == before
    with pytest.raises(StoreError, match="is no store"):
        Store.open(tmp_path / "nothing", create=False)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="in the way"):
        Store.open(tmp_path / "file")


def test_what_a_kill_left_is_cleaned_and_told(store, folder, two):
    store.db.run("UPDATE learners SET writer = ? WHERE id = 1", '{"pid": 1, "host": "h", "thread": "t", "since": "s"}')
    (folder / "blobs" / ".abc.1234.tmp").write_bytes(b"half")
    (folder / "blobs" / f"{'0' * 64}.safetensors").write_bytes(b"of a commit that never ended")
    store.close()
    with Store.open(folder) as again:
        told = " ".join(again.found)
        assert ".abc.1234.tmp" in told and "removed 1 blobs" in told and "process 1 on h" in told
        assert len(list((folder / "blobs").iterdir())) == 2 and again.verify().ok
    with Store.open(folder) as again:
        assert again.found == []


def test_intents_that_a_kill_left_are_carried_out(store, folder, two):
    """As if killed after the rows of an erasure were gone, before the files were."""
    from circadia.live import erase, sweep

    def killed(store):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, store.writer("ana") as writer:
        patch.setattr(erase, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.erase(versions=[2], move={"main": 1})
    assert two.exists() and sweep.finish is not killed
    store.close()
    with Store.open(folder) as again:
        assert not two.exists() and again.verify().ok
        assert "an erasure was interrupted" in again.found and "cleaned the database" in " ".join(again.found)


@pytest.mark.parametrize("limit", [2_000, 1_000_000])
def test_no_room_is_said_and_nothing_is_lost(store, folder, two, limit):
    """A limit on the size of files stands for a full disk; first the blob is too large, then the database."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = 0
    with store.writer("ana") as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(Full, match="free some") as caught:
                for i in range(1000):
                    writer.remember(bytes(3000), source="s")
                    writer.commit(state(10 + i), reason="x", tokens=1)
                    made += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert len(store.versions("ana")) == 2 + made and (made > 0) == (limit > 2_000)
        writer.commit(state(5), reason="room again", tokens=1)
    assert store.verify().ok and store.orphans() == [] and store.blobs.unfinished() == []
    assert torch.equal(store.load("ana")["fast/w"], state(5)["fast/w"])


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost(disk):
    with Store.open(disk / "store") as store:
        store.create("ana", base="w")
        made = 0
        with pytest.raises(Full, match="free some") as caught, store.writer("ana") as writer:
            for i in range(1000):
                writer.commit({"x": torch.full((50_000,), float(i))}, reason="x", tokens=1)
                made += 1
        assert caught.value.errno == errno.ENOSPC and 10 < made < 22
    with Store.open(disk / "store") as store:
        assert [v.number for v in store.versions("ana")] == list(range(made, 0, -1))
        assert store.verify().ok
        with store.writer("ana") as writer:
            assert len(writer.gc(keep=3).versions) == made - 3
            writer.commit({"x": torch.zeros(50_000)}, reason="room again", tokens=1)
        assert store.verify().ok


def test_a_folder_that_cannot_be_written_is_said(disk):
    Store.open(disk / "store").close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = sorted(disk.rglob("*"))
    for path in (disk / "store", disk / "new"):
        with pytest.raises(Unwritable, match="cannot be written"):
            Store.open(path)
    assert sorted(disk.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_said(store, folder):
    store.close()
    folder.chmod(0o500)
    try:
        with pytest.raises(Unwritable, match="right to write"):
            Store.open(folder)
    finally:
        folder.chmod(0o700)
