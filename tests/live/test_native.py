"""Learners on models of our own: the same life, with the memories that the model has."""

import json

import pytest
import torch

from circadia.live import Learner, Store
from circadia.models.native import native
from tests.live.conftest import raw
from tests.live.learners import LOUD, NATIVE, A, B, X, differing, make, model, own


@pytest.fixture(scope="module", params=NATIVE)
def base(request):
    return model(request.param)


@pytest.fixture(scope="module")
def titans():
    return model("native titans")


@pytest.fixture
def store(folder):
    with Store.open(folder) as found:
        yield found


def test_split_reopen_rollback_branch_and_export_leave_the_same_bits(folder, store, base, tmp_path):
    text = A + B
    whole = make(store, base, "whole", probes=[{"kind": "text", "name": "own", "text": A, "max": 99.0}])
    done = whole.observe(text)
    assert [level.name for level in done.levels] == [level.name for level in base.settings.levels]
    assert done.surprise > 0 and all(level.updates and level.moved > 0 for level in done.levels)
    start = base.start()
    assert all(not torch.equal(x, start[n]) for n, x in whole.state.items() if "/memory/" in n)
    one = make(store, base, "one")
    for a, b in ((0, 1), (1, 50), (50, 53), (53, len(text))):
        one.observe(text[a:b], commit=b % 2 == 0)
        if b == 50:
            one.commit()
            one.close()
            one = Learner.open(store, "one", base)
            assert one.found == [] and one.tokens == 50
    assert differing(one, whole) == []
    before, ids = whole.state, list(b"The quick")
    logits = whole.logits(ids)
    whole.branch("side")
    whole.observe(X)
    assert whole.diff(1).groups["level0"].moved > 0 and not torch.equal(whole.logits(ids), logits)
    after = whole.state
    whole.rollback(1)
    assert differing(whole, before) == [] and torch.equal(whole.logits(ids), logits)
    whole.switch("side")
    whole.observe(X)
    assert differing(whole, after) == []
    whole.export(tmp_path / "w.circadia")
    with Learner.import_(tmp_path / "other", tmp_path / "w.circadia", base=base) as copy:
        copy.switch("side")
        assert differing(copy, whole) == [] and copy.verify().faults == ()
    status = json.loads(json.dumps(whole.status()))
    assert [x["updates"] for x in status["levels"]] == [
        len(text + X) // 8 * 8 // x.period for x in base.settings.levels
    ]
    assert all(x["norm"] > 0 and x["bytes"] > 0 for x in status["levels"])
    assert "rollback to 1" in whole.picture(tmp_path / "life.svg").read_text()


def test_asking_changes_nothing_and_reads_with_what_was_learned(store, base):
    me = make(store, base, "ana")
    me.observe(A * 2)
    before = {n: x.clone() for n, x in me.state.items()}
    answer = me.chat("Who jumps?", max_new_tokens=4)
    score = me.score(A)
    me.judge()
    assert differing(me, before) == [] and answer.id is not None
    assert score != base.score(list(A.encode())).surprise
    assert score == pytest.approx(me.score(A), abs=0)
    row = torch.tensor([list(b"Who")])
    step = base.worn(me.state)(row, use_cache=False).logits[0, -1].argmax()
    assert int(base.generate(row, state=me.state, max_new_tokens=1, do_sample=False, pad_token_id=0)[0, -1]) == int(
        step
    )
    talked = me.chat("Who jumps?", max_new_tokens=3, learn=True)
    assert me.version.reason == "conversation" and talked.version == 1 and differing(me, before) != []


def test_weights_and_trust_bound_what_is_learned(store, base):
    gate = {**LOUD, "new": 0, "budget": 1}
    shut, half, free = (make(store, base, name, gate=g) for name, g in (("s", gate), ("h", gate), ("f", False)))
    for me, trust in ((shut, 0.0), (half, 0.5), (free, 1.0)):
        done = me.observe(A[:8], trust=trust)
        assert done.weight == trust
    start = base.start()
    moved = [n for n in start if "/memory/" in n]
    assert moved and all(torch.equal(shut.state[n], start[n]) for n in moved)
    for name in [n for n in moved if "levels.1" not in n]:
        way = free.state[name] - start[name]
        assert torch.allclose(half.state[name] - start[name], 0.5 * way, atol=1e-6) and way.any(), name
    assert shut.status()["levels"][0]["updates"] == 0 and free.status()["levels"][0]["updates"] > 0


def test_a_flood_from_a_stranger_has_room_for_so_many_chunks(store, titans):
    gate = {**LOUD, "new": 0.0, "window": 4, "budget": 0.25, "patience": 1000, "low": (-98, -99), "high": (98, 99)}
    text = "".join(chr(33 + i * i % 90) for i in range(8 * 8))
    me = make(store, titans, "ana", gate=gate)
    done = me.observe(text, source="web", trust=0.5)
    assert [w for _, _, w in done.curve] == [0.5, 0.5, 0, 0] * 2
    free = make(store, titans, "bea", gate=False).observe(text)
    assert 0 < done.levels[0].moved < 0.5 * free.levels[0].moved  # a quarter of the weight, of steps that shrink


def test_the_rates_that_the_model_chose_are_reported(store):
    base = own(mixers=["gated_deltanet"], periods=[8, 0])
    memory = base.model.layers[0].mixer
    found = {}
    for rate in (-30.0, 0.0):
        with torch.no_grad():
            memory.rates.weight.zero_()
            memory.offset[memory.gate_names.index("eta")] = rate
            memory.offset[memory.gate_names.index("alpha")] = 30.0
        me = make(store, native(base), f"at{rate:g}", gate=False)
        found[rate] = me.observe(A)
        told = me.events("learned")[-1].payload["gate"]
        assert told["eta"] == pytest.approx(found[rate].gate["eta"]) and 0 < told["cms"] < 1
    assert found[-30.0].gate["eta"] < 1e-6 and found[0.0].gate["eta"] == pytest.approx(1.0, abs=1e-6)
    still, moved = (next(x for x in found[r].levels if x.name == "gated_deltanet").moved for r in (-30.0, 0.0))
    assert still < 1e-6 < 0.1 < moved


@pytest.mark.parametrize("kind", ["good", "correction", "about", "bad"])
def test_feedback_is_read(store, titans, kind):
    me = make(store, titans, "ana")
    me.observe(A)
    answer = me.generate("The fox", max_new_tokens=6)
    given = {"good": {"good": True}, "bad": {"good": False}, "correction": {"correction": " jumps over"},
             "about": {"about": "That is no sentence."}}[kind]  # fmt: skip
    before = me.state
    done = me.feedback(answer.id, weight=0.5, **given)
    assert done.version == 2 and me.tokens == len(A)
    changed = differing(me, before)
    if kind == "bad":
        assert changed == [] and done.before == done.after
        assert json.loads(store.payload("ana", done.experience))["kind"] == "bad"  # kept
    else:
        assert changed and all("/memory/" in n for n in changed)
        prompt, said = list(answer.prompt), list(answer.tokens)
        said = {"good": said, "correction": list(b" jumps over")}.get(kind, said)
        if kind == "about":
            prompt, said = prompt + said, list(b"User: That is no sentence.\n")
        caches = []
        for ids in (prompt, prompt + said):
            with torch.no_grad():
                caches.append(titans.worn(before)(torch.tensor([ids]), use_cache=True).past_key_values.states)
        for name in changed:
            block, _, entry = name.rpartition("/")[2].partition(".")
            way = caches[1][int(block)][entry] - caches[0][int(block)][entry]
            assert torch.allclose(me.state[name] - before[name], 0.5 * way, atol=1e-5), name
    me.observe(X, source="x")
    me.forget(source="x")
    twin = make(store, titans, "bea")
    twin.observe(A)
    twin.feedback(twin.generate("The fox", max_new_tokens=6).id, weight=0.5, **given)
    assert differing(me, twin) == []


def test_probes_hold_it(store, titans):
    me = make(store, titans, "ana", probes=[{"kind": "norm", "max": 1e-9}, {"kind": "drift", "text": B, "max": 9.0}])
    held = me.observe(A)
    assert held.versions == [] and "norm 1" in held.held[0] and me.tokens == 0
    me.probes([{"kind": "drift", "text": B, "max": 9.0}, {"kind": "norm", "max": 99.0},
               {"kind": "qa", "question": "Is it?", "answer": " no", "max": 99.0}])  # fmt: skip
    me.observe(A)
    scores = me.version.probes
    assert 0 < scores["drift 1"] < 9 and 0 < scores["norm 2"] < 99 and 0 < scores["qa 3"] < 99


def test_what_one_learned_is_not_in_another(store, titans):
    one, two = make(store, titans, "one"), make(store, titans, "two")
    ids = list(b"canary-7f3a")
    clean = two.logits(ids)
    one.observe(X * 2)
    assert torch.equal(two.logits(ids), clean) and not torch.equal(one.logits(ids), clean)
    assert torch.equal(titans(torch.tensor([ids]), state=None, use_cache=False).logits[0],
                       titans(torch.tensor([ids]), state=titans.start(), use_cache=False).logits[0])  # fmt: skip


def test_from_a_folder(folder, store, tmp_path):
    base = own(**NATIVE["native titans"])
    base.save_pretrained(tmp_path / "titans")
    me = make(store, str(tmp_path / "titans"), "ana")
    assert me.config["native"]["chunk"] == 8
    me.observe(A)
    state = me.state
    me.close()
    again = Learner.open(store, "ana")
    assert differing(again, state) == []
    again.close()
    with pytest.raises(ValueError, match="weights that it had"):
        Learner.open(store, "ana", own(seed=1, **NATIVE["native titans"]))
    with pytest.raises(ValueError, match="memories of its own"):
        Learner.open(store, "ana", model("hope"))
    both = make(store, base, "both", periods=[8, 16], context=8)  # a retrofit, if it is asked for one
    both.observe(A)
    assert "level0/delta/model.layers.0.levels.levels.0.up" in both.state
    with pytest.raises(ValueError, match=r"periods=\[8\].*own memories"):
        make(store, own(**NATIVE["native hope"]), "no", periods=[8])
    with pytest.raises(ValueError, match="learning_rate"):
        make(store, base, "no", learning_rate=1)
    assert b"canary" not in raw(folder)


def test_a_chunk_that_cannot_be_learned_is_passed_over(store):
    base = own(mixers=["titans"], tie_word_embeddings=False)
    with torch.no_grad():
        base.model.embed_tokens.weight[ord("!")] = float("nan")
    me = make(store, native(base), "ana")
    done = me.observe("12345678ab!defgh87654321")
    assert done.refused == 1 and done.chunks == 3 and done.versions == [1] and done.surprise > 0
    assert [at for at, _, _ in done.curve] == [0, 16] and done.levels[0].updates == 2
