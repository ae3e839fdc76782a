"""Two real processes do what one does: under FSDP2, under DDP, and when one takes up what two have saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from circadia.optim import sharded
from tests.optim import processes
from tests.optim.processes import MAKERS, STEPS, STOP, Odd, train

every = pytest.mark.parametrize("name", MAKERS)
MATRICES = sorted([(7, 4), (4, 7), (1, 4), (7, 4), (3, 7)])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, processes.together(folder, processes.everything, folder)


def alone(name: str) -> list[Tensor]:
    model = Odd()
    train(model, MAKERS[name](model), 0, STEPS)
    return processes.wholes(model)


def gap(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


@every
@pytest.mark.parametrize("how", ["fsdp", "ddp"])
def test_two_are_one(two, name: str, how: str) -> None:
    start, want = processes.wholes(Odd()), alone(name)
    assert min((a - b).abs().max().item() for a, b in zip(start, want)) > 1e-3, "every parameter has moved"
    for found in two[1]:
        assert gap(found[name][how], want) < 2e-5
    assert gap(two[1][0][name][how], two[1][1][name][how]) == 0, "the copies are the same to the last bit"


@every
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # that is what is tested
def test_one_takes_up_what_two_have_saved(two, name: str) -> None:
    """The weights and every state, slow memories in mid-period too, put together from the two halves."""
    model = Odd()
    optimizer = MAKERS[name](model)
    processes.load(two[0] / name.replace("/", "-"), model, optimizer)
    train(model, optimizer, STOP, STEPS)
    assert gap(processes.wholes(model), alone(name)) < 2e-5


def test_a_compiled_step_of_shards(two) -> None:
    """It runs as it is, whatever was asked for: the same bits, and no compilation at every step."""
    for found in two[1]:
        assert gap(found["compiled"], found["m3"]["fsdp"]) == 0


def test_four_take_up_what_two_have_saved(two, tmp_path: Path) -> None:
    names = ["m3", "cms/adamw", "cms/m3"]
    for found in processes.together(tmp_path, processes.resumed, two[0], names, world=4, seconds=240):
        for name in names:
            assert gap(found[name], alone(name)) < 2e-5


@every
def test_states_are_shared_out(two, name: str) -> None:
    """Together the two hold what one holds; only DMGD's memory, which belongs to no row, and step counts are double."""
    model = Odd()
    optimizer = MAKERS[name](model)
    train(model, optimizer, 0, STEPS)
    sizes = [
        x.numel() * (2 if key in ("step", "cms_weight") or key.startswith("layer") else 1)
        for state in optimizer.state.values()
        for key, x in state.items()
    ]
    assert sum(found[name]["kept"] for found in two[1]) == sum(sizes)


@pytest.mark.parametrize("name", ["muon", "adamuon", "m3"])
def test_every_matrix_is_made_orthogonal_once(two, name: str) -> None:
    """In the first step, where no slow memory is due: whole matrices, each by one process; a batch where it is cut."""
    first = [found[name]["first"] for found in two[1]]
    batches = [shape for shapes in first for shape in shapes if len(shape) == 3]
    assert sorted(batches) == [(1, 7, 7), (2, 7, 7)]
    assert sorted(shape for shapes in first for shape in shapes if len(shape) == 2) == MATRICES
    assert all(len(shapes) >= 3 for shapes in first), "both have work"


def test_every_layout(two) -> None:
    """Four batches of matrices; one that is cut along two axes of the mesh is gathered by everyone."""
    first, second = (found["layouts"] for found in two[1])
    assert len(first) == 12
    for layout, got in first.items():
        assert got["gap"] < 1e-6 and got["rms"] < 1e-6, layout
        twice = "dim=0" in layout or layout.count("Shard") == 2
        assert got["worked_on"] + second[layout]["worked_on"] == (8 if twice else 4), layout


def test_owners_have_about_the_same_work() -> None:
    costs = [float(c) for c in torch.randint(1, 100, (50,)).tolist()]
    owner = sharded.owners(costs, 4)
    load = [sum(c for c, o in zip(costs, owner) if o == rank) for rank in range(4)]
    assert max(load) - min(load) <= max(costs)
    assert max(load) < 1.02 * sum(costs) / 4
    assert sharded.owners([1.0] * 6, 2) == [0, 1, 0, 1, 0, 1]
