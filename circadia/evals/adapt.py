"""Adaptation: are starts, rates and decays that were learned for learning worth more than as many plain steps?

All arms start from the same trained base, and train for the same number of steps on the same rows in the same order:

    control       plain next-token training; reads chunks that see nothing before them
    unadapted     the control's weights; learns while it reads, at the rate that is best on text kept back
    rates only    the control's weights; rates and decays alone are learned, in a quarter more steps
    first order   everything is learned with inner updates on; inner gradients count as constants
    second order  the same with the exact gradient

Then each reads sequences of authors that nobody trained on ("novels"), and of other kinds of text. Attention ends with
the chunk and the memory with the sequence, so that what a later chunk gains is what the memory holds of earlier ones.
"""

import math
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.evals import fit, plots, streams
from circadia.evals.metrics import mean, spread
from circadia.evals.read import Text, base_model, encoder
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.models.retrofit import RetrofitModel, adapt, retrofit

CHUNK = 256
CONTROL, UNADAPTED = "control", "unadapted"
ARMS = (CONTROL, UNADAPTED, "rates only", "first order", "second order")
LEVELS: dict[str, Any] = {"periods": [CHUNK], "context": 0, "layers": "last:2", "anchor": "base", "decay": 0.01}
RATE = 0.3  # where learned rates begin
RATES = (0.1, 0.3, 1.0, 3.0)  # that the unadapted arm chooses from
BATCH, CHUNKS = 4, 8  # of a training step
OF_EACH = 128  # kilobytes of a novel, of which the last tenth is kept back
OTHER = ("legal", "medical", "code")
PLACES = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 24), (25, 32))  # chunks of a sequence, from 1 on


def runs(options: Options, done: list[Record]) -> list[Run]:
    bases = options.base_folders()
    for name in ("novels100", "domains"):
        options.folder(name)
    common = {
        "steps": options.steps or options.pick(40, 400, 2000),
        "sequences": options.pick(8, 64, 64),  # of the novels, and half as many of each other text
        "chunks": options.pick(16, 32, 32),
    }
    arms = options.chosen(ARMS, ARMS)
    arms = tuple(arm for arm in ARMS if arm in {CONTROL, UNADAPTED, *arms})  # what the others are compared with
    seeds = options.seeds or options.pick(1, 2, 3)
    return [
        {"base": base, "seed": seed, "arm": arm, **common} for base in bases for seed in range(seeds) for arm in arms
    ]


def run(run: Run, options: Options) -> dict[str, Any]:
    folder, data = options.base_folders()[run["base"]], options.folder("novels100").parent
    began = time.perf_counter()
    arm, steps = run["arm"], run["steps"]
    facts: dict[str, Any] = {}
    if arm in (CONTROL, UNADAPTED, "rates only"):
        model, facts = _control(folder, data, steps, run["seed"], options.device)
        if arm == "rates only":
            model = _retrofit(model.base, RATE).adapting(first_order=False, train="rates")
            facts = _train(model, _rows(model, folder, data), steps // 4, run["seed"] + 1, _second)
    else:
        model = _retrofit(base_model(folder).to(options.device), RATE)
        model.adapting(first_order=arm == "first order")
        loss = _second if arm == "second order" else _first
        facts = _train(model, _rows(model, folder, data), steps, run["seed"], loss)
    encode = encoder(folder, model)
    if arm == UNADAPTED:
        kept = _sequences([encode(_kept(data))], 8, CHUNKS).to(options.device)
        tried = {rate: float(nats(_retrofit(model.base, rate), kept).mean()) for rate in RATES}
        model = _retrofit(model.base, min(tried, key=tried.__getitem__))
        facts = {**facts, "tried": list(tried.items())}
    trained = time.perf_counter() - began
    found: dict[str, Any] = {}
    for kind, names in {"novels": streams.HELD_OUT, **{name: (name,) for name in OTHER}}.items():
        texts = [encode(streams.source_text(data, name)) for name in names]
        count = run["sequences"] if kind == "novels" else run["sequences"] // 2
        rows = _sequences(texts, count, run["chunks"]).to(options.device)
        # Bits of a mean token, by bytes of a mean token.
        scale = sum(len(t.tokens) for t in texts) / sum(t.bytes for t in texts) / math.log(2)
        found[kind] = (by_chunk(nats(model, rows, learns=arm != CONTROL)) * scale).tolist()
    learned = model.learned.rates(model, 0) if model.learned is not None else ({}, {})
    rates, decays = ({n: round(float(x), 5) for n, x in part.items()} for part in learned)
    return {
        "bits": {kind: [[round(x, 5) for x in row] for row in rows] for kind, rows in found.items()},
        "rate": model.settings.levels[0].rate,
        "rates": rates,
        "decays": decays,
        "seconds_training": round(trained, 1),
        **facts,
    }


def _retrofit(base: Any, rate: float) -> RetrofitModel:
    return retrofit(base, rate=rate, **LEVELS)


@lru_cache(maxsize=1)
def _control(folder: Path, data: Path, steps: int, seed: int, device: str) -> tuple[RetrofitModel, dict[str, Any]]:
    """Trained once for the arms that stand on it."""
    model = _retrofit(base_model(folder).to(device), RATE)
    model.base.requires_grad_(True)
    facts = _train(model, _rows(model, folder, data), steps, seed, lambda model, rows: blind(model, rows).mean())
    model.base.requires_grad_(False)
    return model, facts


def _train(
    model: RetrofitModel, rows: Tensor, steps: int, seed: int, loss: Callable[[RetrofitModel, Tensor], Tensor]
) -> dict[str, Any]:
    """Every arm sees the same rows in the same order."""
    generator = fit.start(seed, str(rows.device))
    order = torch.randint(len(rows), (max(1, steps), BATCH), generator=generator)
    recipe = fit.Recipe(steps=max(1, steps), rate=2e-3, warm=10, floor=0.05)
    facts = fit.fit(model, lambda step: loss(model, rows[order[step - 1]]), recipe)
    if model.learned is not None:
        model.learned.close(model)
    return facts


def _first(model: RetrofitModel, rows: Tensor) -> Tensor:
    return model.adapt_loss(rows, first_order=True)


def _second(model: RetrofitModel, rows: Tensor) -> Tensor:
    return model.adapt_loss(rows)


def _rows(model: RetrofitModel, folder: Path, data: Path) -> Tensor:
    """What is trained on: the novels of the base's own authors, without their last tenths."""
    length = CHUNK * CHUNKS
    encode = encoder(folder, model)
    parts = [encode(text[: 9 * len(text) // 10]).tokens for text in streams.own_novels(data, OF_EACH)]
    rows = [part[: len(part) // length * length].view(-1, length) for part in parts if len(part) >= length]
    if not rows:
        raise ValueError(f"no novel in {data}/novels100 has {length:,} tokens: give longer ones")
    return torch.cat(rows).to(model.device)


def _kept(data: Path) -> bytes:
    """The last tenths: to choose a rate on."""
    return b"".join(text[9 * len(text) // 10 :] for text in streams.own_novels(data, OF_EACH))


def _sequences(texts: list[Text], count: int, chunks: int) -> Tensor:
    """So many sequences, spread evenly over each text."""
    length, found = chunks * CHUNK, []
    for i, text in enumerate(texts):
        own = count // len(texts) + (i < count % len(texts))
        if len(text.tokens) < own * length:
            raise ValueError(f"a text of {len(text.tokens):,} tokens is too short for {own} sequences of {length:,}")
        step = len(text.tokens) // max(1, own)
        found += [text.tokens[k * step : k * step + length] for k in range(own)]
    return torch.stack(found)


def blind(model: RetrofitModel, rows: Tensor) -> Tensor:
    """Nats [B, T - 1] of the base, whose chunks see only the token before them."""
    first, rest = rows[:, :CHUNK], rows[:, CHUNK - 1 :].unfold(1, CHUNK + 1, CHUNK)
    parts = [_nats(model.base(first[:, :-1], use_cache=False).logits, first[:, 1:])]
    if rest.shape[1]:
        flat = rest.flatten(0, 1)
        parts.append(_nats(model.base(flat[:, :-1], use_cache=False).logits, flat[:, 1:]).view(len(rows), -1))
    return torch.cat(parts, 1)


@torch.no_grad()
def nats(model: RetrofitModel, rows: Tensor, learns: bool = True) -> Tensor:
    """Nats [B, T - 1], each sequence with a memory of its own that begins empty."""
    found = []
    for part in rows.split(8):
        found.append(_nats(adapt.run(model, part, second=False)[:, :-1], part[:, 1:]) if learns else blind(model, part))
    return torch.cat(found)


def _nats(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)


def by_chunk(found: Tensor) -> Tensor:
    """Means [B, chunks] of nats [B, T - 1]; the first chunk lacks its first token."""
    first, rest = found[:, : CHUNK - 1], found[:, CHUNK - 1 :]
    return torch.cat((first.mean(1, keepdim=True), rest.unflatten(1, (-1, CHUNK)).mean(2)), 1)


def gains(records: list[Record], arm: str, kind: str, place: tuple[int, int], over: str = CONTROL) -> list[float]:
    """Bits by which an arm is better than another one at these chunks, sequence by sequence, over bases and seeds."""
    found = []
    for one in records:
        if one.run["arm"] == arm:
            pair = [r for r in records if r.run == {**one.run, "arm": over}]
            for rows in zip(*(r.scores["bits"][kind] for r in [*pair, one])) if pair else ():
                parts = [row[place[0] - 1 : place[1]] for row in rows]
                if parts[0]:
                    found.append(mean(parts[0]) - mean(parts[1]))
    return found


def table(records: list[Record]) -> list[Table]:
    if not records:
        return []
    arms = [arm for arm in ARMS if any(r.run["arm"] == arm for r in records)]
    last = max(r.run["chunks"] for r in records)
    places = [place for place in PLACES if place[0] <= last]
    return [part for part in (_novels(records, arms, places), _others(records, arms, last)) if part.rows]


def _novels(records: list[Record], arms: list[str], places: list[tuple[int, int]]) -> Table:
    rows = []
    late = places[-1]
    plain = gains(records, UNADAPTED, "novels", late)
    for arm in arms:
        own = [r for r in records if r.run["arm"] == arm]
        bits = mean([mean(row) for r in own for row in r.scores["bits"]["novels"]])
        cells = [_error(gains(records, arm, "novels", place)) for place in places]
        more = gains(records, arm, "novels", late)
        share = f"{100 * (mean(more) / mean(plain) - 1):+.0f} %" if more and plain and mean(plain) > 0 else "-"
        seconds = mean([r.scores["train_seconds"] / max(1, r.scores["steps"]) for r in own])
        rows.append((arm, f"{bits:.3f}", *cells, share if arm not in (CONTROL, UNADAPTED) else "", f"{seconds:.2f}"))
    names = [f"chunk {a}" if a == b else f"chunks {a}-{b}" for a, b in places]
    columns = ("arm", "bits per byte", *names, f"{names[-1]}, over unadapted", "s / step")
    steps = sorted({r.run["steps"] for r in records})
    pairs = len({(r.run["base"], r.run["seed"]) for r in records})
    note = (
        f"Gain in bits per byte over the control after {', '.join(map(str, steps))} steps, ± its standard error over "
        f"sequences; the last share is of the gain. Bases and seeds: {pairs}."
    )
    return Table("Held-out novels, by place in the sequence", columns, rows, (note,))


def _others(records: list[Record], arms: list[str], last: int) -> Table:
    rows = []
    for arm in arms:
        cells = [_error(gains(records, arm, kind, (1, last))) for kind in OTHER]
        both = [x for kind in OTHER for x in gains(records, arm, kind, (1, last), over=UNADAPTED)]
        rows.append((arm, *cells, "" if arm in (CONTROL, UNADAPTED) else _error(both)))
    columns = ("arm", *OTHER, "all, over unadapted")
    return Table("Other text: gain over the control", columns, rows, ("Bits per byte over whole sequences.",))


def _error(values: list[float]) -> str:
    if not values:
        return "-"
    around = spread(values)
    return f"{mean(values):+.3f}" + ("" if around is None else f" ±{around / len(values) ** 0.5:.3f}")


def plot(records: list[Record], path: Path) -> None:
    """Gain over the control by place, on novels and on other text."""
    if not records:
        return
    last = max(r.run["chunks"] for r in records)
    panels: dict[str, dict[str, dict[float, list[float]]]] = {}
    for title, kinds in {"held-out novels": ("novels",), "law, medicine, code": OTHER}.items():
        curves = panels.setdefault(title, {})
        for arm in ARMS:
            for a, b in PLACES:
                found = [x for kind in kinds for x in gains(records, arm, kind, (a, b))] if a <= last else []
                if found:
                    curves.setdefault(arm, {})[(a + min(b, last)) / 2] = [mean(found)]
    plots.lines(panels, "chunk of the sequence", "gain over the control, bits per byte", path, log=False)


SUITE = Suite(
    name="adapt",
    summary="a base adapted to learning, first or second order, against as many plain steps: gain while it reads",
    needs=Needs(
        data=("novels100", "domains"),
        time={"quick": "6 minutes", "default": "hours", "full": "hours"},
        models=ARMS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
