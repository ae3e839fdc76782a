"""Reading on: a retrofitted base reads real text of several sources, one after another, and learns all the way.

Every chunk is scored before it is learned. In bits per byte:

    gain    of the frozen base over the same text, minus those of the arm while it reads
    forget  of unseen text of the earlier sources at the end, minus right after each of them was read
    worse   the same against the frozen base: how much better it would have been never to have learned
    own     rise on text of the kind that the base was trained on

Arms that move more gain more and forget more, so that they are compared at equal gain: the curve of full fine-tuning
over its rates, from (0, 0) on, is interpolated at the arm's gain. A pair of a base and a stream is what a seed is
elsewhere. The stream `novels` is one book front to back, another one, and the first one again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.evals import plots, streams
from circadia.evals.metrics import mean, spread
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.models.retrofit import RetrofitModel, retrofit
from circadia.models.retrofit.build import loaded
from circadia.train.tokens import Tokenizer

CHUNK = 256
REFERENCE = "full"
_ONE = {"periods": [CHUNK], "anchor": None}
_DECAY = {"periods": [CHUNK], "anchor": "base", "decay": 0.01}
_THREE = {"periods": [256, 1024, 4096], "anchor": None}


@dataclass(frozen=True)
class Arm:
    """What `circadia.retrofit` is given, and the rates that it is tried at."""

    settings: dict[str, Any]
    rates: tuple[float, ...]
    factors: tuple[float, ...] = ()  # of the rate, level by level; a mean over a longer period deserves a longer step

    def at(self, rate: float) -> dict[str, Any]:
        return {**self.settings, "rate": [rate * factor for factor in self.factors] if self.factors else rate}


ARMS = {
    "full": Arm({**_ONE, "target": "all"}, (0.03, 0.06, 0.1)),
    "full + decay .01": Arm({**_DECAY, "target": "all"}, (0.1,)),
    "MLPs": Arm(_ONE, (0.1,)),
    "MLPs + decay .01": Arm(_DECAY, (0.2,)),
    "MLPs + decay .03": Arm({**_DECAY, "decay": 0.03}, (0.3,)),
    "MLPs clipped + decay .01": Arm({**_DECAY, "clip": 0.3}, (0.5,)),
    "MLPs clipped + decay .003": Arm({**_DECAY, "clip": 0.3, "decay": 0.003}, (0.3,)),
    "2 levels slow one keeps": Arm(
        {"periods": [256, 1024], "clip": 0.3, "anchor": "base", "decay": [0.02, 0.002]}, (1.0,), factors=(0.35, 0.15)
    ),
    "2 levels stacked": Arm(
        {"periods": [256, 1024], "anchor": "base", "decay": [0.03, 0.012]}, (0.15,), factors=(1, 2)
    ),
    "3 levels stacked": Arm(
        {"periods": [256, 1024, 4096], "anchor": "base", "decay": [0.05, 0.03, 0.02]}, (0.15,), factors=(1, 2, 4)
    ),
    "3 levels fast last + decay .01": Arm({**_THREE, "anchor": "base", "decay": 0.01, "assign": "fast-last"}, (0.6,)),
    "3 levels fast first": Arm({**_THREE, "assign": "fast-first"}, (0.6,)),
    "last 2 MLPs + decay .01": Arm({**_DECAY, "layers": "last:2"}, (0.5,)),
    "first 2 MLPs": Arm({**_ONE, "layers": "first:2"}, (0.6,)),
    "MLPs every 1024": Arm({"periods": [1024], "chunk": CHUNK, "anchor": None}, (0.6,)),
    "MLPs every 4096": Arm({"periods": [4096], "chunk": CHUNK, "anchor": None}, (1.0,)),
    "low rank 16 by AdamW": Arm({**_ONE, "capacity": "lowrank", "optimizer": "adamw"}, (0.003,)),
    "2 levels slow one fed by the fast": Arm(
        {
            "periods": [256, 1024],
            "feed": ["gradient", "faster"],
            "transfer": 0.3,
            "anchor": "base",
            "decay": [0.02, 0.02],
        },
        (0.3,),
    ),
}
QUICK = ("full", "MLPs", "MLPs + decay .01")
# What earned it in earlier runs; --full has them all.
SHOWN = ("full", "MLPs", "MLPs + decay .01", "MLPs clipped + decay .01", "last 2 MLPs + decay .01",
         "3 levels fast last + decay .01", "2 levels slow one keeps", "2 levels slow one fed by the fast")  # fmt: skip
STREAMS = ("a", "b", "c", "returning")
NOVELS = {
    "full": 0.1,
    "MLPs": 0.3,
    "MLPs + decay .01": 0.4,
    "2 levels slow one keeps": 1.0,
}  # arms of `novels`, at one rate


def runs(options: Options, done: list[Record]) -> list[Run]:
    bases = options.base_folders()
    options.folder("domains")
    arms = options.chosen(tuple(ARMS), options.pick(QUICK, SHOWN, tuple(ARMS)))
    names = STREAMS[: options.seeds or options.pick(1, len(STREAMS), len(STREAMS))]
    common = {"kilobytes": options.pick(24, 200, 200)}  # of each source
    plan = []
    # Pair by pair, so that what is done at any moment can be compared.
    for name in names:
        for base in bases:
            where = {"base": base, "stream": name, **common}
            plan.append({**where, "arm": "frozen", "rate": 0.0})
            for arm in dict.fromkeys((REFERENCE, *arms)):
                plan += [{**where, "arm": arm, "rate": rate} for rate in ARMS[arm].rates]
    if options.depth != "quick":
        cells = {"frozen": 0.0, **{arm: rate for arm, rate in NOVELS.items() if arm in arms}}
        plan += [
            {"base": base, "stream": "novels", **common, "arm": arm, "rate": rate}
            for base in bases
            for arm, rate in cells.items()
        ]
    return plan


def run(run: Run, options: Options) -> dict[str, Any]:
    folder = options.base_folders()[run["base"]]
    passages = streams.stream(options.folder("domains").parent, run["stream"], run["kilobytes"])
    frozen = run["arm"] == "frozen"
    settings = {"periods": [CHUNK]} if frozen else ARMS[run["arm"]].at(run["rate"])
    model = retrofit(base_model(folder).to(options.device), context=0, **settings)
    encode = encoder(folder, model)
    own = encode(_own(options.folder("novels100").parent))
    unseen = [encode(passage.unseen) for passage in passages]
    state = model.start()
    before = bits(model, state, own)
    read, curve, after, seconds, norms = [], [], [], 0.0, {}
    for passage, later in zip(passages, unseen):
        text = encode(passage.read)
        if frozen:
            report = model.score(text.tokens, model.fresh(state))
        else:
            report, state = model.learn(text.tokens, state)
            norms = {level.name: level.norm for level in report.levels}
        seconds += report.seconds
        # Bits of a mean token, by bytes of a mean token.
        each = [chunk.surprise / math.log(2) * len(text.tokens) / text.bytes for chunk in report.chunks]
        read.append(mean(each))
        curve.append([round(mean(each[i : i + 40]), 4) for i in range(0, len(each), 40)])
        after.append(bits(model, state, later))
    return {
        "sources": [passage.source for passage in passages],
        "read": read,
        "curve": curve,  # of every 40 chunks
        "after": after,
        "end": [bits(model, state, later) for later in unseen],
        "own_before": before,
        "own": bits(model, state, own),
        "seconds_reading": round(seconds, 2),
        "norms": norms,
        "parameters": sum(p.numel() for p in model.base.parameters()),
    }


@dataclass(frozen=True)
class Text:
    """As the base reads it."""

    tokens: Tensor
    bytes: int


def base_model(folder: Path) -> Any:
    """A base in fp32."""
    return loaded(str(folder), torch.float32)


def encoder(folder: Path, model: RetrofitModel) -> Callable[[bytes], Text]:
    """The tokenizer in the base's folder; bytes, if it knows 256 tokens."""
    known = model.config.get_text_config().vocab_size
    tokenizer = Tokenizer("bytes" if known == 256 else str(folder))

    def encode(text: bytes) -> Text:
        if tokenizer.bytes:
            return Text(torch.frombuffer(bytearray(text), dtype=torch.uint8).long(), len(text))
        tokens, _ = tokenizer.encode(text.decode("utf-8", "ignore"))
        return Text(torch.tensor(tokens.astype("int64")), len(text))

    return encode


@lru_cache(maxsize=1)
def _own(data: Path) -> bytes:
    return streams.own_text(data)


@torch.no_grad()
def bits(model: RetrofitModel, state: dict[str, Tensor], text: Text) -> float:
    """Bits per byte in windows that see nothing before them, with the memory worn and nothing learned."""
    count = (len(text.tokens) - 1) // CHUNK
    rows = text.tokens[: count * CHUNK + 1].unfold(0, CHUNK + 1, CHUNK).to(model.device)
    nats = 0.0
    with model.wearing(state) as base:
        for part in rows.split(16):
            logits = base(part[:, :-1], use_cache=False).logits.float()
            nats += float(F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return nats / math.log(2) / (count * CHUNK * text.bytes / len(text.tokens))


@dataclass(frozen=True)
class Point:
    """One run beside the frozen base of the same stream."""

    arm: str
    rate: float
    pair: tuple[str, str]  # base and stream
    gain: float
    forget: float
    worse: float
    own: float
    seconds: float


def points(records: list[Record]) -> list[Point]:
    """All arms whose frozen base has been scored on the same stream."""
    frozen = {(r.run["base"], r.run["stream"]): r for r in records if r.run["arm"] == "frozen"}
    found = []
    for one in records:
        pair = one.run["base"], one.run["stream"]
        if one.run["arm"] == "frozen" or pair not in frozen or one.run["stream"] == "novels":
            continue
        s, f = one.scores, frozen[pair].scores
        last = len(s["read"]) - 1  # nothing comes after the last source
        found.append(
            Point(
                arm=one.run["arm"],
                rate=one.run["rate"],
                pair=pair,
                gain=mean(f["read"]) - mean(s["read"]),
                forget=mean(s["end"][:last]) - mean(s["after"][:last]),
                worse=mean(s["end"][:last]) - mean(f["end"][:last]),
                own=s["own"] - s["own_before"],
                seconds=s["seconds_reading"] / f["seconds_reading"],
            )
        )
    return found


def at_gain(curve: list[Point], gain: float, what: str) -> float | None:
    """A reference's forgetting or harm where its gain is this one, on straight lines between its rates.

    The curve begins at no gain and no harm, and ends at its largest gain: a rate beyond that only does harm.
    """
    way = [(0.0, 0.0)]
    for point in sorted(curve, key=lambda p: p.rate):
        if point.gain <= way[-1][0]:
            break
        way.append((point.gain, getattr(point, what)))
    for (left, a), (right, b) in pairwise(way):
        if left < gain <= right:
            return a + (b - a) * (gain - left) / (right - left)
    return None


def ratios(found: list[Point], arm: str, rate: float, what: str) -> list[float]:
    """Of an arm's forgetting or harm to the reference's at the same gain, for every pair in reach of the reference."""
    values = []
    for point in found:
        if (point.arm, point.rate) == (arm, rate):
            same = [p for p in found if p.arm == REFERENCE and p.pair == point.pair]
            at = at_gain(same, point.gain, what)
            if at is not None and at > 0:
                values.append(getattr(point, what) / at)
    return values


def table(records: list[Record]) -> list[Table]:
    return [part for part in (_streams(records), _novels(records)) if part.rows]


def _streams(records: list[Record]) -> Table:
    found = points(records)
    rows = []
    for arm, rate in dict.fromkeys((p.arm, p.rate) for p in found):
        own = [p for p in found if (p.arm, p.rate) == (arm, rate)]
        plain = [_pm([getattr(p, what) for p in own]) for what in ("gain", "forget", "worse", "own")]
        compared = [_pm(ratios(found, arm, rate, what), len(own)) for what in ("forget", "own")]
        rows.append((arm, f"{rate:g}", str(len(own)), *plain, *compared, f"{mean([p.seconds for p in own]):.1f}"))
    columns = ("arm", "rate", "n", "gain", "forget", "worse than never", "own text", "forget / full", "own / full",
               "time / reading")  # fmt: skip
    note = (
        f"Bits per byte, mean ± standard deviation over {len({p.pair for p in found})} pairs of a base and a stream. "
        "The two ratios are to full fine-tuning without decay at the same gain, interpolated pair by pair; where its "
        "largest gain is smaller the pair is left out, and brackets say so. Times are of a machine that did other "
        "things as well."
    )
    return Table("Sources one after another", columns, rows, (note,))


def _novels(records: list[Record]) -> Table:
    """By fifths of the first book, and its second reading."""
    rows: list[tuple[str, ...]] = []
    for one in records:
        if one.run["stream"] == "novels":
            first, _, again = one.scores["curve"]
            parts = [mean(first[i * len(first) // 5 : (i + 1) * len(first) // 5]) for i in range(min(5, len(first)))]
            rows.append(
                (one.run["base"], one.run["arm"], f"{one.run['rate']:g}", " ".join(f"{x:.3f}" for x in parts),
                 f"{mean(first):.3f}", f"{mean(again):.3f}", f"{mean(first) - mean(again):.3f}")
            )  # fmt: skip
    columns = ("base", "arm", "rate", "fifths of a book", "the book", "the same again", "gained")
    return Table("A held-out novel, another one, and the first one again", columns, rows, ("Bits per byte.",))


def _pm(values: list[float], of: int | None = None) -> str:
    if not values:
        return "out of reach"
    around = spread(values)
    text = f"{mean(values):.2f}" + ("" if around is None else f" ±{around:.2f}")
    return text if of is None or of == len(values) else f"{text} ({len(values)} of {of})"


def plot(records: list[Record], path: Path) -> None:
    """Gain against forgetting and against harm; the points of an arm are its rates, from the smallest up."""
    found = points(records)
    if not found:
        return
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for what, title in (
        ("forget", "forgetting of earlier sources, bits"),
        ("own", "harm to the base's own text, bits"),
    ):
        curves = panels.setdefault(title, {})
        for arm, rate in sorted(
            {(p.arm, p.rate) for p in found}, key=lambda cell: (list(ARMS).index(cell[0]), cell[1])
        ):
            own = [p for p in found if (p.arm, p.rate) == (arm, rate)]
            start = [(0.0, 0.0)] if arm == REFERENCE else []
            curves.setdefault(arm, start).append((mean([p.gain for p in own]), mean([getattr(p, what) for p in own])))
    plots.ways(panels, REFERENCE, "gain while reading, bits per byte", path)


SUITE = Suite(
    name="read",
    summary="a retrofitted base reads sources one after another: gain, forgetting and harm, at equal gain",
    needs=Needs(
        data=("domains", "novels100", "lm"),
        time={"quick": "5 minutes", "default": "hours", "full": "hours"},
        models=tuple(ARMS),
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
