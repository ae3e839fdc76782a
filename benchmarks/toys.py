"""The toys of Nested Learning, section 4: ``python -m benchmarks.toys --out DIR``.

valley   Fig. 4: momentum against delta momentum on eq. 53, psi = r^2 + k (r - theta + a sin(w r))^2 from (-3.5, 2). The
         paper gives neither k, a, w nor the rate and decay, so all are swept: for which share does the claim hold?
tasks    section 4.3: linear tasks one after another, whose inputs are at right angles (eq. 45). Nothing but what an
         optimizer remembers, or how it mixes directions, can make it forget
lags     how much a gradient of i steps ago still moves the weights, measured on the optimizers: one of them is changed
         a little, and the last step compared
"""

import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import harness
from circadia.optim import DGD, DMGD, M3, AdaMuon, DeltaMomentum, Muon, PreconditionedMomentum
from circadia.optim.rules import Momentum

SWEEP = {
    "k": (0.5, 1.0, 2.0, 5.0),
    "a": (0.5, 1.0, 2.0),
    "w": (1.0, 2.0, 4.0),
    "lr": (0.001, 0.003, 0.01, 0.03, 0.1),
    "decay": (0.5, 0.9, 0.95, 0.99),
}
START = (-3.5, 2.0)
REACHED = 1e-2  # of psi, whose optimum is 0; a path has reached it when it stays below
FORMS = ("momentum", "delta", "delta, g as it is")


def psi(w: Tensor, k: Tensor, a: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 53 and its gradient, for points [n, 2]."""
    r, theta = w.unbind(-1)
    inner = r - theta + a * (omega * r).sin()
    slope = 2 * k * inner
    by_r = 2 * r + slope * (1 + a * omega * (omega * r).cos())
    return r.square() + k * inner.square(), torch.stack([by_r, -slope], -1)


def valley(steps: int) -> dict[str, Any]:
    """Every setting at once, each a row."""
    settings = torch.tensor(list(product(*SWEEP.values())), dtype=torch.float64)
    k, a, omega, lr, decay = settings.unbind(-1)
    paths = {}
    for form in FORMS:
        w = torch.tensor(START, dtype=torch.float64).expand(len(settings), 2).clone()
        state, path = {"momentum": torch.zeros_like(w)}, [w]
        for _ in range(steps):
            _, g = psi(w, k, a, omega)
            w, state = torch.vmap(lambda *row, form=form: _move(form, *row))(w, g, state, lr, decay)
            path.append(w)
        paths[form] = torch.stack(path, 1)
    values = {form: psi(path, k[:, None], a[:, None], omega[:, None])[0] for form, path in paths.items()}
    times = {form: reached(value) for form, value in values.items()}
    result: dict[str, Any] = {"sweep": SWEEP, "steps": steps, "reached": REACHED, "settings": len(settings)}
    for form in FORMS[1:]:
        result[form] = {
            "same": compare(times["momentum"], times[form]),
            "best": compare(best(settings, times["momentum"]), best(settings, times[form])),
            "by": {name: by(settings[:, i], times, form) for i, name in enumerate(SWEEP)},
        }
    shown = example(times, steps)
    result["example"] = {
        "setting": dict(zip(SWEEP, settings[shown].tolist())),
        "paths": {form: path[shown].tolist() for form, path in paths.items() if path[shown].isfinite().all()},
        "psi": {form: value[shown].tolist() for form, value in values.items() if value[shown].isfinite().all()},
    }
    return result


def _move(form: str, w: Tensor, g: Tensor, state: dict[str, Tensor], lr: Tensor, decay: Tensor) -> Any:
    if form == "delta, g as it is":  # m (alpha - g^T g) + g with no normalisation, as eq. 49 is printed
        m = state["momentum"]
        m = decay * m - (m @ g) * g + g
        return w - lr * m, {"momentum": m}
    return Momentum(lr=lr, decay=decay, erase=float(form == "delta"))(w, g, state)


def reached(values: Tensor) -> Tensor:
    """The first step from which on a path stays below `REACHED`; infinity if it does not."""
    bad = ~(values < REACHED)
    last = bad.shape[1] - 1 - bad.flip(1).to(torch.int8).argmax(1)
    first = torch.where(bad.any(1), last + 1, 0)
    return torch.where(first < values.shape[1], first.double(), torch.inf)


def compare(momentum: Tensor, delta: Tensor) -> dict[str, float]:
    """Shares of the settings."""
    some = momentum.isfinite() | delta.isfinite()
    return {
        "delta first": (delta < momentum).double().mean().item(),
        "together": ((delta == momentum) & some).double().mean().item(),
        "momentum first": (momentum < delta).double().mean().item(),
        "neither": (~some).double().mean().item(),
    }


def best(settings: Tensor, times: Tensor) -> Tensor:
    """Of each (k, a, w) the fewest steps over all rates and decays."""
    return times.reshape(-1, len(SWEEP["lr"]) * len(SWEEP["decay"])).amin(1)


def by(column: Tensor, times: dict[str, Tensor], form: str) -> dict[str, dict[str, float]]:
    found = {}
    for value in column.unique().tolist():
        rows = column == value
        found[f"{value:g}"] = compare(times["momentum"][rows], times[form][rows])
    return found


def example(times: dict[str, Tensor], steps: int) -> int:
    """A setting to draw: where momentum is at its median of those that both reach, so that neither side chose it."""
    both = times["momentum"].isfinite() & times["delta"].isfinite()
    rows = both.nonzero().flatten()
    return int(rows[times["momentum"][rows].argsort()[len(rows) // 2]])


TASK_RATES = tuple(10.0 ** (i / 2) for i in range(-6, 3))
Make = Callable[[nn.Module, float], torch.optim.Optimizer]
LEARNERS: dict[str, Make] = {
    "SGD": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
    "momentum": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
    "AdamW": lambda model, lr: torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0),
    "Muon": lambda model, lr: Muon(model.parameters(), lr=lr, weight_decay=0.0),
    "AdaMuon": lambda model, lr: AdaMuon(model.parameters(), lr=lr, weight_decay=0.0),
    "M3": lambda model, lr: M3(model.parameters(), lr=lr),
    "M3 literal": lambda model, lr: M3(model.parameters(), lr=lr, mode="literal", betas=(0.9, 0.9), weights=(1, 1)),
    "DGD": lambda model, lr: DGD(model, lr=lr),
    "DGD, erase 0": lambda model, lr: DGD(model, lr=lr, erase=0.0),
    "delta momentum": lambda model, lr: DeltaMomentum(model.parameters(), lr=lr),
    "preconditioned": lambda model, lr: PreconditionedMomentum(model.parameters(), lr=lr),
    "DMGD": lambda model, lr: DMGD(model.parameters(), lr=lr),
}


def tasks(steps: int, seeds: int, count: int = 4, width: int = 16, out: int = 8) -> dict[str, Any]:
    """For each optimizer the rate whose mean loss over all tasks at the end is least, on a seed of its own."""
    found = {}
    for name, make in LEARNERS.items():
        ends = {lr: _stream(make, lr, steps, 1000, count, width, out)[-1].mean().item() for lr in TASK_RATES}
        lr = min(ends, key=lambda rate: ends[rate] if ends[rate] == ends[rate] else float("inf"))
        curves = torch.stack([_stream(make, lr, steps, seed, count, width, out) for seed in range(seeds)])
        own = torch.stack([curves[:, (i + 1) * steps, i] for i in range(count)], 1)  # at the end of its own phase
        final = curves[:, -1]
        found[name] = {
            "lr": lr,
            "first_task": curves[:, :, 0].mean(0).tolist(),
            "learned": own.mean().item(),
            "final": final.mean().item(),
            "forgotten": (final - own)[:, :-1].mean().item(),
            "final_of_seeds": final.mean(1).tolist(),
        }
    return {"tasks": count, "steps": steps, "seeds": seeds, "width": width, "rates": TASK_RATES, "optimizers": found}


def _stream(make: Make, lr: float, steps: int, seed: int, count: int, width: int, out: int) -> Tensor:
    """Losses [steps, tasks], each relative to that of W = 0."""
    g = torch.Generator().manual_seed(seed)
    # No axis of the weights belongs to a task, which an element-wise optimizer would profit from.
    basis = torch.linalg.qr(torch.randn(width, width, generator=g)).Q.chunk(count)
    target = torch.randn(out, width, generator=g)
    layer = nn.Linear(width, out, bias=False)
    layer.weight.data.zero_()
    optimizer = make(layer, lr)

    def losses() -> Tensor:
        with torch.no_grad():
            gap = (layer.weight - target) @ torch.cat(basis).mT
        return gap.square().reshape(out, count, -1).mean((0, 2)) / (target @ torch.cat(basis).mT).square().mean()

    curve = [losses()]
    for rows in basis:
        for _ in range(steps):
            x = torch.randn(16, len(rows), generator=g) @ rows
            optimizer.zero_grad()
            (layer(x) - x @ target.mT).square().mean().backward()
            optimizer.step()
            curve.append(losses())
    return torch.stack(curve)


MOMENTA: dict[str, Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum 0.9": lambda params: torch.optim.SGD(params, lr=1.0, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1.0, weight_decay=0.0),
    "Muon": lambda params: Muon(params, lr=1.0, weight_decay=0.0),
    # A sign does not see a small change.
    "AdaMuon, no sign": lambda params: AdaMuon(params, lr=1.0, weight_decay=0.0, sign=False),
    "M3": lambda params: M3(params, lr=1.0),
    "M3 literal": lambda params: M3(params, lr=1.0, mode="literal", betas=(0.9, 0.9), weights=(1.0, 1.0)),
    "delta momentum": lambda params: DeltaMomentum(params, lr=1.0),
    "preconditioned": lambda params: PreconditionedMomentum(params, lr=1.0),
    "DMGD": lambda params: DMGD(params, lr=1.0),
}


def lags(steps: int, seeds: int, rows: int = 6, columns: int = 8) -> dict[str, Any]:
    """|change of the last step| / |change of the gradient| for a gradient of so many steps ago, its sum over lags 1."""
    near = min(64, steps)
    far = sorted({round(near * (steps / near) ** (i / 24)) for i in range(25)} - {near, steps}) if steps > near else []
    ages = [*range(near), *far]
    widths = [1.0] * near
    for i in range(len(far)):  # each stands for the lags around it
        after = far[i + 1] if i + 1 < len(far) else steps
        before = far[i - 1] if i else near
        widths.append((after - before) / 2)
    found = {}
    for name, make in MOMENTA.items():
        weights = torch.stack([_response(make, ages, steps, seed, rows, columns) for seed in range(seeds)]).mean(0)
        share = weights * torch.tensor(widths, dtype=torch.float64)
        total = share.cumsum(0) / share.sum()
        found[name] = {
            "weights": (weights / share.sum()).tolist(),
            **{f"steps_to_{p}%": ages[int((total < p / 100 - 1e-12).sum())] + 1 for p in (50, 90, 99)},
        }
    return {"steps": steps, "seeds": seeds, "ages": ages, "optimizers": found}


def _response(make: Any, ages: list[int], steps: int, seed: int, rows: int, columns: int, size: float = 1e-5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    change = torch.randn(rows, columns, generator=g, dtype=torch.float64)
    change = change / change.norm() * size
    params = [nn.Parameter(torch.zeros(rows, columns, dtype=torch.float64)) for _ in range(len(ages) + 1)]
    optimizer = make(params)
    before = params
    for step in range(steps):
        grad = torch.randn(rows, columns, generator=g, dtype=torch.float64)
        for p in params:
            p.grad = grad.clone()
        if (age := steps - 1 - step) in ages:
            params[ages.index(age)].grad.add_(change)
        if step == steps - 1:
            before = [p.detach().clone() for p in params]
        optimizer.step()
    moved = [p.detach() - x for p, x in zip(params, before)]
    return torch.stack([(x - moved[-1]).norm() / size for x in moved[:-1]])


def main(argv: Sequence[str] | None = None) -> int:
    parser = harness.Parser(prog="python -m benchmarks.toys", description="The toys of Nested Learning, section 4.")
    parser.add_argument("--out", type=Path, default=Path("runs/toys"), help="folder for the picture and the numbers")
    parser.add_argument("--quick", action="store_true", help="few steps, for trying it out")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {args.out} cannot be made ({error.strerror}): give another folder")
    from benchmarks import toys_picture

    torch.set_num_threads(1)  # tiny matrices
    begin = time.perf_counter()
    results = {
        "benchmark": "toys",
        "machine": harness.machine("cpu"),
        "valley": valley(200 if args.quick else 1000),
        "tasks": tasks(20 if args.quick else 60, 2 if args.quick else 3),
        "lags": lags(250 if args.quick else 650, 1),
    }
    results["seconds"] = round(time.perf_counter() - begin, 1)
    harness.write_json(args.out / "toys.json", _finite(results))
    toys_picture.draw(results, args.out / "toys.png")
    for line in toys_picture.says(results):
        print(line)
    print(f"wrote {args.out / 'toys.json'} and toys.png after {results['seconds']:.0f} s")
    return 0


def _finite(x: Any) -> Any:
    """JSON knows no infinity: null stands for it."""
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [_finite(value) for value in x]
    return None if isinstance(x, float) and not abs(x) < float("inf") else x


if __name__ == "__main__":
    sys.exit(main())
