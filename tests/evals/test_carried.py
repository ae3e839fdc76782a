"""Models trained from scratch: their memory goes along the stream, and is gone with the run."""

import pytest
import torch

from circadia.cli import app
from circadia.evals import arms, stream
from circadia.evals.arms import Example
from circadia.evals.bases import Base, answers
from circadia.evals.suite import Options, Record
from circadia.models import HopeForCausalLM, preset


@pytest.fixture
def hope(tmp_path):
    """A Hope of one small block, with levels that learn quickly."""
    torch.manual_seed(0)
    config = preset("hope", "tiny")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "chunk": 64,
             "intermediate_size": 32, "periods": [64, 256], "cms_rate": 1.0, "vocab_size": 256}  # fmt: skip
    net = HopeForCausalLM(type(config).from_dict({**config.to_dict(), **small}))
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3.0 if p.ndim == 2 else 1.0)
    net.save_pretrained(tmp_path / "bases" / "hope")
    return tmp_path / "bases" / "hope"


TEXT = "The river of the town is called Lune. " * 12
PAIRS = [("The river of the town", " is called Lune.")]


def test_what_was_read_is_still_there_in_another_text(hope):
    arm = arms.make("carried memory", Base.load(hope), 0.0, 0)
    with arm.reading() as module:
        before = answers(arm.base, module, PAIRS)[0].nats
    assert before == pytest.approx(answers(arm.base, arm.base.model, PAIRS)[0].nats, rel=1e-5), "born with it"
    weights = [p.clone() for p in arm.base.model.parameters()]
    arm.learn([Example("", TEXT[:200]), Example("", TEXT[200:])])
    with arm.reading() as module:
        after = answers(arm.base, module, PAIRS)[0].nats
        assert after != pytest.approx(before, rel=1e-3)
        assert answers(arm.base, module, PAIRS)[0].nats == after, "asking teaches nothing"
    assert all(torch.equal(a, b) for a, b in zip(weights, arm.base.model.parameters()))
    twin = arms.make("carried memory", Base.load(hope), 0.0, 0)
    twin.learn([Example("", TEXT)])
    assert all(torch.equal(x, arm.state[name]) for name, x in twin.state.items()), "however it was cut"
    cost = arm.cost()
    assert cost["tokens"] == len(TEXT) and cost["flops"] == 6 * arm.base.parameters * len(TEXT) and cost["bytes"] > 0


def test_it_needs_a_memory(folder):
    with pytest.raises(ValueError, match="nothing in this model learns in context"):
        arms.make("carried memory", Base.load(folder), 0.0, 0)


def test_a_stream_with_a_base_and_a_hope(data, folder, hope, monkeypatch):
    monkeypatch.setattr(stream, "UNSEEN", 1)
    monkeypatch.setattr(stream, "STREAMS", {"domains": ("legal", "medical")})
    monkeypatch.setattr(stream, "PARTS", 1)
    options = Options(depth="quick", data=data, bases=(folder,), hopes=(hope,))
    plan = stream.runs(options, [])
    cells = [(run["base"], run["arm"]) for run in plan]
    assert cells[-2:] == [("hope", "frozen"), ("hope", "carried memory")] and ("small", "carried memory") not in cells
    assert ("small", "full") in cells and ("hope", "full") not in cells
    records = [Record(run, stream.run({**run, "kilobytes": 2}, options), 0.0) for run in plan[-2:]]
    frozen, carried = (one.scores["metrics"]["bits"] for one in records)
    assert frozen["start"] == pytest.approx(carried["start"], rel=1e-5), "the same model"
    assert all(row == frozen["start"] for row in frozen["matrix"])
    assert carried["matrix"][0] != pytest.approx(carried["start"], rel=1e-4)
    assert [row[:2] for row in stream.table(records)[0].rows] == [("hope", "frozen"), ("hope", "carried memory")]


def test_what_is_missing_is_named(data, folder, hope):
    common = {"data": data, "bases": (folder,)}
    with pytest.raises(ValueError, match=r"--models 'carried memory' .*give --hope FOLDER"):
        stream.runs(Options(**common, models=("carried memory",)), [])
    chosen = stream.runs(Options(**common, models=("carried memory",), hopes=(hope,)), [])
    assert {(run["base"], run["arm"]) for run in chosen} == {("hope", "carried memory")}
    with pytest.raises(ValueError, match=r"--hope .*nowhere: there is no config.json"):
        stream.runs(Options(**common, hopes=(data / "nowhere",)), [])
    with pytest.raises(ValueError, match="a --base is called small, too"):
        stream.runs(Options(**common, hopes=(folder,)), [])


def test_the_command_refuses_in_one_line(data, folder):
    from typer.testing import CliRunner

    given = ["eval", "stream", "--quick", "--data", str(data), "--base", str(folder), "--hope", str(data / "nowhere")]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 2 and "--hope" in done.output and "Traceback" not in done.output
