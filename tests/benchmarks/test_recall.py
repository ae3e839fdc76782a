"""The recall benchmark: asking writes nothing, and what must hold of simple memories holds."""

import json

import pytest
import torch

from benchmarks import recall
from benchmarks.recall_report import kept, versus
from circadia.memory import RULES
from circadia.memory.state import state_bytes

D = 16
CONTESTANTS = {one.label: one for one in recall.contestants(D)}


def store(name, keys, values, **setting):
    """Write rows of keys and values under one setting, and ask for every key."""
    k, v = keys[None, None], values[None, None]
    rule = RULES[name]
    gates = recall.gates_of(rule, [setting], k)
    _, state = rule(k, k, v, gates, rule.init(1, 1, k.shape[-1]), chunk=4)
    return recall.ask(rule, state, k)[0, 0]


def orthonormal(n):
    generator = torch.Generator().manual_seed(0)
    keys = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    values = torch.nn.functional.normalize(torch.randn(n, n, generator=generator), dim=-1)
    return keys, values


@pytest.mark.parametrize("label", CONTESTANTS)
def test_asking_leaves_the_state_as_it_is(label):
    contestant = CONTESTANTS[label]
    plan = recall.Plan(width=D, pairs=40)
    s = recall.stream(plan, 2, 0)
    setting = recall.settings_of(contestant.rule)[0]
    start = contestant.start(plan, 2, 1.0, 0)
    (state,) = recall.states(contestant.rule, [setting], start, s, [37])  # in the middle of a chunk
    before = {name: x.clone() for name, x in state.items()}
    queries = s.keys[:, None, :37]
    together = recall.ask(contestant.rule, state, queries)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], x) for name, x in before.items())
    # Nor does a query see the one before it.
    alone = torch.cat([recall.ask(contestant.rule, state, q) for q in queries.split(1, 2)], 2)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    if contestant.hidden is None:
        torch.testing.assert_close(together, queries @ state["w"].mT)


@pytest.mark.parametrize(
    ("name", "setting"), [("linear", {}), ("deltanet", {"eta": 1.0}), ("dgd", {"eta": 1.0, "alpha": 1.0})]
)
def test_orthonormal_keys_fill_a_matrix_without_loss(name, setting):
    keys, values = orthonormal(D)
    torch.testing.assert_close(store(name, keys, values, **setting), values, atol=1e-5, rtol=1e-5)


def test_a_key_stored_again():
    keys, values = orthonormal(D)
    keys, newer, older = keys[: D // 2], values[: D // 2], values[D // 2 :]
    twice, both = keys.repeat(2, 1), torch.cat((older, newer))
    for name, setting in (("deltanet", {"eta": 1.0}), ("dgd", {"eta": 1.0, "alpha": 1.0})):
        torch.testing.assert_close(store(name, twice, both, **setting)[: D // 2], newer, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(store("linear", twice, both)[: D // 2], older + newer, atol=1e-5, rtol=1e-5)


def test_decay_forgets_the_oldest_first():
    keys, values = orthonormal(D)
    strength = store("mamba2", keys, values, eta=1.0, alpha=0.9).norm(dim=-1)
    torch.testing.assert_close(strength, 0.9 ** torch.arange(D - 1, -1, -1.0), atol=1e-5, rtol=1e-5)


def test_the_rule_left_out_answers_as_said():
    keys, values = orthonormal(D)
    setting = {"eta": 0.5, "alpha": 0.99}
    assert list(recall.LEFT_OUT) == ["dgd_dot_literal"]
    assert torch.equal(store("dgd_dot_literal", keys, values, **setting), -store("dgd", keys, values, **setting))


def test_states_of_one_size():
    sizes = {}
    for one in recall.contestants(64):
        sizes[one.label] = state_bytes(one.start(recall.Plan(), 1, 1.0, 0))
    large = sizes.pop("self_modifying, large")
    assert max(sizes.values()) <= 1.05 * min(sizes.values())
    assert large > 3 * max(sizes.values())
    assert len(sizes) == len(RULES) - len(recall.LEFT_OUT)


def test_the_grid_keeps_within_each_rules_range():
    for name, rule in RULES.items():
        settings = recall.settings_of(rule)
        assert settings, name
    assert max(s["eta"] for s in recall.settings_of(RULES["deltanet"])) == 2.0
    assert max(s["eta"] for s in recall.settings_of(RULES["dgd_l2_online"])) == 1.0
    assert max(s["eta"] for s in recall.settings_of(RULES["gd"])) == 4.0


def test_older_and_newer_values_are_told_apart():
    """With one setting per share, by hand: the delta rule at rate 1 gives the newer, at rate 0.01 mostly the older."""
    plan = recall.Plan(width=32, pairs=64)
    settings = [{"eta": 1.0}, {"eta": 0.01}]
    contestant = recall.Contestant("deltanet", RULES["deltanet"], None)
    newer, older, neither = recall.measure(plan, contestant, settings, 1.0, 0, 8, ("again",))["again"].unbind(-1)
    assert newer[0] > 0.9
    assert 0.3 < newer[1] < 0.7 and newer[1] + older[1] > 0.9
    torch.testing.assert_close(newer + older + neither, torch.ones(2))


def test_words_follow_the_numbers():
    curve = {"config": {"counts": [8, 16, 32]}, "rules": {"x": {"per_seed": {"pairs": [[1.0, 0.95, 0.85]]}}}}
    assert kept(curve, "x") == "23"  # half way between 16 and 32 on a log scale
    assert versus([0.9, 0.8], [0.5, 0.4]) == "40 points more"
    assert versus([0.5, 0.4], [0.9, 0.8]) == "40 points fewer"
    assert versus([0.5, 0.6], [0.6, 0.5]).startswith("no clear difference")


def test_quick_run(tmp_path, capsys):
    recall.main(["--quick", "--width", "16", "--seeds", "2", "--out", str(tmp_path / "new")])
    shown = capsys.readouterr().out
    assert shown.startswith("Store up to 64 pairs")
    assert "recall.png" in shown and "self_modifying_literal" in shown
    found = json.loads((tmp_path / "new" / "recall.json").read_text())
    assert found["seeds"] == {"tuning": 1000, "test": [0, 1]}
    assert set(found["rules"]) == set(CONTESTANTS)
    for rule in found["rules"].values():
        assert set(rule["tuned"]) == set(recall.TASKS)
        assert all(len(found) == 2 for found in rule["per_seed"].values())
    assert (tmp_path / "new" / "recall.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "new" / "recall.svg").read_text()


@pytest.mark.parametrize(
    "wrong",
    [["--width", "20"], ["--pairs", "10"], ["--seeds", "0"], ["--seeds", "few"], ["--fast"], ["--out", __file__]],
)
def test_a_wrong_option_is_one_line(wrong, capsys):
    with pytest.raises(SystemExit) as left:
        recall.main(wrong)
    assert left.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and wrong[0] in said.err
