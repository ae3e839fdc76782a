"""The log: whoever changes, removes, reorders or puts in rows is found, but for what chain.py says cannot be."""

import hmac
import json
import shutil
import sqlite3

import pytest

from circadia.live import Store, StoreError, verify
from circadia.live.chain import canonical, link
from tests.live.conftest import state


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A store with everything in it."""
    folder = tmp_path_factory.mktemp("life") / "store"
    with Store.open(folder) as store:
        store.create("ana", base="weights", config={"period": 512})
        with store.writer("ana") as writer:
            for i in range(4):
                writer.remember(f"text {i}".encode(), source="notes", time=float(i))
                writer.commit(state(i), reason=f"step {i}", tokens=i, probes={"loss": i})
            writer.branch("side", 2)
            writer.rollback(3, "worse")
            writer.erase([4], [4], reason="asked")
            writer.record("sleep", {"night": 1}, version=3)
            writer.gc(keep=2)
        assert store.verify().ok
    return folder


@pytest.fixture
def lived(life, tmp_path):
    """A copy, closed, so that its rows can be changed."""
    return shutil.copytree(life, tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE events SET payload = replace(payload, 'step 1', 'step 9')", "another payload"),
        ("UPDATE events SET kind = 'pause' WHERE kind = 'sleep'", "does not fit"),
        ("UPDATE events SET time = time + 1 WHERE number = 3", "event 3 .* does not fit"),
        ("UPDATE events SET version = 2 WHERE kind = 'sleep'", "does not fit"),
        ("UPDATE events SET payload = NULL, salt = NULL WHERE number = 2", "event 2 has no payload, and no erasure"),
        ("UPDATE events SET salt = NULL WHERE number = 2", "lost its payload or its salt"),
        ("UPDATE events SET payload = '{}', salt = x'00' WHERE payload IS NULL", "another payload|was erased"),
        ("DELETE FROM events WHERE number = 4 AND learner = 1", "event 4 is missing"),
        (
            "UPDATE events SET number = CASE number WHEN 3 THEN -5 ELSE -3 END WHERE learner = 1 AND number IN (3, 5);"
            "UPDATE events SET number = -number WHERE number < 0",
            "does not fit",
        ),
        ("DELETE FROM events WHERE learner = 1 AND number > 8", "its tail was cut"),
        (
            "DELETE FROM events WHERE learner = 1 AND number > 5;"
            "UPDATE learners SET events = 6, head = (SELECT hash FROM events WHERE learner = 1 AND number = 5) "
            "WHERE id = 1",
            "version 3 is not in the log",
        ),
        ("DELETE FROM events WHERE learner = 0", "tail was cut"),
        ("UPDATE versions SET reason = 'better' WHERE number = 2", "version 2 is not what the log says"),
        ("UPDATE versions SET probes = '{}' WHERE number = 2", "version 2 is not what the log says"),
        ("UPDATE versions SET parent = NULL WHERE number = 2", "version 2 is not what the log says"),
        ("DELETE FROM versions WHERE number = 2", "version 2 is missing"),
        ("UPDATE branches SET version = 2 WHERE name = 'main'", "'main' points to 2, in the log to 3"),
        ("DELETE FROM branches WHERE name = 'side'", "'side'"),
        ("UPDATE contents SET tensor = (SELECT min(tensor) FROM contents)", "another list of tensors"),
        ("UPDATE experiences SET source = 'mail' WHERE number = 1", "experience 1 is not what the log says"),
        ("UPDATE experiences SET sealed = sealed || x'00' WHERE number = 1", "cannot be read"),
        ("UPDATE experiences SET sealed = NULL WHERE number = 1", "experience 1 has lost its payload"),
        ("UPDATE experiences SET version = 3 WHERE number = 2", "experience 2 is not one of version 3"),
        ("DELETE FROM experiences WHERE number = 2", "experience 2 is missing"),
        ("INSERT INTO experiences SELECT NULL, learner, 9, source, trust, time, start, stop, kind, branch, version, "
         "sealed FROM experiences WHERE number = 1", "experience 9 is not in the log"),
        ("UPDATE versions SET probes = 'no json' WHERE number = 2", "cannot be read"),
        ("UPDATE events SET payload = 'no json' WHERE number = 3", "another payload.*cannot be read"),
        ("UPDATE experiences SET sealed = x'00' WHERE number = 1", "experience 1 has another payload"),
        ("UPDATE learners SET base = 'other' WHERE id = 1", "base"),
        ("UPDATE learners SET config = '{}' WHERE id = 1", "config"),
        ("UPDATE learners SET name = 'eve' WHERE id = 1", "name was 'ana'"),
        ("DELETE FROM learners WHERE id = 1", "learner 1 .* is missing"),
        ("INSERT INTO learners SELECT 7, 'eve', 'u', base, config, journal, time, 0, x'', NULL, NULL FROM learners "
         "WHERE id = 1", "learner 7 .* is not in it"),
    ],
)  # fmt: skip
def test_tampering_is_found(lived, change, words):
    with sqlite3.connect(lived / "store.db") as database:
        database.executescript(change)
        assert database.total_changes
    database.close()
    with Store.open(lived) as store:
        found = store.verify().faults
        assert found
        with pytest.raises(AssertionError, match=words):
            raise AssertionError("; ".join(found))


def test_a_check_sees_one_moment_of_a_life_that_goes_on(lived, monkeypatch):
    """Somebody observes and goes back between the two sides that are compared."""
    with Store.open(lived) as store, Store.open(lived) as other, other.writer("ana") as writer:
        real = verify._versions

        def late(*given):
            writer.remember(b"late", source="notes")
            writer.rollback(2, "late")
            return real(*given)

        monkeypatch.setattr(verify, "_versions", late)
        assert store.verify("ana").faults == ()
        monkeypatch.undo()
        assert len(list(store.experiences("ana"))) == 4 and store.verify().ok


def test_nothing_is_found_where_nothing_was_done(lived):
    with Store.open(lived) as store:
        found = store.verify()
        assert found.ok and store.verify("ana").ok
        assert (found.learners, found.versions, found.blobs) == (1, 2, 3)
        assert found.events == store.head("ana")[0] + 1
        assert [e.number for e in store.events("ana") if e.payload is None] == [7, 8]


def rewrite(folder):
    """What somebody can do who knows this program: the whole log anew, with a changed version."""
    with sqlite3.connect(folder / "store.db") as database:
        database.row_factory = sqlite3.Row
        uid = database.execute("SELECT uid FROM learners WHERE id = 1").fetchone()[0]
        database.execute("UPDATE versions SET reason = 'forged' WHERE number = 2")
        head = b""
        for row in database.execute("SELECT * FROM events WHERE learner = 1 ORDER BY number").fetchall():
            row = dict(row)
            if row["kind"] == "commit" and row["version"] == 2:
                said = json.loads(row["payload"])
                said["version"]["reason"] = "forged"
                row["payload"] = canonical(said)
                row["digest"] = hmac.digest(row["salt"], row["payload"].encode(), "sha256")
            head = link(uid, row, head)
            values = (row["payload"], row["digest"], head, row["id"])
            database.execute("UPDATE events SET payload = ?, digest = ?, hash = ? WHERE id = ?", values)
        database.execute("UPDATE learners SET head = ? WHERE id = 1", (head,))
    database.close()


def test_a_log_written_anew_shows_only_against_a_head_kept_elsewhere(lived):
    with Store.open(lived) as store:
        before = store.head("ana")
    rewrite(lived)
    with Store.open(lived) as store:
        assert store.version("ana", 2).reason == "forged"
        assert store.verify().ok  # as chain.py says
        assert store.head("ana")[0] == before[0] and store.head("ana")[1] != before[1]


def test_with_a_key_a_log_written_anew_is_found(folder):
    with Store.open(folder, key=b"k" * 32) as store:
        store.create("ana", base="w")
        with store.writer("ana") as writer:
            writer.commit(state(1), reason="a", tokens=1)
            writer.commit(state(2), reason="b", tokens=1)
        assert store.verify().ok
    rewrite(folder)
    with Store.open(folder, key=b"k" * 32) as store:
        assert store.verify().faults == (
            "ana: the signature of the log's head does not fit: somebody without the key wrote the log",
        )


def test_what_the_others_are_judged_by_cannot_be_erased(store):
    with store.writer("ana") as writer:
        writer.record("sleep", {"x": 1})
        with pytest.raises(StoreError, match="cannot be erased"):
            writer.erase(events=[0])
        assert writer.erase(events=[1]).events == (1,)
    assert store.verify().ok
