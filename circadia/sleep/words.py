"""Windows in the self's own words: other ways to say one, and questions that it answers.

The self has the window before it, then a new beginning, and says what comes to it: self-study (Cartridges, arXiv
2506.06266), for which no other model and no label is needed. What it said is kept by its own likelihoods:

    a variation  keeps the point: a run of the window's most surprising tokens stands in what the self said of it; is
                 neither a copy of the window nor something else: their edit distance is within bounds; and is about it:
                 it costs less with the window before it than without
    a question   is a beginning after which the window's most surprising tokens are the answer: with the window before
                 it they cost less than without

Of those that fit, the ones that the window makes likelier by the most are taken.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from circadia.models.retrofit.find import positions
from circadia.sleep.fit import Meter
from circadia.sleep.losses import levenshtein
from circadia.sleep.sample import sample, starts
from circadia.sleep.student import Teacher
from circadia.sleep.windows import Probe, Window, losses

KEEPS = 0.5  # share of the point that stands in a variation in one run
ALIKE = 0.2, 0.95  # of a variation and its window: 1 - distance / longer length
SAME = 4  # half of what is tried begins with 1/SAME of the window, the other half with nothing
WARMTH = 0.7  # of sampling: what is likelier is more often about the window
TOGETHER = 8  # windows
TRIES = 4  # for each text that is wanted


def variations(
    who: Teacher, windows: Sequence[Window], points: Mapping[str, Tensor], count: int, ask: Sequence[int],
    generator: torch.Generator, meter: Meter, start: int | None = None,
) -> list[list[Tensor]]:  # fmt: skip
    """At most `count` of each window; `points` are their most surprising tokens, by name. A short window has none."""
    found: list[list[Tensor]] = []
    for some in _alike(windows):
        meter.step("variations", len(found), len(windows))
        if meter.over:
            break
        size, each = some[0].tokens.numel(), count * TRIES // 2
        rows = [window.tokens for window in some for _ in range(each)]
        made = {n: said(who, rows, n, size, ask, generator, meter, start) for n in (0, size // SAME)}
        for i, window in enumerate(some):
            own = [(n, text) for n, half in made.items() for text in half[i * each : (i + 1) * each]]
            point = points.get(window.name)
            fit = [text for n, text in own if point is not None and says(text, n, window.tokens, point)]
            gains = about(who, window.tokens, fit, [0] * len(fit), ask, meter, start)
            found.append([fit[j] for j in best(fit, gains, count)])
    return found + [[] for _ in windows[len(found) :]]


def questions(
    who: Teacher, window: Window, probe: Probe, count: int, ask: Sequence[int], generator: torch.Generator,
    meter: Meter, start: int | None = None,
) -> list[Probe]:  # fmt: skip
    """At most `count` of a window, for the answer of its probe."""
    answer = probe.tokens[probe.cue :]
    # The answer is to fit behind it.
    limit, before = positions(who.model.base), hint(who, window.tokens, ask, start).numel()
    size = probe.cue if limit is None else min(probe.cue, limit - before - answer.numel())
    cues = said(who, [window.tokens] * count * TRIES, 0, size, ask, generator, meter, start)
    asked = [torch.cat((cue, answer)) for cue in cues]
    gains = about(who, window.tokens, asked, [cue.numel() for cue in cues], ask, meter, start)
    order = best(asked, gains, count)
    return [Probe(f"{probe.name}, asked anew {i}", asked[j], cues[j].numel()) for i, j in enumerate(order, 1)]


def _alike(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Some of one length at a time, in their order."""
    for _, own in itertools.groupby(windows, lambda window: window.tokens.numel()):
        same = list(own)
        yield from (same[at : at + TOGETHER] for at in range(0, len(same), TOGETHER))


def said(
    who: Teacher, windows: Sequence[Tensor], given: int, size: int, ask: Sequence[int], generator: torch.Generator,
    meter: Meter, start: int | None,
) -> list[Tensor]:  # fmt: skip
    """One text with each window before it, whose first `given` tokens are the window's; `size` in all, if they fit."""
    before = [hint(who, window, ask, start) for window in windows]
    limit = positions(who.model.base)
    size = size if limit is None else min(size, limit - before[0].numel())
    if size - given < 2:
        return []
    prompts = torch.stack([torch.cat((first, window[:given])) for first, window in zip(before, windows)])
    whole = sample(who, prompts, size - given, generator, WARMTH)
    meter.made += whole.numel()
    return list(whole[:, before[0].numel() :])


def hint(who: Teacher, window: Tensor, ask: Sequence[int], start: int | None) -> Tensor:
    """A window, and what asks for another text about it: these tokens, or the one that a text begins with."""
    return torch.cat((window, torch.tensor(list(ask)) if ask else starts(who.model, 1, start)[0]))


def says(text: Tensor, given: int, window: Tensor, point: Tensor) -> bool:
    """Does a text keep the point of a window behind its `given` tokens, without being a copy of it?"""
    a, b = text.tolist(), window.tolist()
    alike = 1 - levenshtein(a, b) / max(len(a), len(b))
    return ALIKE[0] <= alike <= ALIKE[1] and run(a[given:], point.tolist()) >= KEEPS * point.numel()


def run(text: Sequence[int], point: Sequence[int]) -> int:
    """Length of the longest run of tokens that stands in both."""
    longest, row = 0, [0] * (len(point) + 1)
    for token in text:
        row = [0, *(row[j] + 1 if token == other else 0 for j, other in enumerate(point))]
        longest = max(longest, *row)
    return longest


def about(
    who: Teacher, window: Tensor, texts: Sequence[Tensor], cues: Sequence[int], ask: Sequence[int], meter: Meter,
    start: int | None,
) -> list[float]:  # fmt: skip
    """Of what stands behind the cue of each text, log p(y | window) - log p(y) in nats a token."""
    if not texts:
        return []
    firsts = hint(who, window, ask, start), starts(who.model, 1, start)[0]
    near, far = (losses(who, [torch.cat((first, text)) for text in texts]) for first in firsts)
    meter.read += sum(first.numel() + text.numel() for first in firsts for text in texts)
    return [
        float((b[-count:] - a[-count:]).mean())
        for a, b, count in zip(near, far, (text.numel() - cue for text, cue in zip(texts, cues)))
    ]


def best(texts: Sequence[Tensor], gains: Sequence[float], count: int) -> list[int]:
    """Of those that the window makes likelier at all the `count` likeliest, none twice."""
    kept: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: -gains[i]):
        if gains[i] > 0 and not any(torch.equal(texts[i], texts[j]) for j in kept):
            kept.append(i)
    return kept[:count]
