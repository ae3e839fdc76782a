"""A level that learns in context: the fast form against the loop, over every setting, split and layout."""

import itertools

import pytest
import torch

from circadia.levels import cms

BATCH, WIDTH, HIDDEN = 3, 6, 5
RATES = {"up": 0.7, "out": 0.5, "decay": 0.1, "transfer": 0.4}
SETTINGS = {
    f"{kind}, {'nested' if parent else 'alone'}, {order}": dict(kind=kind, parent=parent, order=order)
    for kind, parent, order in itertools.product(("swiglu", "gelu"), (None, 12), ("second", "first"))
}
every_setting = pytest.mark.parametrize("name", SETTINGS)


class Case:
    """Inputs in float64, all of them leaves."""

    def __init__(self, name: str, tokens: int = 31, period: int = 4) -> None:
        g = torch.Generator().manual_seed(tokens)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        self.how = cms.How(period=period, clip=0.4, **SETTINGS[name])
        wide = HIDDEN if self.how.kind == "gelu" else 2 * HIDDEN
        self.x, self.target = draw(BATCH, tokens, WIDTH), draw(BATCH, tokens, WIDTH)
        self.weight = torch.rand(BATCH, tokens, generator=g, dtype=torch.float64)
        self.start = {"up": 0.5 * draw(wide, WIDTH), "out": 0.5 * draw(WIDTH, HIDDEN)}
        self.rates = {n: torch.tensor(r, dtype=torch.float64) for n, r in RATES.items()}
        self.leaves = [self.x, self.target, self.weight, *self.start.values(), *self.rates.values()]
        for leaf in self.leaves:
            leaf.requires_grad_()

    def __call__(self, form=cms.run, state=None, at=slice(None), **layout):
        layout = {n: m[:, at] for n, m in layout.items()}
        return form(
            self.how, self.x[:, at], self.target[:, at], self.start, self.rates, state or {},
            weight=self.weight[:, at], **layout,
        )  # fmt: skip

    def gradients(self, y, state):
        g = torch.Generator().manual_seed(5)
        loss = (y * torch.randn(y.shape, generator=g, dtype=y.dtype)).sum()
        loss = loss + sum(z.square().sum() for n, z in state.items() if n not in ("pos", "last"))
        found = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, self.leaves)]


def gap(a: dict, b: dict) -> float:
    """Between two states; a missing entry is zero. "last" counts only inside a period."""
    names = {*a, *b} - {"last"}
    zero = torch.zeros((), dtype=torch.float64)
    return max((a.get(n, zero) - b.get(n, zero)).abs().max().item() for n in names)


def layouts(tokens: int) -> dict[str, dict]:
    g = torch.Generator().manual_seed(2)
    mask = torch.rand(BATCH, tokens, generator=g) > 0.3
    mask[0], mask[1, : tokens // 2] = True, False
    reset = (torch.rand(BATCH, tokens, generator=g) > 0.8) & mask
    return {
        "in step": {},
        "padded": dict(mask=mask),
        "packed": dict(mask=mask, reset=reset),
        "documents": dict(reset=reset),
    }


@every_setting
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 12, 31])
@pytest.mark.parametrize("layout", ["in step", "padded", "packed", "documents"])
def test_fast_is_the_loop(name: str, tokens: int, layout: str) -> None:
    """Outputs, final state, and the outer gradients of every input, of the start and of the rates."""
    case, where = Case(name, tokens), layouts(tokens)[layout]
    y, state = case(**where)
    truth, after = case(cms.reference, **where)
    assert (y - truth).abs().max() < 1e-11 and gap(state, after) < 1e-11
    for fast, slow in zip(case.gradients(y, state), case.gradients(truth, after)):
        assert (fast - slow).abs().max() < 1e-9 * (1 + slow.abs().max())
    if tokens > 12 and layout == "in step":  # it did learn, and a nested level restarted
        assert state["up"].abs().max() > 1e-3 and (case.how.parent is None or state["home.up"].abs().max() > 1e-3)


@every_setting
@pytest.mark.parametrize("cuts", [(7, 8, 9, 12, 24), (1, 2, 3, 4, 5), (12, 30)])
@pytest.mark.parametrize("layout", ["in step", "padded", "packed"])
def test_split_anywhere(name: str, cuts: tuple[int, ...], layout: str) -> None:
    case, where = Case(name), layouts(31)[layout]
    y, state = case(**where)
    parts, some = [], None
    for a, b in itertools.pairwise((0, *cuts, 31)):
        part, some = case(state=some, at=slice(a, b), **where)
        parts.append(part)
    assert (y - torch.cat(parts, 1)).abs().max() < 1e-12 and gap(state, some) < 1e-12


def test_turns_of_different_kinds() -> None:
    """A plain turn, a padded one, documents, and a plain one again, on one state."""
    case = Case("swiglu, nested, second")
    mask, reset = torch.ones(BATCH, 31, dtype=torch.bool), torch.zeros(BATCH, 31, dtype=torch.bool)
    mask[1, 10:16], mask[2, 15] = False, False
    reset[0, 18] = reset[2, 21] = True
    fast = slow = None
    for at, where in [(slice(0, 9), {}), (slice(9, 17), dict(mask=mask)), (slice(17, 23), dict(reset=reset)),
                      (slice(23, 31), {})]:  # fmt: skip
        y, fast = case(state=fast, at=at, **where)
        truth, slow = case(cms.reference, state=slow, at=at, **where)
        assert (y - truth).abs().max() < 1e-11
    assert gap(fast, slow) < 1e-11


@every_setting
def test_the_state_need_not_be_kept(name: str) -> None:
    """Without it the same answers and gradients, and no open period."""
    case = Case(name)
    y, _ = case()
    kept = case.gradients(y, {})
    case.how = cms.How(**{**vars(case.how), "keep": False})
    again, state = case()
    assert (y - again).abs().max() < 1e-13 and "pos" not in state
    for a, b in zip(kept, case.gradients(again, {})):
        assert (a - b).abs().max() < 1e-12


def test_score_before_you_learn() -> None:
    """The first period is read with the start alone; the second one with what the first one taught, and no more."""
    case = Case("swiglu, alone, second", 12)
    plain = cms.mlp("swiglu", case.x, case.start["up"], case.start["out"])
    y, _ = case()
    assert torch.allclose(y[:, :4], plain[:, :4], rtol=1e-12) and (y - plain)[:, 4:].abs().amin() > 0
    with torch.no_grad():
        case.x[:, 8:] += 1.0
        case.target[:, 8:] += 1.0
    other, _ = case()
    assert torch.equal(y[:, :8], other[:, :8])
    with torch.no_grad():
        case.target[:, 4] += 1.0  # predicted by the period before, which had not been seen then
    assert torch.equal(other, case()[0])


def test_rate_zero_is_the_plain_network() -> None:
    case = Case("gelu, nested, second")
    case.rates = dict(up=0.0, out=0.0, decay=0.0, transfer=0.5)
    assert torch.allclose(case()[0], cms.mlp("gelu", case.x, case.start["up"], case.start["out"]), rtol=1e-12)


def test_the_gradient_is_clipped_for_each_sequence() -> None:
    """A step is at most rate x clip long; a quiet sequence is not shortened by a loud one beside it."""
    case = Case("swiglu, alone, second", 5)
    with torch.no_grad():
        case.target[0] *= 1e6
        case.target[1] = 1e-3 * case.target[1] + cms.mlp("swiglu", case.x[1].roll(1, 0), *case.start.values())
    _, state = case()
    step = torch.stack([(state[n] / case.rates[n]).square().sum((1, 2)) for n in cms.NAMES]).sum(0).sqrt()
    assert abs(step[0] - 0.4) < 1e-9 and 0 < step[1] < 0.05


@pytest.mark.parametrize("kind", ["swiglu", "gelu"])
def test_4096_steps_stay_finite(kind: str) -> None:
    """One key again and again, targets that flip: the worst that a level meets."""
    case = Case(f"{kind}, nested, second", 4200)
    with torch.no_grad():
        case.x[:] = case.x[:, :1]
        case.target[:, ::8] *= -50.0
        y, state = case()
    assert torch.isfinite(y).all() and all(torch.isfinite(z).all() for z in state.values())
    # Decay 0.1 against steps of rate x clip: the geometric sum bounds the delta.
    assert max(state[n].flatten(1).norm(dim=1).max() for n in cms.NAMES) < 0.7 * 0.4 / 0.1 * 1.5
