"""A life: splits, reopening, kills, versions, and forgetting that equals a life in which it never happened."""

import json
import os
import signal

import pytest
import torch

import circadia
from circadia.live import Busy, Learner, Store, StoreError
from circadia.live.guard import Guard, Verdict, read
from circadia.live.text import LONGEST, Words, segments
from tests.live.conftest import raw
from tests.live.learners import LOUD, NATIVE, A, B, X, differing, make, model

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def base():
    return model()


@pytest.fixture
def store(folder):
    with Store.open(folder) as found:
        yield found


def test_the_public_name():
    assert circadia.Learner is Learner


def test_predicts_then_learns_and_says_what_changed(store, base):
    me = make(store, base, "ana", gate=False)
    done = me.observe(A * 4, source="a")
    plain, state = base.learn(list((A * 4).encode()), base.start())
    assert done.surprise == pytest.approx(plain.surprise, rel=1e-6)
    assert differing({n: x for n, x in me.state.items() if not n.startswith("text/")}, state) == []
    assert [level.updates for level in done.levels] == [len(A) * 4 // 8, len(A) * 4 // 16]
    assert all(level.moved > 0 for level in done.levels)
    assert (done.tokens, done.pending, done.versions) == (len(A) * 4, len(A) * 4 % 8, [1])
    assert me.version.tokens == me.tokens == len(A) * 4
    assert me.score(A) < base.score(list(A.encode())).surprise


def test_any_split_of_text_leaves_the_same_bits(store, base):
    text = A + X + B + A
    whole = make(store, base, "whole")
    whole.observe(text)
    assert float(whole.state["gate/stats"][0]) > 0
    for name, cuts in {"one": [1], "many": [3, 8, 9, 40, 120], "long": list(range(5, len(text), 11))}.items():
        me = make(store, base, name)
        for a, b in zip([0, *cuts], [*cuts, len(text)]):
            me.observe(text[a:b], commit=b % 2 == 0)
        assert differing(me, whole) == []
    stream = make(store, base, "stream")
    stream.observe(text[i : i + 7] for i in range(0, len(text), 7))
    assert differing(stream, whole) == []


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte-level BPE that joins words and newlines with what follows them."""
    from circadia.train.sources import Document
    from circadia.train.tokens import train_tokenizer

    folder = tmp_path_factory.mktemp("bpe") / "t"
    documents = [Document("d", (A + B + X) * 20), Document("e", "one  two\n\n\nthree " * 30)]
    train_tokenizer(documents, 320, folder)
    return str(folder)


def test_any_split_of_text_with_a_tokenizer(store, tokenizer):
    base = model(vocab=320)
    text = A + "one  two\n\n\nthree" + B + "word " * 420 + "\r\n\n" + X
    whole = make(store, base, "whole", tokenizer=tokenizer)
    whole.observe(text)
    words = Words.open(tokenizer)
    done, rest = segments(text)
    assert len(done) > 5 and max(map(len, done)) <= LONGEST and "".join(done) + rest == text
    assert whole.tokens == sum(len(words.encode(part)) for part in done)
    assert whole.tokens < 0.7 * len(text) and words.decode([t for p in done for t in words.encode(p)]) + rest == text
    for step in (1, 37):
        me = make(store, base, f"by{step}", tokenizer=tokenizer)
        for at in range(0, len(text), 997):
            me.observe([text[i : min(i + step, at + 997)] for i in range(at, min(at + 997, len(text)), step)])
        assert differing(me, whole) == []


def test_bytes_that_are_no_utf_8_are_read_with_a_tokenizer(store, tokenizer, tmp_path):
    """As the sign for what cannot be read; also where they wait for the end of their line, and where one is cut."""
    words = Words.open(tokenizer)
    assert words.encode("a\udcffb") == words.encode("a\ufffdb") and words.encode("\udcc3\udcbc") == words.encode("ü")
    (tmp_path / "old.txt").write_bytes("Grüße aus Oslo.\nGrüße".encode("latin-1"))
    me, twin = (make(store, model(vocab=320), name, tokenizer=tokenizer) for name in ("ana", "twin"))
    me.observe(tmp_path / "old.txt")
    me.observe(A, source="other")
    twin.observe("Gr\ufffd\ufffde aus Oslo.\nGr\ufffd\ufffde")
    twin.observe(A, source="other")
    assert me.tokens > 20 and differing(me, twin) == []


def test_what_a_template_does_not_take_is_said(store, tokenizer):
    me = make(store, model(vocab=320), "ana", tokenizer=tokenizer)
    me.reader.words.fast.chat_template = "{{ raise_exception('roles must alternate') }}"
    for call in (me.chat, lambda text: me.observe([{"role": "user", "content": text}])):
        with pytest.raises(ValueError, match=r"messages: .* template does not take them \(roles must alternate\)"):
            call("Hi")
    assert list(store.experiences("ana")) == []


def test_tokens_messages_and_files(store, base, tmp_path):
    (tmp_path / "a.txt").write_text(A + B, newline="")
    names = {}
    given = {
        "text": A + B,
        "path": tmp_path / "a.txt",
        "ids": list((A + B).encode()),
        "tensor": torch.tensor(list((A + B).encode())),
        "parts": [A, list(B.encode())],
        "mixed": [{"role": "user", "content": "x"}, A],
    }
    for name, what in given.items():
        names[name] = make(store, base, name)
        names[name].observe(what)
    assert differing(names.pop("mixed"), _after(store, base, "lines", "User: x\n", A)) == []
    with open(tmp_path / "a.txt", newline="") as file:
        names["file"] = make(store, base, "file")
        names["file"].observe(file)
    assert all(differing(names["text"], other) == [] for other in names.values())
    talk = make(store, base, "talk")
    talk.observe([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    assert differing(talk, _after(store, base, "plain", "User: Hi\nAssistant: Ho\n")) == []
    for wrong in (3.5, [{"role": "cat", "content": "x"}], [300], "x"):
        with pytest.raises(ValueError):
            talk.observe(wrong, trust=2.0 if wrong == "x" else 1.0)
    assert len(list(store.experiences("talk"))) == 1  # what cannot be learned is not noted


def _after(store, base, name, *texts):
    me = make(store, base, name)
    for text in texts:
        me.observe(text)
    return me


def test_reopened_it_goes_on_as_if_it_had_stayed(store, base):
    stays, goes = _after(store, base, "stays", A, B), _after(store, base, "goes", A)
    goes.close()
    again = Learner.open(store, "goes", base)
    assert again.found == [] and again.version.number == 1
    again.observe(B)
    assert differing(stays, again) == []


def test_a_retrofit_in_the_home_folder(store, base, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    base.save_pretrained(tmp_path / "own", state=base.start(), base="copy")
    Learner.create(store, "~/own", "ana").close()
    with Learner.open(store, "ana", "~/own") as me:
        assert me.observe(A).tokens == len(A)


def test_another_base_is_refused(store, base):
    make(store, base, "ana").close()
    other = model()
    with torch.no_grad():
        next(other.base.parameters())[0, 0] += 1
    with pytest.raises(ValueError, match="weights that it had"):
        Learner.open(store, "ana", other)
    with pytest.raises(ValueError, match="differ in levels, chunk"):
        Learner.open(store, "ana", model(periods=[4, 16]))
    with pytest.raises(ValueError, match="give that model"):
        Learner.open(store, "ana")


def test_two_writers(store, base):
    one, two = make(store, base, "ana"), Learner.open(store, "ana", base)
    one.observe(A)
    with pytest.raises(Busy, match="is writing this learner"):
        two.observe(B)
    one.close()
    two.observe(B)
    assert differing(two, _after(store, base, "both", A, B)) == []


def test_probes_that_somebody_else_has_set_count_from_the_next_change_on(store, base):
    me = Learner.open(store, make(store, base, "ana").name, base)
    with Learner.open(store, "ana", base) as other:
        other.probes([{"kind": "norm", "name": "size", "max": 1e-4}])
    assert "size: " in me.observe(A).held[0] and me.version is None


def test_a_long_stream_is_committed_on_the_way_and_can_be_stopped(store, base):
    me = make(store, base, "ana", every=100)
    done = me.observe(A for _ in range(6))
    assert done.versions == [1, 2, 3] and [v.tokens for v in me.versions()] == [312, 208, 104]
    heard = []

    def stop(now):
        heard.append(now)
        if len(heard) == 9:
            os.kill(os.getpid(), signal.SIGINT)

    other = make(store, base, "bea")
    done = other.observe((A for _ in range(50)), progress=stop)
    assert done.interrupted and 9 * 8 <= other.version.tokens == other.tokens < 3 * len(A)
    assert differing(other, _after(store, base, "cat", A * (other.tokens // len(A)))) == []


def test_what_a_kill_leaves_in_the_journal_is_learned(folder, base):
    pid = os.fork()
    if pid == 0:
        try:
            with Store.open(folder) as store:
                me = make(store, base, "ana")
                me.observe(A)
                me.observe(B, commit=False)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    with Store.open(folder) as store:
        me = Learner.open(store, "ana", base)
        assert any("was stopped while it wrote" in text for text in me.found)
        assert any("the next change learns them first" in text for text in me.found)
        assert me.tokens == len(A)
        me.commit()
        assert "learned 1 experiences" in me.found[-1] and me.version.reason == "caught up"
        assert differing(me, _after(store, base, "bea", A, B)) == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "hope", *NATIVE])
def test_forgotten_is_as_if_it_had_never_happened(folder, store, family):
    base = model(family)
    me = make(store, base, "ana")
    me.observe(A, source="a")
    me.observe(A + B + X, source="x", trust=0.5)
    me.observe(B, source="b")
    me.observe(A, source="a")
    ids = list(b"Zebras keep")
    before = me.logits(ids)
    assert X.strip().encode() in raw(folder)
    old = {v.number: v.state for v in me.versions()}
    done = me.forget(source="x")
    never = make(store, base, "bea")
    for text, source in ((A, "a"), (B, "b"), (A, "a")):
        never.observe(text, source=source)
    assert differing(me, never) == []
    assert torch.equal(me.logits(ids), never.logits(ids)) and not torch.equal(me.logits(ids), before)
    assert me.version.state == never.version.state
    assert done.erased.versions == (2, 3, 4) and done.rebuilt == {2: 1, 3: 5, 4: 6} and done.replayed == 2
    assert X.strip().encode() not in raw(folder) and b"canary" not in raw(folder)
    assert store.verify().faults == ()
    me.close()
    assert differing(Learner.open(store, "ana", base), never) == []
    assert all(v.state not in old.values() for v in me.versions() if v.number > 4)


def test_forgetting_on_branches_after_gc_rollbacks_and_feedback(folder, store, base):
    me = make(store, base, "ana")
    me.observe(A, source="a")  # 1
    me.observe(X, source="x")  # 2
    me.observe(B, source="b")  # 3
    me.branch("side")
    me.observe(A, source="c")  # 4, rolled back
    me.rollback(3)
    answer = me.generate("Zebras", max_new_tokens=4)
    me.feedback(answer.id, False)  # 5: goes with the answer
    me.feedback(answer.id, correction=" do not speak")  # 6: stays
    me.switch("side")
    me.observe(A + A, source="d")  # 7
    me.switch("main")
    me.gc(keep=2)
    assert [v.number for v in me.versions()] == [7, 6]
    done = me.forget(source="x")
    assert done.tied == (answer.id, answer.id + 1) and b"canary" not in raw(folder)
    never = make(store, base, "bea")
    never.observe(A, source="a")
    never.observe(B, source="b")
    never.branch("side")
    said = never.generate("Zebras", max_new_tokens=4)
    never.feedback(said.id, correction=" do not speak")
    assert differing(me, never) == []
    for one in (me, never):
        one.switch("side")
    never.observe(A + A, source="d")
    assert differing(me, never) == []
    assert store.verify().faults == ()
    me.forget(source="d")  # lineages are known again after a rebuilding
    assert differing(me, _after(store, base, "eva", A)) != []
    other = make(store, base, "fay")
    other.observe(A, source="a")
    other.observe(B, source="b")
    assert differing(me, other) == []


def test_forgetting_by_time_and_all(folder, store, base):
    me = make(store, base, "ana", probes=[{"kind": "text", "text": X, "max": 99.0}])
    me.observe(A)
    moment = store.events("ana")[-1].time + 1e-4
    me.observe(X)
    me.forget(since=moment)
    assert differing(me, _after(store, base, "bea", A)) == []
    me.forget(all=True)
    assert me.version is None and me.tokens == 0 and differing(me, me.reader.start()) == []
    assert b"canary" not in raw(folder) and store.verify().faults == ()
    me.observe(A)
    assert differing(me, _after(store, base, "cat", A)) == []
    for wrong in ({}, {"all": True, "source": "a"}, {"source": "nobody"}, {"since": "yesterday"}):
        with pytest.raises(ValueError):
            me.forget(**wrong)


def test_without_a_journal_forgetting_says_what_else_is_lost(folder, store, base):
    me = make(store, base, "ana", journal=False)
    me.observe(A, source="a")
    state = me.state
    me.observe(X, source="x")
    me.observe(B, source="b")
    assert b"canary" not in raw(folder)  # tokens of bytes are not text, but nothing else holds it either
    done = me.forget(source="x")
    assert differing(me, state) == [] and me.version.number == 1
    assert done.lost == (3,) and done.replayed == 0 and "1 other experiences went with it" in done.notes[0]
    me.close()
    again = Learner.open(store, "ana", base)
    assert again.found == []
    again.observe(B, source="b")
    assert store.verify().faults == ()


def test_answers_that_no_journal_keeps_are_bounded(store, base, monkeypatch):
    from circadia.live import answers

    monkeypatch.setattr(answers, "REMEMBERED", 3)
    me = make(store, base, "ana", journal=False)
    ids = [me.generate("The fox", max_new_tokens=1).id for _ in range(6)]
    assert len(set(ids)) == 6 and list(me.answers) == ids[3:]
    assert me.feedback(ids[-1], True).version == 1
    with pytest.raises(ValueError, match=f"answer={ids[0]}"):
        me.feedback(ids[0], True)


def test_a_kill_while_forgetting_is_made_good(folder, base, monkeypatch):
    with Store.open(folder) as store:
        me = make(store, base, "ana")
        for text, source in ((A, "a"), (X, "x"), (B, "b")):
            me.observe(text, source=source)
        me.branch("side")
        from circadia.live import forgetting

        monkeypatch.setattr(forgetting, "_rebuild", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            me.forget(source="x")
        monkeypatch.undo()
        me.close()
    with Store.open(folder) as store:
        me = Learner.open(store, "ana", base)
        me.commit()
        assert "finished forgetting" in me.found[-1]
        never = _never(store, base)
        assert differing(me, never) == []
        me.switch("side")
        assert differing(me, never) == [] and store.verify().faults == ()


def test_what_hinders_the_finishing_of_a_forgetting_only_puts_it_off(folder, base, monkeypatch):
    from circadia.live import forgetting

    with Store.open(folder) as store:
        me = make(store, base, "ana")
        for text, source in ((A, "a"), (X, "x"), (B, "b")):
            me.observe(text, source=source)
        for error in (KeyboardInterrupt(), Busy("another process is writing")):  # in the middle, and at its finishing
            monkeypatch.setattr(forgetting, "_rebuild", lambda *_, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(type(error)):
                me.forget(source="x") if isinstance(error, KeyboardInterrupt) else me.observe(A, source="c")
        monkeypatch.undo()
        me.observe(A, source="c")
        never = _never(store, base)
        never.observe(A, source="c")
        assert differing(me, never) == [] and store.verify().faults == ()


@pytest.mark.parametrize("action", ["hold", "rollback"])
def test_what_the_guard_held_before_a_kill_while_forgetting_stays_held(folder, base, monkeypatch, action):
    """Version 4 is refused when it is built again, 3 is not; the kill comes after both, on the way to a branch."""
    from circadia.live import commits

    with Store.open(folder) as store:
        me = make(store, base, "ana")
        for text, source in ((A, "a"), (X, "x"), (B, "b"), (B * 4, "c")):
            me.observe(text, source=source)
        me.branch("side")
        real, seen = commits.commit, []

        def commit(me, reason, *given):
            if reason != "rebuilt":
                return real(me, reason, *given)
            seen.append(given)
            me.guard.probes = read([{"kind": "norm", "max": 1e-6 if len(seen) == 2 else 99.0, "action": action}])
            done = real(me, reason, *given)
            if len(seen) == 2:
                raise KeyboardInterrupt
            return done

        monkeypatch.setattr(commits, "commit", commit)
        with pytest.raises(KeyboardInterrupt):
            me.forget(source="x")
        monkeypatch.undo()
        me.close()
    with Store.open(folder) as store, Learner.open(store, "ana", base) as me:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Guard, "judge", lambda *_: Verdict(action, ("no",), {}))  # whatever is judged now
            me.commit()
        never = _never(store, base)
        assert "finished forgetting" in me.found[-1] and differing(me, never) == []
        me.switch("side")
        assert differing(me, never) == [] and store.verify().faults == ()


def test_notes_of_a_user_are_no_notes_of_a_forgetting(store, base):
    me = make(store, base, "ana")
    me.observe(A, source="a", commit=False)
    me.commit(reason="rebuilt", notes="rebuilt from scratch")
    me.observe(X, source="x")
    me.observe(B, source="b")
    me.forget(source="x")
    assert differing(me, _never(store, base)) == []


def _never(store, base):
    never = make(store, base, "never")
    never.observe(A, source="a")
    never.observe(B, source="b")
    return never


def test_versions_rollback_branch_diff_and_export(store, base, tmp_path):
    me = make(store, base, "ana", probes=[{"kind": "text", "name": "own", "text": A, "max": 99.0}])
    me.observe(A)
    one = me.state
    me.observe(B)
    with pytest.raises(StoreError, match="version=0"):
        me.diff(1, 0)
    found = me.diff(1)
    assert found.groups["level0"].moved > 0 and "own" in found.probes
    me.branch("side", 1)
    me.rollback(1, "worse")
    assert differing(me, one) == [] and me.version.number == 1
    me.switch("side")
    me.observe(B)
    assert differing(me.state, store.load("ana", 2)) == []
    me.export(tmp_path / "ana.circadia")
    with Learner.import_(tmp_path / "other", tmp_path / "ana.circadia", base=base) as copy:
        copy.switch("side")
        assert differing(copy, me) == [] and copy.guard.probes == me.guard.probes and copy.verify().faults == ()
        copy.forget(all=True)
    done = me.forget(source="user")
    assert [one.file for one in done.exports] == ["ana.circadia"]
    me.delete()
    assert store.learners() == []


def test_status_and_pictures(store, base, tmp_path):
    me = make(store, base, "ana")
    me.observe(A * 2, source="a")
    me.observe(B, source="b", trust=0.5)
    me.rollback(1)
    found = json.loads(json.dumps(me.status()))
    assert [x["updates"] for x in found["levels"]] == [13, 6] and found["levels"][0]["next"] == 8 - 104 % 8
    assert found["sources"]["a"]["tokens"] == 104 and "b" not in found["sources"]
    assert [entry["what"] for entry in found["life"]] == ["commit", "commit", "rollback"]
    assert found["life"][0]["surprise"] > 0 and len(found["life"][0]["curve"]) == 13
    text = me.picture(tmp_path / "life.svg").read_text()
    assert text.count("<circle") >= 3 and "rollback to 1" in text and "level 1, 16" in text
    ticks = text.count('stroke="#0f766e" stroke-width="1.6"')
    assert ticks == 1 + (104 + len(B)) // 8 + (104 + len(B)) // 16  # the curve, and every update
    assert me.picture(tmp_path / "life.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        me.picture(tmp_path / "life.txt")


def test_conversations_teach_by_policy_unless_told_otherwise(store, base, tmp_path):
    me = make(store, base, "ana", gate=False, conversations=True)
    said = me.chat("Hello? " * 3, max_new_tokens=3)
    assert me.status()["conversations"] and me.version.number == 1 and me.tokens > 20
    me.chat("Hello?", max_new_tokens=3, learn=False)
    me.chat("Hello?", max_new_tokens=3, keep=False)  # leaves nothing behind
    assert me.version.number == 1
    me.generate("The fox", max_new_tokens=3)
    assert me.version.number == 2
    me.set(conversations=False)
    me.generate("The fox", max_new_tokens=3)
    me.rollback(1)
    assert not me.conversations and me.version.number == 1 and not store.verify().faults
    me.set(conversations=True)
    me.forget(all=True)
    me.export(tmp_path / "ana.circadia")
    assert me.conversations and said.id not in me.answers
    with Learner.import_(store, tmp_path / "ana.circadia", "bob", base) as bob:
        assert bob.conversations
    assert not make(store, base, "eve").conversations and not store.verify().faults
    for call in (lambda: make(store, base, "eva", conversations=1), lambda: me.set(conversations="yes")):
        with pytest.raises(ValueError, match=r"conversations=.*give True, or False"):
            call()
    assert "eva" not in store.learners()


def test_many_learners_over_one_base(folder, store):
    """What one learned is not in another, neither in its logits nor in its state nor in its part of the files."""
    import gc

    base = model(config := "llama", periods=[8])
    assert config and base

    def tensors():
        gc.collect()
        return [x for x in gc.get_objects() if type(x) is torch.Tensor]

    def storages(found):
        return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}

    before = tensors()  # kept, so that what others left does not go in between
    many = [make(store, base, f"learner-{i}") for i in range(100)]
    for i in (0, 3, 50):
        many[i].observe(f"canary-{i} " * 8, source="own")
    for me in many:
        assert me.state
    sizes = [sum(x.nbytes for x in me.state.values()) for me in many]
    old = storages(before)
    held_now = {at: size for at, size in storages(tensors()).items() if at not in old}
    assert sum(held_now.values()) == pytest.approx(sum(sizes), rel=0.1)
    fresh = base.start()
    ids = list(b"canary-3 can")
    clean = base(torch.tensor([ids]), state=fresh).logits
    for i, me in enumerate(many):
        assert torch.equal(me.logits(ids), clean) == (i not in (0, 3, 50)), i
    alone = Learner.create(store, base, "alone", gate=LOUD)
    alone.observe("canary-3 " * 8, source="own")
    assert torch.equal(alone.logits(ids), many[3].logits(ids))
    alone.delete()
    many[0].export(folder.parent / "own.circadia")
    import base64
    import zipfile

    with zipfile.ZipFile(folder.parent / "own.circadia") as file:
        held = b"".join(file.read(name) for name in file.namelist())
    theirs = store.load("learner-3")
    ours = {x.numpy().tobytes() for n, x in many[3].state.items() if n.startswith("level0/delta")}
    assert theirs and not any(part in held for part in ours) and b"learner-3" not in held
    canaries = [base64.b64encode(f"canary-{i} canary-{i} ".encode())[:20] for i in (0, 3)]
    assert canaries[0] in held and canaries[1] not in held
    with pytest.raises(StoreError):
        store.payload("learner-0", 99)
