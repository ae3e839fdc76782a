"""Runs that are killed anywhere and go on: bit for bit what an uninterrupted run computes."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from circadia.cli import app
from circadia.train import checkpoint, train
from circadia.train import loop as loop_file
from circadia.train.config import dump
from circadia.train.distributed import World
from circadia.train.log import read
from tests.train.conftest import curve

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes with signals")


def in_process(config, kill, **settings):
    """Train in a real process, which `kill(run)` may make end itself; returns its exit code."""

    def body():
        kill()
        train(config, **settings)

    process = multiprocessing.get_context("fork").Process(target=body)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after(count, *places):
    """Die at the count-th call of any of these functions, before its work."""

    def install():  # in the child only
        calls = [0]

        def counted(plain):
            def call(*args, **settings):
                calls[0] += 1
                if calls[0] == count:
                    die()
                return plain(*args, **settings)

            return call

        for owner, name in places:
            setattr(owner, name, counted(getattr(owner, name)))

    return install


def weights(config):
    return load_file(loop_file.Path(config.out) / "model" / "model.safetensors")


def compare(config, whole):
    a, b = (loop_file.Path(each.out) for each in (config, whole))
    assert curve(read(a)) == curve(read(b))
    mine, theirs = weights(config), weights(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


LOSS = (loop_file.Run, "loss")
# A forward pass, the writing of weights, a sync within a checkpoint, its renaming, the removal of the last one.
PLACES = [
    LOSS,
    (torch.optim.AdamW, "step"),
    (checkpoint, "sync"),
    (loop_file.Path, "rename"),
    (checkpoint.shutil, "rmtree"),
]
KINDS = {
    "plain": [],
    "micro": ["train.micro=2", "train.save_minutes=0"],  # a checkpoint after every part of a step
    "stream": ["data.streaming=true", "data.buffer=4", "train.eval_tokens=100", "data.workers=1"],
    "carry": [
        "data.carry=true",
        "train.micro=2",
        "train.save_minutes=0",
        "model.config.mixers=[titans, sliding_attention]",
    ],
    "cms": ["optim.periods={'model.layers.0.*': 128, '*': 300}", "train.save_every=1"],
    "m3": ["optim.name=m3", "optim.settings.periods=[1, 3]", "train.save_every=2"],
    "stages": ["stages=[{name: a, train: {tokens: 384}}, {name: b, optim: {lr: 5e-3}, train: {tokens: 640}}]"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_places_it_computes_the_same_bits(config, tmp_path, kind):
    whole = config(*KINDS[kind], f"out={tmp_path / 'whole'}")
    train(whole)
    config = config(*KINDS[kind])
    chance = random.Random(kind)
    ends = [in_process(config, after(chance.randint(1, 24), *PLACES), resume=True) for _ in range(4)]
    assert ends.count(-signal.SIGKILL) >= 3
    assert in_process(config, lambda: None, resume=True) == 0
    compare(config, whole)


@pytest.mark.parametrize("optimizer", ["adamw", "dgd"])
def test_it_goes_on_in_the_middle_of_a_step(config, tmp_path, optimizer):
    overrides = ["train.micro=1", "train.save_minutes=0", "train.tokens=384", f"optim.name={optimizer}"]
    whole = config(*overrides, f"out={tmp_path / 'whole'}")
    train(whole)
    config = config(*overrides)
    assert in_process(config, after(7, LOSS)) == -signal.SIGKILL  # two parts into the second step
    (found,) = (loop_file.Path(config.out) / "checkpoints").glob("step-*")
    assert found.name == "step-00000001-0002"
    tensors = load_file(found / "rest-0.safetensors")
    assert sum(float(x.abs().sum()) for name, x in tensors.items() if name.startswith("gradient/")) > 0
    calls = []
    plain = loop_file.Run.loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop_file.Run, "loss", lambda self, *args, **more: calls.append(args) or plain(self, *args, **more)
        )
        train(config, resume=True)
    assert [index for _, index in calls[:3]] == [2, 3, 0]  # the first two are not done again
    compare(config, whole)


# Step 4 is one after which an evaluation is due.
@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 4), (signal.SIGINT, 3)])
def test_a_polite_signal_ends_after_a_checkpoint_and_says_how_to_go_on(config, tmp_path, number, at):
    whole = config(f"out={tmp_path / 'whole'}")
    train(whole)
    config = config()
    (tmp_path / "c.yaml").write_text(dump(config))
    plain, calls = loop_file.Run.loss, [0]

    def loss(self, *args, **settings):
        calls[0] += 1
        if calls[0] == at:
            os.kill(os.getpid(), number)
        return plain(self, *args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_file.Run, "loss", loss)
        done = CliRunner().invoke(app, ["train", str(tmp_path / "c.yaml")])
    assert done.exit_code == 128 + number
    assert f"{number.name} after step {at}; go on with: circadia train {config.out} --resume" in done.stderr
    assert [line["step"] for line in read(loop_file.Path(config.out)) if line["kind"] == "step"] == [1, 2, 3, 4][:at]
    done = CliRunner().invoke(app, ["train", config.out, "--resume"])
    assert done.exit_code == 0 and "resumed from" in done.stderr
    compare(config, whole)


def test_a_run_is_not_overwritten_and_not_changed(config):
    made = config("train.tokens=256")
    train(made)
    with pytest.raises(ValueError, match=r"holds a run: go on with --resume, or choose another folder with out="):
        train(made)
    with pytest.raises(ValueError, match=r"was started with another optim\.lr, train\.batch: a run cannot change it"):
        train(config("train.tokens=256", "optim.lr=1", "train.batch=2"), resume=True)
    result = train(config("train.tokens=256", "train.micro=1", "data.workers=1"), resume=True)  # over already
    assert result.place.step == 2 and len(curve(read(result.folder))) == 3
    done = CliRunner().invoke(app, ["train", made.out])
    assert done.exit_code == 2 and "add --resume" in done.stderr


def test_what_the_place_depends_on_must_be_there(config, tmp_path, text):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_bytes((text / "0.txt").read_bytes())
    parts = [f"data.path={folder}", "data.heldout=0.1", "train.micro=1", "train.save_minutes=0"]
    made = config(*parts)
    assert in_process(made, after(7, LOSS)) == -signal.SIGKILL
    with pytest.raises(
        ValueError, match=r"in the middle of a step of one process with train\.micro=1: resume with these"
    ):
        train(config(*parts, "train.micro=2"), resume=True)
    (folder / "b.txt").write_text("more text")
    with pytest.raises(
        ValueError, match=r"data\.path has .* tokens, the run was started with .*: give it the same text"
    ):
        train(made, resume=True)


def test_two_processes_do_not_write_one_run(config):
    made = config()
    folder = loop_file.Path(made.out)
    folder.mkdir()
    with checkpoint.lock(folder), pytest.raises(ValueError, match="another process is training there"):
        train(made)


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path):
    found = checkpoint.Checkpoints(tmp_path, World(0, 1, torch.device("cpu")))

    def write(folder):
        (folder / "a").write_text("x")

    def fail(folder):
        (folder / "a").write_text("y")
        raise RuntimeError

    found.save("step-00000009", write)
    with pytest.raises(RuntimeError):
        found.save("step-00000010", fail)
    assert found.latest().name == "step-00000009"
    (found.folder / ".DS_Store").write_text("a file of somebody else's")
    again = checkpoint.Checkpoints(tmp_path, World(0, 1, torch.device("cpu")))
    (found.folder / ".DS_Store").unlink()
    assert [path.name for path in again.folder.iterdir()] == ["step-00000009"]  # leftovers are gone
    for name in ("step-00000010", "step-00000010-0001", "best-00000010"):
        found.save(name, write)
    assert sorted(path.name for path in found.folder.iterdir()) == ["best-00000010", "step-00000010-0001"]


def test_nothing_in_a_checkpoint_is_a_pickle(config):
    made = config("train.tokens=256")
    train(made)
    files = [path for path in (loop_file.Path(made.out) / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    state = json.loads(next(path for path in files if path.name == "state.json").read_text())
    assert state["place"]["step"] == 2


def test_random_numbers_go_on():
    tensors, numbers = checkpoint.random_state()
    import numpy

    want = (torch.rand(3), random.random(), numpy.random.rand())
    checkpoint.restore_random(tensors, json.loads(json.dumps(numbers)))
    got = (torch.rand(3), random.random(), numpy.random.rand())
    assert torch.equal(want[0], got[0]) and want[1:] == got[1:]


def test_checkpoints_by_the_clock(config, monkeypatch):
    saved = []
    monkeypatch.setattr(loop_file.Run, "save", lambda self: saved.append(self.place.step))
    clock = iter(range(0, 10**6, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    train(config("train.save_every=1000", "train.save_minutes=1", "train.tokens=640"))
    assert saved[0] == 3  # 75 seconds after the start
