"""The facts of the benchmark, how they are asked, and its mistakes."""

import pytest
import torch

from benchmarks import sleep_facts
from circadia.models.retrofit import retrofit
from circadia.sleep.student import Teacher
from tests.models.retrofit.conftest import base_of


def test_every_chunk_tells_one_fact():
    told = sleep_facts.facts(6, seed=1)
    assert len({fact.name for fact in told}) == 6 and {fact.kind for fact in told} == {0, 1}
    chunks = sleep_facts.day_of(told, 3, 0, bytes(range(97, 123)) * 2000)
    assert len(chunks) == 18 and {len(chunk) for chunk in chunks} == {256}
    for fact in told:
        sentences = [fact.say(wording) for wording in sleep_facts.WORDINGS[fact.kind]]
        found = [any(said.encode() in bytes(chunk.tolist()) for said in sentences) for chunk in chunks]
        assert sum(found) == 3
    assert all("{name}" not in w for kind in (0, 1) for w in [told[kind].say(sleep_facts.UNHEARD[kind])])


def test_the_rank_is_that_of_the_whole_answer():
    config = {"vocab_size": 256, "num_hidden_layers": 1, "initializer_range": 0.6}
    model = retrofit(base_of("llama", **config), [8])
    told = sleep_facts.facts(3, seed=1)
    wordings = tuple(kind[0] for kind in sleep_facts.WORDINGS)
    ranks = []
    for fact in told:
        costs = []
        for i in range(20):
            ids = torch.tensor(list((" " + fact.say(wordings[fact.kind], i)).encode()))
            cue = len(f" {fact.name} {('was born in', 'worked as a')[fact.kind]} ")
            with torch.no_grad():
                logits = model.base(ids[None]).logits[0].double()
            costs.append(float(torch.nn.functional.cross_entropy(logits[cue - 1 : -1], ids[cue:], reduction="sum")))
        ranks.append(1 + sum(cost < costs[fact.answer] for cost in costs))
    rank, right = sleep_facts.asked(Teacher(model, None), told, wordings)
    assert rank == sum(ranks) / 3 and right == ranks.count(1) / 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(["--arms", "nap"], "--arms nap"), (["--night", '{"naps": 1}'], "--night"), ([], "novels.jsonl.xz is missing")],
)
def test_a_mistake_is_one_line(tmp_path, capsys, wrong, said):
    with pytest.raises(SystemExit) as stopped:
        sleep_facts.main(["--base", "x", "--data", str(tmp_path), "--out", str(tmp_path / "o.jsonl"), *wrong])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and said in lines[0]
