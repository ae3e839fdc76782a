"""What the configurations in the repository say about stages and levels, at a small size."""

import pytest
import torch

from circadia.models.native import native
from circadia.models.retrofit import retrofit
from circadia.train import load, train
from circadia.train import loop as loop_file
from circadia.train.log import read
from tests.train.conftest import MODEL


def losses(result):
    return [line["loss"] for line in read(result.folder) if line["kind"] == "step"]


def small(config, name, **train):
    """A configuration of the repository on the small text, with a small model."""
    file = loop_file.Path(__file__).parents[2] / "configs" / name
    made = config()
    changes = [f"model.config.{key}={value}" for key, value in {**MODEL, "periods": [8, 16, 32]}.items()]
    changes += [f"data.path={made.data.path}", "data.heldout=['1.txt']", "data.length=32", f"out={made.out}"]
    return load(file, [*changes, "train.device=cpu", *(f"train.{key}={value}" for key, value in train.items())])


def test_pretrain_with_inner_updates_off_then_adapt_with_them_on(config, tmp_path):
    """The stages of configs/stages-tiny.yaml; the second one goes on with the weights of the first."""
    made = small(config, "stages-tiny.yaml", batch=4, levels_every=1)
    stages = [one.model_copy(update={"train": {"tokens": 512}}) for one in made.stages]
    result = train(made.model_copy(update={"stages": stages}))
    looks = [line for line in read(result.folder) if line["kind"] == "levels"]
    moved = [line["cms-8/update"] for line in looks]
    assert len(moved) == 8 and moved[:4] == [0.0] * 4 and min(moved[4:]) > 1e-4
    assert losses(result)[4] == pytest.approx(losses(result)[3], abs=0.3)  # no new start
    # The same from a folder: what the first stage left, with the levels switched on.
    first = train(made.model_copy(update={"stages": stages[:1], "out": str(tmp_path / "first")}))
    path = {"path": str(first.folder / "model"), "config": {"cms_rate": 0.3}}
    second = train(config("train.tokens=128", "train.levels_every=1", f"out={tmp_path / 'second'}", model=path))
    (look,) = (line for line in read(second.folder) if line["kind"] == "levels")
    assert look["cms-8/update"] > 1e-4 and losses(second)[0] < losses(first)[0]


def test_levels_of_the_stream_step_every_so_many_tokens(config):
    """configs/cms-stream.yaml with periods as much shorter as its batch: level 1 every 4 steps, level 2 every 16."""
    made = small(config, "cms-stream.yaml", batch=4, tokens=4 * 128, eval_every=100)
    periods = {pattern: count // 32 for pattern, count in made.optim.periods.items()}
    made = made.model_copy(update={"optim": made.optim.model_copy(update={"periods": periods, "warmup": 0.0})})
    run = loop_file.Run(made, None, loop_file.World(0, 1, torch.device("cpu")), None)
    run.open(0)
    levels = [run.net.model.layers[0].levels.levels[i].up.weight for i in range(3)]
    moved = []
    for _ in range(4):
        before = [w.detach().clone() for w in levels]
        run.step()
        moved.append([not torch.equal(a, b) for a, b in zip(before, levels)])
    assert moved == [[True, False, False]] * 3 + [[True, True, False]]
    assert not loop_file.watch.watch(run.net, torch.zeros(1, 32, dtype=torch.long)).keys() & {"cms-8", "cms-16"}


def test_a_hope_carries_its_memory_over_the_rows_of_a_novel(config):
    """configs/hope-novels.yaml: a level whose period is longer than a row takes its step in a later row."""
    made = small(config, "hope-novels.yaml", batch=1, tokens=4 * 32, eval_every=100)
    periods = {**made.model.config, "periods": [8, 16, 64], "chunk": 8}
    made = made.model_copy(update={"model": made.model.model_copy(update={"config": periods})})
    assert made.data.carry and made.data.length == 32 and made.model.preset.startswith("hope/")
    run = loop_file.Run(made, None, loop_file.World(0, 1, torch.device("cpu")), None)
    run.open(0)
    moved = []
    for _ in range(3):
        run.step()
        held = run.caches[0].layers[0].state
        moved.append([f"levels.{i}.up" in held for i in range(3)])
    assert moved == [[True, True, False], [True, True, False], [True, True, True]]
    _, state = native(run.net).learn(torch.arange(128) % 64, native(run.net).start())
    assert all(bool(x.any()) for name, x in state.items() if name.endswith("levels.2.up"))


@pytest.mark.parametrize("first_order", [True, False])
def test_a_trained_base_is_adapted(config, tmp_path, first_order):
    """configs/adapt-novels.yaml and the override that it names, on a base that `circadia train` has made."""
    first = train(
        config("train.tokens=256", f"out={tmp_path / 'base'}", model={"preset": "transformer++/tiny", "config": MODEL})
    )
    changes = [f"model.path={first.folder / 'model'}", "model.retrofit.periods=[8]", "model.retrofit.layers=last:1"]
    changes += [f"model.retrofit.first_order={first_order}", "data.heldout=['1.txt']", "data.length=32"]
    changes += [
        f"data.path={config().data.path}",
        f"out={tmp_path / 'adapted'}",
        "train.device=cpu",
        "train.tokens=512",
    ]
    result = train(load(loop_file.Path(__file__).parents[2] / "configs" / "adapt-novels.yaml", changes))
    model = retrofit(result.folder / "model")
    assert model.learned.first_order is first_order and model.settings.levels[0].anchor == "base"
    assert losses(result)[-1] < losses(result)[0]
    (moved,) = (part.abs() for part in model.learned.log_rate)
    assert (moved > 0).all() and all(part.abs().min() > 0 for part in model.learned.decay)
