"""Splitting a model, and any optimizer on it in one line."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import circadia
from circadia.optim import CMS, M3, OPTIMIZERS, Combined, Muon, build, groups
from circadia.optim.build import OptimizerInfo
from tests.optim.cases import same, states, values


class Memory(nn.Module):
    """A layer with learned starts, one of them flat, as it tells circadia.levels."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(2, 4, 4) * 0.1)
        self.flat = nn.Parameter(torch.randn(8, 8) * 0.1)
        self.into = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(x) @ self.flat
        return x + (y.reshape(*x.shape[:-1], 2, 1, 4) @ self.start).reshape(x.shape)

    def levels_entry(self):
        return {"name": "memory", "period": 1, "starts_from": ["start", "flat"]}


class Model(nn.Module):
    """A small language model with everything that must be told apart."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.memory = Memory()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.lm_head = nn.Linear(8, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos_embed
        x = x + self.conv(x.mT).mT
        x = x + self.down(self.up(self.norm(x)).relu()) + self.frozen(x)
        return self.lm_head(self.memory(x))

    def loss(self, step: int) -> Tensor:
        ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
        return nn.functional.cross_entropy(self(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train(model: Model, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        model.loss(step).backward()
        optimizer.step()


def fresh(seed: int = 0, dtype: torch.dtype = torch.float32, **how) -> Model:
    torch.manual_seed(seed)
    return Model(**how).to(dtype)


def test_the_split() -> None:
    split = groups(fresh())
    assert {name: list(group) for name, group in split.items()} == {
        "matrices": ["up.weight", "down.weight", "memory.into.weight"],
        "embeddings": ["pos_embed", "embed.weight"],
        "head": ["lm_head.weight"],
        "vectors": ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "up.bias", "down.bias", "memory.into.bias"],
        "memories": ["memory.start", "memory.flat"],
    }
    text = str(split)
    assert "matrices" in text and "320" in text and "lm_head.weight" in text and "no head was" not in text
    tied = groups(fresh(tied=True))
    assert "embed.weight" in tied.embeddings and not tied.head


def test_the_split_of_a_model_that_says_its_head() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8, tie_word_embeddings=False)
    split = groups(GPT2LMHeadModel(config))
    assert list(split.head) == ["lm_head.weight"]
    assert list(split.embeddings) == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert all(".h.0." in name for name in split.matrices) and len(split.matrices) == 4


def test_a_head_by_another_name() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4, bias=False), "out": nn.Linear(4, 9, bias=False)})
    model.get_output_embeddings = lambda: model["out"]
    assert list(groups(model).head) == ["out.weight"]
    plain = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    assert list(groups(plain).head) == ["2.weight"] and list(groups(plain).matrices) == ["1.weight"]
    square = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert not groups(square).head and "no head was found" in str(groups(square))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_live_on(how: str) -> None:
    model = fresh()
    pair = (model, build(model, "m3", lr=0.01, periods=(1, 3)))
    train(*pair, 0, 4)
    other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert all(part.state is other[1].state for part in other[1].parts)
    train(*pair, 4, 8)
    train(*other, 4, 8)
    assert same(values(model), values(other[0])) and same(states(pair[1]), states(other[1]))


def test_overrides() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    assert "no head was found" in str(groups(model))
    split = groups(model, {"1.*": "head"})
    assert list(split.head) == ["1.weight", "1.bias"] and list(split.matrices) == ["0.weight"]
    with pytest.raises(ValueError, match=r"overrides\['1.\*'\]='heads' is unknown: use one of 'matrices'"):
        groups(model, {"1.*": "heads"})
    with pytest.raises(ValueError, match=r"overrides has patterns \['7.\*'\] that fit no trainable parameter"):
        groups(model, {"7.*": "head"})


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_built_ones_learn_and_leave_alone_what_is_not_theirs(name: str) -> None:
    model = fresh()
    # As printed, M3 divides an orthogonal matrix by the size of the gradients: its steps are long while these are few.
    optimizer = build(model, name, lr=1e-4 if name == "m3_literal" else 0.01)
    first = sum(model.loss(step).item() for step in range(4))
    frozen = model.frozen.weight.clone()
    for _ in range(15):
        train(model, optimizer, 0, 4)
    assert sum(model.loss(step).item() for step in range(4)) < first
    assert torch.equal(frozen, model.frozen.weight)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == sum(p.requires_grad for p in model.parameters())
    info: OptimizerInfo = OPTIMIZERS[name]
    if name != "adamw":
        assert isinstance(optimizer, Combined)
        own = {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]}
        assert isinstance(optimizer.parts[0], info.make)
        assert own == {id(p) for p in groups(model).matrices.values()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_uninterrupted(name: str, dtype: torch.dtype) -> None:
    settings = {"periods": (1, 3)} if name.startswith("m3") else {}
    whole = fresh(dtype=dtype)
    train(whole, build(whole, name, lr=0.01, **settings), 0, 8)
    for stop in (1, 4):
        model = fresh(dtype=dtype)
        optimizer = build(model, name, lr=0.01, **settings)
        train(model, optimizer, 0, stop)
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other = fresh(seed=5, dtype=dtype)
        other.load_state_dict(weights)
        resumed = build(other, name, lr=0.3, **settings)
        resumed.load_state_dict(state)
        train(other, resumed, stop, 8)
        assert same(values(whole), values(other))


def test_parts_are_what_each_would_be_alone() -> None:
    one, two = fresh(), fresh()
    together = build(one, "muon", lr=0.01)
    split = groups(two)
    muon = Muon(split.matrices.values(), lr=0.01, scale="match_rms_adamw")
    rest = [{"params": group.values()} for name, group in split.items() if name != "matrices"]
    for group, (name, _) in zip(rest, [item for item in split.items() if item[0] != "matrices"]):
        group["params"] = list(group["params"])
        group["weight_decay"] = 0.0 if name in ("embeddings", "vectors") else 0.01
    adamw = torch.optim.AdamW(rest, lr=0.01)
    for step in range(5):
        train(one, together, step, step + 1)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        two.loss(step).backward()
        muon.step()
        adamw.step()
    assert same(values(one), values(two))


def test_schedulers_reach_every_part() -> None:
    model = fresh()
    optimizer = build(model, "m3", lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(model, optimizer, 0, 1)
    schedule.step()
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [0.05] * 5
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = values(model)
    train(model, optimizer, 1, 3)
    assert same(before, values(model)), "after loading, the parts still see the groups of the whole"


def test_added_parameters_go_to_adamw_or_where_they_are_sent() -> None:
    model = fresh()
    optimizer = build(model, "m3", lr=0.1)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    optimizer.add_param_group({"params": nn.Parameter(torch.ones(3, 3)), "part": 0})
    assert [len(part.param_groups) for part in optimizer.parts] == [2, 5]
    assert len(optimizer.param_groups) == 7
    with pytest.raises(ValueError, match="part=2 is not one of the parts 0 to 1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "part": 2})
    with pytest.raises(ValueError, match="in a group already"):
        optimizer.add_param_group({"params": [model.up.weight]})


def test_rates() -> None:
    """One learning rate for both where the rule's steps are as long as AdamW's; otherwise AdamW has its own."""
    for name, rate in (("muon", 0.1), ("m3", 0.1), ("dgd", 3e-4), ("delta_momentum", 3e-4)):
        assert [group["lr"] for group in build(fresh(), name, lr=0.1).param_groups] == [0.1] + [rate] * 4
    assert build(fresh(), "dgd", lr=0.1, adamw={"lr": 0.2}).param_groups[1]["lr"] == 0.2


def test_memories_on_request() -> None:
    model = fresh()
    optimizer = build(model, "m3", lr=0.01, memories=True)
    own = {id(p) for p in optimizer.parts[0].param_groups[0]["params"]}
    assert own >= {id(model.memory.start), id(model.memory.flat)}
    before = model.memory.start.detach().clone()
    train(model, optimizer, 0, 2)
    assert not torch.equal(before, model.memory.start)


def test_levels_of_a_built_optimizer() -> None:
    """Each part with its own levels; M3's momenta with their periods in steps."""
    model = fresh()
    optimizer = build(model, "m3", lr=0.01, periods=(1, 50))
    train(model, optimizer, 0, 2)
    found = {level.name: level for level in circadia.levels(model, optimizer).levels}
    assert (found["M3 momentum 1"].period, found["M3 momentum 2"].period) == (1, 50)
    assert found["M3 momentum 2"].unit == "step"
    assert "AdamW moments" in found and found["weights trained by M3"].parameters == 320
    held = sum(x.numel() * x.element_size() for x in states(optimizer) if x.ndim)
    kept = sum(level.state_bytes for level in found.values() if "M3" in level.name or "moments" in level.name)
    steps = sum(4 for state in optimizer.state.values() if "exp_avg" in state)  # torch counts its step counters too
    assert kept == held + steps


def test_a_block_that_learns_every_five_hundred_tokens() -> None:
    """CMS around a combined optimizer: one line for any model."""
    model = fresh()
    optimizer = build(model, "m3", lr=0.01, periods=(1, 2))
    optimizer.param_groups[0]["period"] = 50
    cms = CMS(optimizer, unit="token")
    moved = []
    for step in range(6):
        before = model.up.weight.detach().clone()
        cms.zero_grad()
        model.loss(step).backward()
        cms.step(tokens=20)
        moved.append(not torch.equal(before, model.up.weight))
    assert moved == [False, False, True, False, True, False]


def test_wrong_arguments() -> None:
    model = fresh()
    for wrong, message in (
        (lambda: build(model, "m4", lr=0.1), "optimizer 'm4' is unknown: use one of adamw, muon"),
        (lambda: build(model, "m3", lr=0.1, momentum=0.9), r"settings \{'momentum': 0.9\} do not fit 'm3'"),
        (lambda: build(model, "m3", lr=0.1, adamw={"beta": 1}), "do not fit AdamW"),
        (lambda: build(nn.Embedding(3, 4), "m3", lr=0.1), "has no hidden matrices for 'm3': use 'adamw'"),
        (lambda: groups([]), "model must be a torch.nn.Module, got list"),
        (lambda: Combined([]), "parts=\\[\\] must be one or more"),
        (lambda: Combined([Muon([model.up.weight]), M3([model.up.weight])]), "parts hold a parameter twice"),
        (lambda: Muon([model.norm.weight]), r"shape \(8,\): Muon writes matrices; give vectors to AdamW"),
        (lambda: Muon([model.up.weight], momentum=1.0), r"momentum=1.0 is outside \[0, 1\): give"),
        (lambda: Muon([model.up.weight], scale="big"), "scale='big' is unknown: use one of 'none', 'original'"),
        (lambda: Muon([model.up.weight], ns_steps=0), "ns_steps=0 is not a whole number of at least 1"),
        (lambda: M3([model.up.weight], periods=(1, 0)), r"periods\[1\]=0 is not a whole number"),
        (lambda: M3([model.up.weight], betas=(0.9,)), r"betas=\(0.9,\) must have 2 entries: one for each of periods"),
        (lambda: M3([model.up.weight], mode="exact"), "mode='exact' is unknown: use one of 'ema', 'literal'"),
        (lambda: M3([model.up.weight], periods=()), r"periods=\(\) must name one or more levels"),
        (lambda: M3([model.up.weight], ns_coefficients=(1.5, -0.5)), "must be three numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    optimizer = Muon([model.up.weight])
    with pytest.raises(ValueError, match="scale='big'"):
        optimizer.add_param_group({"params": [model.down.weight], "scale": "big"})
    assert len(optimizer.param_groups) == 1
