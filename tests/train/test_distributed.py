"""Several processes compute what one does, and their checkpoints go on with any number of them."""

import multiprocessing
import os
import socket
import traceback

import pytest
import torch
from safetensors.torch import load_file

from circadia.train import checkpoint, train
from circadia.train import loop as loop_file
from circadia.train.log import read
from tests.train.conftest import MODEL


def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def spread(size, config, resume=False, before=lambda: None):
    """`torchrun --nproc-per-node SIZE`, without starting Python anew."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port())}

    def body(rank):
        os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        try:
            before()
            train(config, resume=resume)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # without waiting for the others
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=body, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def losses(config, kind="step"):
    return [line["loss"] for line in read(loop_file.Path(config.out)) if line["kind"] == kind]


def weights(config):
    return load_file(loop_file.Path(config.out) / "model" / "model.safetensors")


@pytest.fixture
def one(config, tmp_path):
    """What one process computes."""
    made = config(f"out={tmp_path / 'one'}")
    train(made)
    return made


def alike(config, one):
    assert losses(config) == pytest.approx(losses(one), rel=1e-5)
    assert losses(config, "eval") == pytest.approx(losses(one, "eval"), rel=1e-5)
    mine, theirs = weights(config), weights(one)
    # Adam divides by the root of very small second moments: rounding shows there first.
    assert all(torch.allclose(mine[name], theirs[name], atol=2e-3) for name in theirs)


@pytest.mark.parametrize(
    "override", ["fsdp", "ddp", "fsdp train.micro=1", "ddp train.micro=1 train.checkpointing=true"]
)
def test_two_processes_compute_what_one_does(config, one, override):
    made = config(*f"train.parallel={override}".split())
    assert spread(2, made) == [0, 0]
    alike(made, one)


def test_levels_that_learn_in_context_are_sharded(config):
    """Hope's own regime: rates and decays of its levels are parameters, too."""
    model = {"preset": "gated-deltanet/tiny", "config": {**MODEL, "periods": [8, 16], "chunk": 8}}
    alone, both = (config("train.parallel=fsdp", model=model, out=f"{config().out}-{n}") for n in (1, 2))
    train(alone)
    assert spread(2, both) == [0, 0]
    alike(both, alone)
    assert any(name.endswith("levels.1.decay") for name in weights(both))


@pytest.mark.parametrize("name", ["muon", "m3", "dmgd"])
def test_other_optimizers_step_as_in_one_process(config, tmp_path, name):
    """Those that look at whole matrices too: their weights are sharded, what they compute is not."""
    given = (f"optim.name={name}", "optim.lr=1e-3", "train.tokens=384", "train.eval_every=100", "train.save_every=100")
    split, whole = config(*given), config(*given, f"out={tmp_path / 'one'}")
    assert spread(2, split) == [0, 0]
    train(whole)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5) and losses(split)[0] != losses(split)[2]


@pytest.mark.parametrize("size", [1, 4])
def test_saved_on_two_it_goes_on_with_one_and_four(config, one, size):
    made = config()

    def end_early():
        plain = loop_file.Run.save

        def save(self):
            plain(self)
            os._exit(9)

        loop_file.Run.save = save

    assert spread(2, made, before=end_early) == [9, 9]
    assert [path.name for path in (loop_file.Path(made.out) / "checkpoints").glob("step*")] == ["step-00000003"]
    if size == 1:
        train(made, resume=True)
    else:
        assert spread(size, made, resume=True) == [0] * size
    alike(made, one)


def test_saved_on_one_it_goes_on_with_two(config, one):
    made = config()
    with pytest.MonkeyPatch.context() as patch:
        plain = loop_file.Run.step
        patch.setattr(loop_file.Run, "step", lambda self: plain(self) if self.place.step < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(made)
    assert spread(2, made, resume=True) == [0, 0]
    alike(made, one)


def test_what_the_optimizer_remembers_is_resharded_too(config):
    """Each moment of AdamW after two processes, against those of one."""
    split, whole = config(), config()
    whole = config("out=" + split.out + "-one")
    assert spread(2, split) == [0, 0]
    train(whole)
    found = []
    for made in (split, whole):
        folder = checkpoint.Checkpoints(loop_file.Path(made.out), checkpoint.World(0, 1, torch.device("cpu"))).latest()
        net = loop_file.make.model(made.model, loop_file.make.Tokenizer("bytes"), 5)
        optimizer = loop_file.make.optimizer(net, made.optim)
        checkpoint.load(folder, net, optimizer, checkpoint.World(0, 1, torch.device("cpu")))
        found.append(checkpoint.optimizer_state(optimizer, {id(p): n for n, p in net.named_parameters()})[0])
    assert found[0].keys() == found[1].keys() and len(found[0]) > 30
    for name, value in found[1].items():
        assert torch.allclose(found[0][name], value, rtol=1e-2, atol=1e-5), name


def test_batches_that_do_not_divide_are_refused(config, capfd):
    assert spread(3, config()) == [1, 1, 1]
    assert "train.batch=4 cannot be divided into 3 processes" in capfd.readouterr().err
