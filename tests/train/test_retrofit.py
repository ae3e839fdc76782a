"""Training with inner updates on."""

import pytest
import torch

import circadia
from circadia.models import HopeForCausalLM
from circadia.models.retrofit import load as load_retrofit
from circadia.train import train
from circadia.train.log import read
from tests.train.conftest import MODEL, curve

RETROFIT = {"periods": [8, 16], "first_order": True, "rate": 0.1}
PARTS = {"model": {"preset": "transformer++/tiny", "config": MODEL, "retrofit": RETROFIT}}


def test_a_retrofitted_model_is_trained_saved_and_read_again(config, tmp_path):
    result = train(config("data.reset=false", "train.tokens=768", **PARTS))
    lines = read(tmp_path / "run")
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert result.stopped == "finished" and losses[-1] < losses[0] and result.held_out["loss"] < losses[0]
    model = load_retrofit(tmp_path / "run" / "model")
    assert [level.period for level in model.settings.levels] == [8, 16]
    assert any(p.abs().sum() > 0 for p in model.learned.log_rate)
    report, _ = model.learn(torch.arange(40), model.start())
    assert report.levels[0].updates == 5 and not any(p.requires_grad for p in model.parameters())
    assert isinstance(model.base, HopeForCausalLM)
    assert circadia.retrofit(tmp_path / "run" / "model").settings == model.settings


def test_a_run_that_was_cut_goes_on_with_the_same_numbers(config, tmp_path):
    whole = config("data.reset=false", f"out={tmp_path / 'whole'}", **PARTS)
    train(whole)
    cut = config("data.reset=false", f"out={tmp_path / 'cut'}", **PARTS)
    from circadia.train import loop

    class Cut(Exception):
        pass

    done, step = [], loop.Run.step

    def stop_early(run):
        if len(done) == 5:
            raise Cut
        done.append(step(run))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "step", stop_early)
        with pytest.raises(Cut):
            train(cut)
    train(cut, resume=True)
    logs = [curve(read(tmp_path / name)) for name in ("whole", "cut")]
    ends = [{line["step"]: line for line in lines if line["kind"] == "step"} for lines in logs]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"retrofit": {"periods": [8, 12]}}, "model.retrofit: periods="),
        ({"retrofit": {"periods": [8], "capacity": "lowrank"}}, "model.retrofit: adaptation of level 0: capacity"),
        ({"retrofit": {"period": [8]}}, "model.retrofit: period="),
    ],
)
def test_bad_settings(config, changes, said):
    with pytest.raises(ValueError, match=said):
        train(config("data.reset=false", model={**PARTS["model"], **changes}))


def test_rows_must_be_longer_than_a_chunk(config):
    with pytest.raises(ValueError, match="longer than one chunk"):
        train(config("data.reset=false", "data.length=8", **PARTS))
