"""Nights on bases of few bits, and on every parameter: they teach, leave the base alone, and can be repeated."""

import pytest
import torch

from circadia.models.retrofit import retrofit
from circadia.sleep import Dreaming, Entry, Interrupted, preset, sleep
from tests.models.retrofit.conftest import base_of, same, text
from tests.models.retrofit.test_errors import Int8

HOW = preset().but(
    dreams=8, dream_length=12, replay={"length": 16, "presentations": 100, "rate": 0.02, "dreams": 1, "answer": 6}
)


def made(kind):
    base = base_of("llama", torch.bfloat16 if kind == "bf16" else torch.float32, num_hidden_layers=1)
    if kind == "int8":
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(base.model.layers[0].mlp, name, Int8(getattr(base.model.layers[0].mlp, name)))
    return retrofit(base, [8], target="all" if kind == "all" else "mlp", rate=0.1)


@pytest.mark.parametrize("kind", ["int8", "bf16", "all"])
def test_a_night_teaches_and_is_repeated_bit_by_bit(kind):
    model = made(kind)
    weights = {n: x.clone() for n, x in model.base.state_dict().items()}
    day = [Entry(text(24, seed=i), source="x", number=i) for i in range(3)]
    _, state = model.learn(torch.cat([e.tokens for e in day]), model.start())
    new, report = sleep(model, state, day, HOW, seed=1)
    before, after = (sum(p[when] for p in report.probes) / 3 for when in ("before", "after"))
    assert len(report.probes) == 3 and after < before - 1
    assert {n for n, x in new.items() if n in state and not torch.equal(x, state[n])} == {
        n for n in state if n.startswith("level0/delta/")
    }
    same(new, sleep(model, state, day, HOW, seed=1)[0])
    count = iter(range(100))
    with pytest.raises(Interrupted) as stopped:
        sleep(model, state, day, HOW, seed=1, stop=lambda: next(count) == 7)
    same(new, sleep(model, state, day, HOW, seed=1, resume=stopped.value.progress)[0])
    same(dict(model.base.state_dict()), weights)
    same(model.learn(text(16, 9), new)[1], model.learn(text(16, 9), new)[1])


def test_what_needs_matrices_says_so():
    model = made("all")
    day, state = [Entry(text(24))], model.start()
    with pytest.raises(ValueError, match="dreaming tries low-rank memories, which target='all' has not"):
        sleep(model, state, day, HOW.but(dreaming=Dreaming()))
    with pytest.raises(ValueError, match="seeding has no pair of levels"):
        sleep(model, state, day, "two-teacher")
