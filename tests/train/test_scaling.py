"""What is computed of large runs is what small ones really hold."""

import pytest
import torch

from circadia.models import preset
from circadia.train import loop as loop_file
from circadia.train import scaling
from circadia.train.distributed import World


def test_bytes_are_those_of_a_real_run(config):
    run = loop_file.Run(config(), None, World(0, 1, torch.device("cpu")), None)
    run.open(0)
    run.step()
    need = scaling.need(run.net.config, gpus=1, rows=4, length=32, tokens=1024, recompute=False)
    params = list(run.net.parameters())
    assert need.weights == need.gradients == sum(p.numel() * 4 for p in params)
    moments = [x for state in run.optimizer.state.values() for name, x in state.items() if name != "step"]
    assert need.moments == sum(x.numel() * x.element_size() for x in moments)
    eight = scaling.need(run.net.config, gpus=8, rows=4, length=32, tokens=1024, recompute=True)
    assert eight.weights == -(-need.weights // 8) and eight.activations < need.activations
    assert eight.flops == pytest.approx(need.flops * 4 / 3) and eight.state == need.state
    largest = max(sum(p.numel() for p in block.parameters()) for block in run.net.model.layers)
    assert eight.gathered == 3 * 4 * largest and need.gathered == 0


def test_the_table_is_what_is_computed(capsys):
    scaling.main(["transformer++/30m", "--gpus", "8", "--length", "64", "--tokens", "1e9"])
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    need = scaling.need(preset("transformer++", "30m"), gpus=8, rows=1, length=64, tokens=1e9, recompute=True)
    assert row[2:4] == ["8", f"{4 * need.weights / 2**30:.1f}"] and row[-1] == f"{need.flops:.2g} |"
    assert need.flops == pytest.approx(4 * 2 * need.parameters * 1e9, rel=0.1)  # two operations a weight, four passes
    with pytest.raises(SystemExit) as stop:
        scaling.main(["hope/9b"])
    assert stop.value.code == 2 and "size '9b' is unknown" in capsys.readouterr().err
