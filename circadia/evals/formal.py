"""Formal languages: Table 5 of the paper, word problems of groups, regular tasks of Deletang et al. 2023.

Trained on short strings, tested on new ones as long (Bin0) and longer (Bin1). A string counts if every answer in it is
right.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.evals import fit, languages, networks, plots
from circadia.evals.languages import LANGUAGES, Language, Pool
from circadia.evals.metrics import mean, percent
from circadia.evals.suite import Needs, Options, Record, Run, Suite, Table
from circadia.evals.tuning import group, tested, tuned
from circadia.models import HopeForCausalLM

TABLE_5 = ("parity", "(aa)*", "(abab)*", "a^n b^n", "a^n b^n c^n", "shuffle-2")
MODELS = ("hope", "transformer++", "linear", "deltanet", "deltanet-positive", "lstm", "srwm")
OFFERED = networks.NAMES
CHUNK = 16
TRAINED, LONGER = (2, 50), (52, 100)
TRAINED_LAST, LONGER_LAST = (1, 40), (41, 100)  # of Deletang's tasks; up to 500 in the paper's protocol
WIDTH, HEADS = 32, 2
TRAINING = 10_000  # strings
VALID = 256  # strings of a bin for tuning and for stopping
RATES = (0.01, 0.003, 0.001)

_ALL = (100.0, 100.0)
_NONE = (0.0, 0.0)
# Table 5: Bin0 and Bin1 in per cent.
PUBLISHED: dict[tuple[str, str], tuple[float, float]] = {
    **{(task, model): _ALL for task in TABLE_5 for model in ("lstm", "srwm", "hope")},
    **{(task, model): _ALL for task in TABLE_5[3:] for model in ("transformer++", "linear", "deltanet-positive")},
    **{(task, model): _NONE for task in TABLE_5[1:3] for model in ("transformer++", "linear", "deltanet-positive")},
    ("parity", "transformer++"): (46.4, 0.0),
    ("parity", "linear"): (78.1, 0.0),
    ("parity", "deltanet-positive"): (98.2, 10.1),
}


def runs(options: Options, done: list[Record]) -> list[Run]:
    tasks = options.pick(TABLE_5[:2], tuple(LANGUAGES), tuple(LANGUAGES))
    models = options.chosen(OFFERED, options.pick(("hope", "transformer++", "deltanet"), MODELS, MODELS))
    common = {
        "steps": options.steps or options.pick(300, 600, 20_000),
        "batch": options.pick(32, 32, 128),
        "strings": options.pick(512, 1024, 2000),  # tested in each bin
        "longest": options.pick(100, 100, 500),  # of Deletang's tasks
    }
    cells = [{"model": model, "task": task, **common} for task in tasks for model in models]
    rates = options.pick(RATES[:2], RATES, RATES)
    return tuned(cells, options.seeds or options.pick(1, 3, 5), rates, done, _goal)


def _goal(scores: dict[str, Any]) -> float:
    """Strings and single answers of both bins, on strings for validation."""
    return mean([x for bin_ in scores["valid"].values() for x in bin_.values()])


def run(run: Run, options: Options) -> dict[str, Any]:
    language = LANGUAGES[run["task"]]
    generator = fit.start(run["seed"], options.device)
    shape = shape_of(language)
    net = networks.build(run["model"], shape).to(options.device)
    train, valid, test = data(run["task"], run["seed"], run["strings"], run["longest"])
    whole = train.to(options.device)

    def loss(step: int) -> Tensor:
        return _loss(net, whole.rows(torch.randint(len(whole), (run["batch"],), generator=generator)))

    def perfect() -> bool:
        return all(score(net, part, options.device)["strings"] == 1.0 for part in valid.values())

    trained = fit.fit(net, loss, fit.Recipe(run["steps"], run["rate"]), perfect)
    return {
        **trained,
        **networks.size(run["model"], shape, TRAINED[1]),
        "valid": {name: score(net, part, options.device) for name, part in valid.items()},
        "test": {name: score(net, part, options.device) for name, part in test.items()},
        "majority": {name: constant(train, part) for name, part in test.items()},
        "chance": {name: chance(language, part) for name, part in test.items()},
    }


def shape_of(language: Language) -> networks.Shape:
    """One layer of width 32; outputs are read from the logits of the first symbols."""
    symbols = max(language.symbols, language.classes)
    own = {"chunk": CHUNK, "tie_word_embeddings": False}
    return networks.Shape(symbols, width=WIDTH, layers=1, heads=HEADS, own=own)


@lru_cache(maxsize=2)
def data(name: str, seed: int, count: int, longest: int) -> tuple[Pool, dict[str, Pool], dict[str, Pool]]:
    """Strings for training, and two bins each for validation and test, all of them different.

    Of a language with one string a length Bin0 is what was trained on: there is nothing else.
    """
    language = LANGUAGES[name]
    short, long = (TRAINED_LAST, (LONGER_LAST[0], longest)) if language.last else (TRAINED, LONGER)
    train = languages.strings(language, TRAINING, *short, seed)
    seen = frozenset() if language.few else frozenset(train)
    parts: list[dict[str, Pool]] = []
    for n in (VALID, count):
        bins = {}
        for name, span in (("Bin0", short), ("Bin1", long)):
            # One seed for all runs with the same number: every model sees the same strings.
            words = languages.strings(language, n, *span, seed + 10_000 * (len(parts) + 1), seen)
            seen = seen if language.few else seen | frozenset(words)
            bins[name] = languages.pool(language, words)
        parts.append(bins)
    return languages.pool(language, train), parts[0], parts[1]


def _logits(net: HopeForCausalLM, part: Pool) -> Tensor:
    return net(part.tokens, use_cache=False).logits.float()


def _loss(net: HopeForCausalLM, part: Pool) -> Tensor:
    logits = _logits(net, part)[part.asked]
    answers = part.answers[part.asked]
    if answers.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits[:, : answers.shape[-1]], answers)
    return F.cross_entropy(logits, answers)


def right(answers: Tensor, given: Tensor) -> Tensor:
    """Which answers are right [N, T]; a set must be right in every symbol."""
    return (given == answers).all(-1) if answers.is_floating_point() else given == answers


def shares(part: Pool, given: Tensor) -> dict[str, float]:
    """Strings without a mistake, and right answers."""
    hit = right(part.answers, given)
    strings = (hit | ~part.asked).all(1)
    return {"strings": strings.float().mean().item(), "answers": hit[part.asked].float().mean().item()}


@torch.no_grad()
def score(net: HopeForCausalLM, part: Pool, device: str) -> dict[str, float]:
    given = []
    for index in torch.arange(len(part)).split(128):
        rows = Pool(part.tokens[index], part.answers[index], part.asked[index]).to(device)
        logits = _logits(net, rows)
        if part.answers.is_floating_point():
            given.append((logits[..., : part.answers.shape[-1]] > 0).float().cpu())
        else:
            given.append(logits.argmax(-1).cpu())
    return shares(part, torch.cat(given))


def constant(train: Pool, part: Pool) -> dict[str, float]:
    """What the answer would get that is most often right in training, given always."""
    answers, counts = train.answers[train.asked].unique(dim=0, return_counts=True)
    return shares(part, answers[counts.argmax()].expand_as(part.answers))


def chance(language: Language, part: Pool) -> dict[str, float]:
    """What guessing gets: one of the classes, or each symbol by a coin."""
    one = 0.5**language.classes if language.sets else 1 / language.classes
    return {"strings": (one ** part.asked.sum(1)).mean().item(), "answers": one}


def table(records: list[Record]) -> list[Table]:
    rows = []
    found = tested(records)
    for (task, model), own in group(found, "task", "model").items():
        first = own[0]
        theirs = PUBLISHED.get((task, model))
        cells = [percent([one.scores["test"][b]["strings"] for one in own]) for b in ("Bin0", "Bin1")]
        answers = percent([one.scores["test"]["Bin1"]["answers"] for one in own])
        published = "-" if theirs is None else f"{theirs[0]:g} / {theirs[1]:g}"
        steps = f"{mean([one.scores['steps'] for one in own]):.0f}"
        lost = sum(one.scores["diverged"] for one in own)
        rows.append((task, model, f"{first.scores['parameters']:,}", f"{first.scores['state_bytes']:,}",
                     f"{first.run['rate']:g}", str(len(own)), steps + (f", {lost} diverged" if lost else ""),
                     *cells, published, answers))  # fmt: skip
    for (task,), own in group(found, "task").items():
        for name in ("majority", "chance"):
            each = own[0].scores[name]
            cells = [percent([each[b]["strings"]]) for b in ("Bin0", "Bin1")]
            answers = percent([each["Bin1"]["answers"]])
            rows.append((task, f"({name})", "-", "-", "-", "-", "-", *cells, "-", answers))
    rows.sort(key=lambda row: list(LANGUAGES).index(row[0]))
    columns = ("task", "model", "parameters", "state, bytes", "rate", "seeds", "steps", "Bin0, strings %",
               "Bin1, strings %", "Table 5", "Bin1, answers %")  # fmt: skip
    notes = (
        f"One layer of width {WIDTH}, {HEADS} heads, trained in parallel with chunks of {CHUNK} tokens on {TRAINING:,} "
        "strings of 2 to 50 symbols (1 to 40 where there is one answer), tested on other strings as long (Bin0) and of "
        "52 to 100 (41 and more; Bin1). A language with one string a length is tested in Bin0 on what it was trained "
        f"on. The rate is the best of a grid on a seed that is not tested; training ends when {VALID} strings of each "
        "bin for validation are all right. State after 50 tokens. Table 5's DeltaNet has rates up to 1: here "
        "deltanet-positive; deltanet has rates up to 2, with eigenvalues down to -1.",
    )
    return [Table("Formal languages", columns, rows, notes)]


def plot(records: list[Record], path: Path) -> None:
    groups = {
        task: {
            model: [100 * x.scores["test"]["Bin1"]["strings"] for x in each]
            for (model,), each in group(own, "model").items()
        }
        for (task,), own in group(tested(records), "task").items()
    }
    if groups:
        plots.bars(groups, "longer strings right, %", path)


SUITE = Suite(
    name="formal",
    summary="formal languages (Table 5), word problems of groups, regular tasks: length generalization",
    needs=Needs(
        data=(),
        time={"quick": "4 minutes", "default": "4 hours", "full": "a day (not timed)"},
        models=MODELS,
    ),
    runs=runs,
    run=run,
    table=table,
    plot=plot,
)
