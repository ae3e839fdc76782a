"""Self-edits of SEAL's ARC protocol: how a model trains itself on the demonstrations of one task.

An edit says which views of the task are learned, which tokens, at which rate and how often. It is tried in a memory of
its own that begins empty with every task. Candidates are judged before they are tried by the gradients of what they
would show (circadia/sleep/dream.py), and a policy over them is learned by ReST-EM: of the tasks for practice, what
helped most is done more often. SEAL's edits are written by a language model; here each field is drawn from a table,
which is all of the policy that an edit of six choices has.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from circadia.evals import grids
from circadia.evals.grids import Pair, Puzzle
from circadia.models.retrofit import RetrofitModel
from circadia.sleep.dream import Dreaming, chosen, flat, worth
from circadia.sleep.fit import Fit, Meter
from circadia.sleep.losses import nats, over_sequences
from circadia.sleep.sample import sample
from circadia.sleep.student import Student, Teacher, written
from circadia.sleep.windows import IGNORED, Probe, batch, scores

BATCH = 4
LOOKED = 4  # examples of an edit whose gradient is taken


@dataclass(frozen=True)
class Edit:
    """What SEAL's edits say, but for its augmentations of size, chains and repetitions."""

    turns: bool  # the eight of the square
    colours: bool  # permuted, but for black
    order: bool  # of the demonstrations
    tokens: str  # "all" or those of the outputs
    rate: float
    epochs: int

    def steps(self, examples: int) -> int:
        return self.epochs * -(-examples // BATCH)


FIELDS: dict[str, tuple] = {
    "turns": (False, True),
    "colours": (False, True),
    "order": (False, True),
    "tokens": ("all", "output"),
    "rate": (0.003, 0.01, 0.03),
    "epochs": (1, 2, 4),
}
WHOLE = (0.0003, 0.001, 0.003)  # rates where every parameter is trained
assert list(FIELDS) == [field.name for field in fields(Edit)]


def plain(rate: float) -> Edit:
    """Test-time training as it is: everything that helps in general."""
    return Edit(True, True, True, "output", rate, 2)


@dataclass(frozen=True)
class Policy:
    """A probability of every choice of every field."""

    table: dict[str, tuple[float, ...]]

    @classmethod
    def uniform(cls) -> "Policy":
        return cls({name: (1 / len(of),) * len(of) for name, of in FIELDS.items()})

    @classmethod
    def cloned(cls, helped: Sequence[Edit]) -> "Policy":
        """What is likeliest to have made these, each choice seen once more than it was."""
        table = {}
        for name, of in FIELDS.items():
            counts = Counter(getattr(edit, name) for edit in helped)
            table[name] = tuple((counts[x] + 1) / (len(helped) + len(of)) for x in of)
        return cls(table)

    def draw(self, chance: random.Random) -> Edit:
        return Edit(*(chance.choices(FIELDS[name], weights)[0] for name, weights in self.table.items()))


def examples(pairs: Sequence[Pair], edit: Edit, count: int, chance: random.Random) -> list[tuple[Tensor, Tensor]]:
    """Tokens and labels: each demonstration in turn as the last, which is answered behind all the others."""
    found = []
    for last in itertools.islice(itertools.cycle(range(len(pairs))), count):
        others = [pair for i, pair in enumerate(pairs) if i != last]
        if edit.order:
            chance.shuffle(others)
        seen = grids.view(chance, edit.turns, edit.colours)
        found.append(labelled(seen.pairs([*others, pairs[last]]), edit.tokens))
    return found


def labelled(pairs: Sequence[Pair], learn: str) -> tuple[Tensor, Tensor]:
    tokens = grids.written(pairs)
    labels = torch.tensor(tokens)
    if learn == "output":
        labels[~torch.tensor(grids.outputs(tokens))] = IGNORED
    return torch.tensor(tokens), labels


def rows_loss(logits: Any, rows: Sequence[tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Mean over the labelled tokens of each row, then over rows; `logits` is a function of the ids."""
    ids, _ = batch([tokens for tokens, _ in rows])
    _, labels = batch([labels for _, labels in rows])
    ids, labels = ids.to(device), labels.to(device)
    return over_sequences(nats(logits(ids), labels), (labels != IGNORED).float())


def left_out(pairs: Sequence[Pair], last: int) -> Probe:
    """A demonstration, asked behind the others."""
    others = [pair for i, pair in enumerate(pairs) if i != last]
    before = grids.question(others, pairs[last][0])
    return Probe(str(last), torch.tensor([*before, *grids.answer(pairs[last][1])]), len(before))


def asked(task: Puzzle) -> list[Probe]:
    """What is to be found out, behind all demonstrations."""
    return [left_out([*task.shown, pair], len(task.shown)) for pair in task.asked]


def untrained(model: RetrofitModel) -> Student:
    state = model.start()
    return Student(model, state, written(model, 0, state))


def trained(
    model: RetrofitModel, pairs: Sequence[Pair], edit: Edit, count: int, seed: str, meter: Meter, steps: int = 0
) -> Student:
    """A fresh memory after an edit; `steps` instead of its own number."""
    chance = random.Random(f"{seed} examples")
    rows = examples(pairs, edit, count, chance)

    def batches() -> Iterator[list[tuple[Tensor, Tensor]]]:
        while True:
            chance.shuffle(rows)
            yield from (rows[at : at + BATCH] for at in range(0, len(rows), BATCH))

    student, now = untrained(model), batches()
    fit = Fit(student, steps or edit.steps(count), edit.rate, torch.Generator(), {})

    def loss() -> Tensor:
        some = next(now)
        meter.learned += sum(tokens.numel() for tokens, _ in some)
        return rows_loss(student.logits, some, model.device)

    fit.run(loss, meter, "edit")
    return student


def selected(
    model: RetrofitModel, pairs: Sequence[Pair], edits: Sequence[Edit], count: int, how: Dreaming, seed: str,
    meter: Meter,
) -> tuple[list[int], list[float]]:  # fmt: skip
    """Which to try, the most important first and then some at random; and how important each is.

    A gradient knows nothing of a rate or of epochs. That of an edit is therefore as long as all its steps together,
    which is how far Adam goes whatever the size of its gradients. Validation: every demonstration behind the others.
    """
    student = untrained(model)
    own = []
    for i, edit in enumerate(edits):
        rows = examples(pairs, edit, LOOKED, random.Random(f"{seed} look {i}"))
        meter.learned += sum(tokens.numel() for tokens, _ in rows)
        found = flat(student, rows_loss(student.logits, rows, model.device))
        own.append(found * (edit.rate * edit.steps(count) / found.norm().clamp_min(1e-12)))
    probes = [left_out(pairs, i) for i in range(len(pairs))]
    shown = [labelled_answer(probe) for probe in probes]
    meter.learned += sum(tokens.numel() for tokens, _ in shown)
    wanted = flat(student, rows_loss(student.logits, shown, model.device))
    values, overlap = worth(torch.stack(own), wanted, how)
    generator = torch.Generator().manual_seed(random.Random(f"{seed} chosen").getrandbits(31))
    return chosen(values, overlap, how, generator), values.tolist()


def labelled_answer(probe: Probe) -> tuple[Tensor, Tensor]:
    labels = probe.tokens.clone()
    labels[: probe.cue] = IGNORED
    return probe.tokens, labels


def trial(
    model: RetrofitModel, pairs: Sequence[Pair], edit: Edit, count: int, seed: str, meter: Meter
) -> dict[str, Any]:
    """An edit on all demonstrations but one, and what it does to that one: nats before and after."""
    last = random.Random(f"{seed} left out").randrange(len(pairs))
    others = [pair for i, pair in enumerate(pairs) if i != last]
    probe = [left_out(pairs, last)]
    student = trained(model, others, edit, count, seed, meter)
    (before,), (after,) = scores(untrained(model), probe), scores(student, probe)
    return {"edit": asdict(edit), "before": before, "after": after, "reward": int(after < before)}


def practised(
    model: RetrofitModel, tasks: Sequence[Puzzle], tries: int, count: int, how: Dreaming | None, seed: str, meter: Meter
) -> tuple[Policy, int]:
    """ReST-EM in one round, and its steps. Of the tries at each task the best quarter counts, of those that make its
    true answer likelier; with `how`, they are those that its selection keeps of four times as many.
    """
    helped, steps = [], 0
    for task in tasks:
        chance = random.Random(f"{seed} {task.name} practice")
        edits = [Policy.uniform().draw(chance) for _ in range(tries if how is None else 4 * tries)]
        own = f"{seed} {task.name}"
        if how is not None:
            edits = [edits[i] for i in selected(model, task.shown, edits, count, how, own, meter)[0]]
        before = mean_nats(untrained(model), task)
        gains = []
        for i, edit in enumerate(edits):
            steps += edit.steps(count)
            student = trained(model, task.shown, edit, count, f"{own} {i}", meter)
            gains.append((before - mean_nats(student, task), i))
        best = sorted(gains, reverse=True)[: max(1, tries // 4)]
        helped += [edits[i] for gain, i in best if gain > 0]
    return Policy.cloned(helped), steps


def mean_nats(who: Teacher | Student, task: Puzzle) -> float:
    found = scores(who, asked(task))
    return sum(found) / len(found)


def judged(who: Teacher | Student, task: Puzzle, views: int, longest: int, seed: str) -> dict[str, Any]:
    """What came out for a task: everything asked for must be right.

    exact   the greedy grid; two: one of the two grids that most views of the task vote for
    cells   share of right cells where the greedy grid has the right size; sized: how often it has
    forced  the same with the size given: each cell behind the true ones before it; nats: of a token of the answer
    """
    chance = random.Random(f"{seed} views")
    seen = [grids.View(), *(grids.view(chance) for _ in range(views - 1))]
    found: dict[str, list[float]] = {name: [] for name in ("exact", "two", "sized", "cells", "forced", "nats")}
    for grid, wanted in task.asked:
        prompts = [grids.question(one.pairs(task.shown), one.seen(grid)) for one in seen]
        said = [grids.decode(row) for row in greedy(who, prompts, longest)]
        votes = Counter(one.back(own) for one, own in zip(seen, said) if own is not None)
        share = grids.cells(said[0], wanted)
        found["exact"].append(float(said[0] == wanted))
        found["two"].append(float(wanted in [own for own, _ in votes.most_common(2)]))
        found["sized"].append(float(share is not None))
        found["cells"] += [] if share is None else [share]
        probe = left_out([*task.shown, (grid, wanted)], len(task.shown))
        with torch.no_grad():
            logits = who.logits(probe.tokens[None, :-1].to(who.model.device))[0, probe.cue - 1 :].cpu()
        answer = probe.tokens[probe.cue :]
        colours = answer < grids.COLOURS
        found["forced"].append(float((logits.argmax(-1) == answer)[colours].float().mean()))
        found["nats"].append(float(nats(logits[None], answer[None]).mean()))
    result: dict[str, Any] = {name: sum(x) / len(x) if x else None for name, x in found.items()}
    return {**result, "exact": float(min(found["exact"])), "two": float(min(found["two"]))}


def greedy(who: Teacher | Student, prompts: Sequence[list[int]], longest: int) -> list[list[int]]:
    """What follows each prompt; those of one length together."""
    found: dict[int, list[int]] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        own = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        rows = torch.tensor([prompts[i] for i in own])
        whole = sample(who, rows, longest, torch.Generator(), temperature=0.0, end=grids.END)
        found |= {i: row[length:].tolist() for i, row in zip(own, whole)}
    return [found[i] for i in range(len(prompts))]
