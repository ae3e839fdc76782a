"""What is learned how far; verdicts; feedback."""

import json
import math

import pytest
import torch

from circadia.live import Gate, Learner, Store
from circadia.live.gate import owner_of
from circadia.live.guard import read
from tests.live.learners import LOUD, A, B, X, differing, make, model


@pytest.fixture(scope="module")
def base():
    return model()


@pytest.fixture
def store(folder):
    with Store.open(folder) as found:
        yield found


def run(gate, surprises, texts=None, trust=1.0, source="s", memory=None):
    """The factors of chunks of 32 random tokens, or of given ones."""
    memory, found = gate.start() if memory is None else memory, []
    generator = torch.Generator().manual_seed(len(found) + (memory["gate/stats"][2] > 0).int().item())
    for i, surprise in enumerate(surprises):
        ids = torch.randint(0, 256, (32,), generator=generator) if texts is None else texts[i]
        owners = torch.full((32,), owner_of(source))
        trusts = torch.full((32,), trust, dtype=torch.float64)
        factor, parts, memory = gate.weigh(memory, ids, 32 * i, surprise, owners, trusts, 256)
        found.append((factor, parts))
    return found, memory


def test_surprise_within_bounds_counts_and_noise_does_not():
    gate = Gate()
    steady = [2.0 + 0.1 * (i % 3) for i in range(20)]
    found, memory = run(gate, steady)
    assert all(factor == 1 for factor, _ in found)
    mean, spread, chunks, _ = memory["gate/stats"].tolist()
    assert 1.95 < mean < 2.15 and 0 < spread < 0.3 and chunks == 20
    for surprise, part in ((math.log(256), "noise"), (mean - 9 * spread, "low"), (mean + 9 * spread, "high")):
        ((factor, parts),), _ = run(gate, [surprise], memory=memory)
        assert factor == 0 and parts[part] == 0, part
    ((factor, parts),), _ = run(gate, [mean + 6 * spread], memory=memory)
    assert factor == parts["high"] == pytest.approx(0.5)
    found, after = run(gate, [5.5] * 30, memory=memory)  # noise never becomes the measure
    assert torch.equal(after["gate/stats"], memory["gate/stats"]) and all(f == 0 for f, _ in found)
    found, after = run(gate, [4.5] * 6, memory=memory)  # another kind of text does
    assert [round(f) for f, _ in found] == [0, 0, 0, 0, 1, 1] and float(after["gate/stats"][0]) > 4


def test_what_was_seen_counts_less():
    gate = Gate(ngram=8)
    sentence, fresh = torch.arange(11).repeat(3)[:32], torch.arange(100, 132)
    found, _ = run(gate, [2.0] * 4, texts=[fresh, sentence, sentence, fresh])
    assert [parts["new"] for _, parts in found] == [1.0, pytest.approx(11 / 25 / 0.5), 0.0, 0.0]
    other, _ = run(Gate(ngram=8, new=0.0), [2.0] * 2, texts=[fresh, fresh])
    assert [f for f, _ in other] == [1.0, 1.0]
    small = Gate(ngram=8, remember=4)  # what was written over is new again
    found, _ = run(small, [2.0] * 3, texts=[fresh, sentence, fresh])
    assert found[2][1]["new"] > 0.7


def test_trust_and_room():
    gate = Gate(window=8, budget=0.25)
    found, memory = run(gate, [2.0] * 16, trust=0.5)
    factors = [f for f, _ in found]
    assert factors == [0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0] * 2  # 0.25 of 8 full steps, then a new window
    assert sum(memory["gate/used"].tolist()) == pytest.approx(2.0)
    found, _ = run(gate, [2.0] * 8)
    assert all(f == 1 for f, _ in found)  # the learner's own sources have no limit
    mixed = torch.cat((torch.full((16,), owner_of("a")), torch.full((16,), owner_of("b"))))
    trusts = torch.where(mixed == owner_of("a"), 1.0, 0.5).double()
    factor, parts, memory = gate.weigh(gate.start(), torch.arange(32), 0, 2.0, mixed, trusts, 256)
    assert factor == parts["trust"] == 0.75 and memory["gate/used"].tolist() == [0.375]


@pytest.mark.parametrize(
    "wrong",
    [{"low": (1, 1)}, {"high": ("4", "8")}, {"new": 2}, {"budget": "all"}, {"window": 0}, {"remember": 1.5},
     {"loud": 1}, {"ngram": -1}],
    ids=lambda w: next(iter(w)),
)  # fmt: skip
def test_a_wrong_gate_is_refused(store, base, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(store, base, "ana", gate=wrong)
    assert store.learners() == []


def test_the_gate_weighs_what_a_learner_learns(store, base):
    shut, open_, half = (make(store, base, name, gate=gate) for name, gate in
                         (("shut", True), ("open", False), ("half", {**LOUD, "new": 0, "budget": 1})))  # fmt: skip
    for me, trust in ((shut, 1.0), (open_, 0.5), (half, 0.5)):
        done = me.observe(A, trust=trust)
        assert done.weight == {shut: 0.0, open_: 1.0, half: 0.5}[me]
    assert not shut.state["level0/delta/model.layers.0.mlp.up_proj"].any()  # random weights: all is noise to it
    report, _ = base.learn(list(A.encode()), base.start(), lambda chunk: 0.5)
    moved = [x.levels[0].moved for x in (report,)]
    assert moved[0] == pytest.approx(float(half.events("learned")[0].payload["levels"][0]["moved"]))


def test_a_weight_shortens_the_step_whatever_the_clip(base):
    """One chunk at weight w goes w of the way; several chunks of a period count by their weights."""
    ids = list(A.encode())
    start = base.start()
    name = "level0/delta/model.layers.0.mlp.up_proj"
    _, full = base.learn(ids[:8], start)
    _, third = base.learn(ids[:8], start, lambda chunk: 0.25)
    assert torch.allclose(third[name], 0.25 * full[name], rtol=1e-5) and full[name].any()
    _, same = base.learn(ids[:8], start, lambda chunk: 1.0)
    assert differing(same, full) == []
    _, none = base.learn(ids[:16], start, lambda chunk: 0.0)
    assert not any(none[n].any() for n in none if "/delta/" in n) and int(none["level1/steps"]) == 0
    slow = "level1/delta/model.layers.0.mlp.up_proj"
    _, first = base.learn(ids[:16], start, lambda chunk: float(chunk.start == 0))
    one = model(periods=[16], chunk=8)
    alone, _ = one.learn(ids[:8], one.start())
    grad = one.learn(ids[:8], one.start())[1]["level0/grad/delta/model.layers.0.mlp.up_proj"]
    assert torch.nn.functional.cosine_similarity(first[slow].flatten(), -grad.flatten(), dim=0) > 0.999
    assert "level1/weight" not in first and alone.tokens == 7
    with pytest.raises(ValueError, match="from 0 to 1"):
        base.learn(ids[:8], start, lambda chunk: 2.0)


def test_probes_in_files(tmp_path):
    (tmp_path / "p.yaml").write_text("probes:\n- {kind: norm, max: 0.5}\n- {kind: text, text: hello, rise: 0.1}\n")
    (tmp_path / "p.jsonl").write_text(
        '{"kind": "norm", "max": 0.5}\n\n{"kind": "text", "text": "hello", "rise": 0.1}\n'
    )
    assert read(tmp_path / "p.yaml") == read(tmp_path / "p.jsonl")
    assert [p.name for p in read(tmp_path / "p.yaml")] == ["norm 1", "text 2"]
    for wrong in (
        "- {kind: cat}",
        "- {kind: norm}",
        "- {kind: qa, question: x, max: 1}",
        "{",
        "- {kind: norm, top: 1}",
        "- {kind: norm, max: .inf}",
        "- {kind: qa, question: How many?, answer: 42, max: 1}",
        "- {kind: text, text: [a], max: 1}",
        "- {kind: qa, question: Who?, answer: Mira, choices: Oslo}",
        "- {kind: qa, question: Who?, answer: Mira, choices: [1, 2]}",
    ):
        (tmp_path / "w.yaml").write_text(wrong)
        with pytest.raises(ValueError, match=r"probe 1: |yaml: "):
            read(tmp_path / "w.yaml")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "none.yaml")


PROBES = {
    "text": {"kind": "text", "text": B, "rise": -0.5},
    "qa": {"kind": "qa", "question": "Is it?", "answer": " no", "max": 1.0},
    "choices": {"kind": "qa", "question": "The quick brown", "answer": " zzz", "choices": [" fox", " zzz"]},
    "drift": {"kind": "drift", "text": B, "max": 1e-6},
    "norm": {"kind": "norm", "max": 1e-4},
}


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("action", ["hold", "rollback"])
def test_a_broken_bound_holds_or_rolls_back(store, base, name, action):
    me = make(store, base, "ana")
    me.observe(A)
    me.probes([{**PROBES[name], "action": action, "name": "p"}])
    before = me.state
    done = me.observe((A + X) * 3)
    assert done.versions == [] and len(done.held) == 1 and "p: " in done.held[0]
    assert differing(me, before) == [] and me.version.number == 1
    verdict = me.events("guard")[-1].payload
    assert verdict["verdict"] == action and verdict["reasons"]
    assert [v.number for v in me.versions()] == ([2, 1] if action == "hold" else [1])
    never = make(store, base, "bea")
    never.observe(A)
    if action == "hold":
        me.accept(2)
        never.observe((A + X) * 3)
        assert [one.version for one in store.experiences("ana", after=1)] == [2]
    me.probes([])
    me.observe(B)
    never.observe(B)
    assert differing(me, never) == []
    me.forget(source="user")
    assert differing(me, me.reader.start()) == [] and store.verify().faults == ()


def test_kept_bounds_are_accepted_and_scored(store, base):
    probes = [{"kind": "drift", "text": B, "max": 9.0}, {"kind": "norm", "max": 9.0}]
    me = make(store, base, "ana", probes=probes)
    done = me.observe(A)
    scores = me.version.probes
    assert done.versions == [1] and 0 < scores["drift 1"] < 9 and 0 < scores["norm 2"] < 9
    ids = torch.tensor([list(B.encode())])
    logs = [base(ids, state=s, use_cache=False).logits.log_softmax(-1) for s in (None, me.state)]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert scores["drift 1"] == pytest.approx(float(kl), rel=0.5)  # windows see less than the whole


def test_what_is_not_finite_is_rolled_back(store, base):
    me = make(store, base, "ana")
    me.observe(A, commit=False)
    name = "level0/delta/model.layers.0.mlp.up_proj"
    me._state = {**me.state, name: me.state[name] * math.nan}
    me.commit()
    assert me.version is None and me.events("guard")[-1].payload["reasons"] == [f"{name} is not finite"]


def likelihood(me, answer, text=None):
    from circadia.live.guard import nats_of

    said = answer.tokens if text is None else me.reader.words.encode(text)
    with torch.no_grad():
        return -float(nats_of(me.model, answer.prompt, said, me.state))


@pytest.mark.parametrize("kind", ["good", "bad", "correction", "about"])
def test_feedback_moves_what_it_is_about(store, base, kind):
    me = make(store, base, "ana")
    me.observe(A)
    answer = me.chat("What does the fox do?", max_new_tokens=6)
    given = {"good": {"good": True}, "bad": {"good": False}, "correction": {"correction": " It jumps."},
             "about": {"about": "That is no sentence."}}[kind]  # fmt: skip
    text = given.get("correction")
    before = likelihood(me, answer, text)
    slow = me.state["level1/delta/model.layers.0.mlp.up_proj"]
    done = me.feedback(answer.id, **given)
    after = likelihood(me, answer, text)
    assert (after > before) == (kind in ("good", "correction"))
    assert (done.after < done.before) == (kind != "bad") and done.version == me.version.number == 2
    assert torch.equal(me.state["level1/delta/model.layers.0.mlp.up_proj"], slow)
    assert me.version.reason == "feedback" and me.tokens == len(A)
    again = Learner.open(store, "ana", base)
    assert differing(again, me) == []
    # In the journal, so that it can be replayed.
    me.observe(X, source="x")
    me.forget(source="x")
    other = make(store, base, "bea")
    other.observe(A)
    said = other.chat("What does the fox do?", max_new_tokens=6)
    other.feedback(said.id, **given)
    assert differing(me, other) == []


def test_a_push_is_bounded(store, base):
    me = make(store, base, "ana")
    answer = me.generate("The fox", max_new_tokens=6)
    moved = []
    name = "level0/delta/model.layers.0.mlp.up_proj"
    for _ in range(30):
        before = me.state[name]
        me.feedback(answer.id, False)
        moved.append(float((me.state[name] - before).norm()))
    assert moved[0] > 0 and moved[-1] < 0.5 * max(moved)


def test_feedback_needs_an_answer_and_one_kind(store, base):
    me = make(store, base, "ana")
    me.observe(A)
    for number, given in ((1, {"good": True}), (9, {"good": True})):
        with pytest.raises(ValueError, match=f"answer={number}"):
            me.feedback(number, **given)
    answer = me.generate("The", max_new_tokens=2)
    for given in ({}, {"good": True, "about": "x"}, {"correction": " "}):
        with pytest.raises(ValueError):
            me.feedback(answer.id, **given)
    silent = me.generate("The", max_new_tokens=2, keep=False)
    assert silent.id is None and silent.tokens == answer.tokens


def test_a_learned_conversation_goes_with_its_source(store, base):
    me = make(store, base, "ana")
    me.observe(A)
    answer = me.chat("Who jumps?", max_new_tokens=5, learn=True, source="talk")
    assert me.version.reason == "conversation" and me.tokens > len(A)
    assert json.loads(store.payload("ana", answer.id + 1))["answer"] == answer.id
    me.forget(source="talk")
    other = make(store, base, "bea")
    other.observe(A)
    assert differing(me, other) == []


def test_a_flood_from_a_stranger_moves_it_no_further_than_its_room(store, base):
    gate = {**LOUD, "new": 0.0, "window": 8, "budget": 0.25, "patience": 1000, "low": (-98, -99), "high": (98, 99)}
    me = make(store, base, "ana", gate=gate)
    done = me.observe("".join(chr(33 + i * i % 90) for i in range(8 * 8 * 3)), source="web", trust=0.5)
    fast = done.levels[0]
    # Three windows of 8 chunks, two full steps in each, none longer than rate * clip; decay moves it toward the base.
    assert 0 < fast.moved <= 3 * 2 * (0.3 * 1.0 + 0.01 * 3 * 2 * 0.3)
    free = make(store, base, "bea", gate=False)
    freely = free.observe("".join(chr(33 + i * i % 90) for i in range(8 * 8 * 3)), source="web", trust=0.5)
    assert freely.levels[0].moved > 2.5 * fast.moved


def test_an_encrypted_journal_and_a_broken_stream(folder, base):
    with Store.open(folder, key="a passphrase") as store:
        me = make(store, base, "ana")
        me.observe(A)

        def breaks():
            yield X
            raise RuntimeError("gone")

        with pytest.raises(RuntimeError):
            me.observe(breaks(), source="x")
        assert b"canary" not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
        me.observe(B)  # what was noted is learned first
        other = make(store, base, "bea")
        for text, source in ((A, "user"), (X, "x"), (B, "user")):
            other.observe(text, source=source)
        assert differing(me, other) == []
        me.forget(source="x")
    with Store.open(folder, key="a passphrase") as store:
        third = make(store, base, "cat")
        third.observe(A)
        third.observe(B)
        assert differing(Learner.open(store, "ana", base), third) == []
