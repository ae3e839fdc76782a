"""Reading a stream: predict a chunk with the state from before it, then let the levels whose time has come learn.

Chunks lie at multiples of `chunk` from the start of the stream, whatever the calls were. A chunk's tokens are predicted
from the `context` tokens before it and from each other; with context=0 from the one token before it, without which its
first token could not be scored. Every token is scored once, but the first one of a stream, before which there is none.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circadia.models.retrofit.report import ChunkReport, LevelReport, Report
from circadia.models.retrofit.state import State, parts_of
from circadia.models.retrofit.stream import Stream, Weigh, Window, nats_of

if TYPE_CHECKING:
    from circadia.models.retrofit.model import RetrofitModel


def learn(model: "RetrofitModel", tokens: Any, state: State, weigh: Weigh | None = None) -> tuple[Report, State]:
    """`RetrofitModel.learn`."""
    begin = time.perf_counter()
    model.check(state)
    if model.learned is not None and model.learned.on:
        raise ValueError("the model is adapting: call model.learned.close(model) before it learns a stream")
    ids = tokens_of(model, tokens)
    stream = Stream(model, state, weigh)
    levels = [LevelReport(f"level {i}", level.period) for i, level in enumerate(model.settings.levels)]
    report = Report(levels=levels)
    with reading(model):
        for window in _windows(model, ids, stream.state, whole=True):
            report.chunks.append(stream.take(window, levels))
    stream.finish(ids)
    report.pending = stream.state["stream/pending"].numel()
    report.seconds = time.perf_counter() - begin
    return report, stream.state


def score(model: "RetrofitModel", tokens: Any, state: State) -> Report:
    """`RetrofitModel.score`."""
    begin = time.perf_counter()
    report = Report()
    with reading(model), torch.no_grad(), model.wearing(state) as base:
        for window in _windows(model, tokens_of(model, tokens), state, whole=False):
            nats = float(nats_of(base, window)) if window.scored else 0.0
            report.chunks.append(ChunkReport(window.start, window.scored, nats / max(1, window.scored)))
    report.seconds = time.perf_counter() - begin
    return report


def teach(
    model: "RetrofitModel", loss: Callable[[Any], Tensor], state: State, level: int, weight: float
) -> tuple[float, State]:
    """`RetrofitModel.teach`: the open sum of the level, its clock and the stream stay as they are."""
    model.check(state)
    settings, stream = model.settings.levels[level], Stream(model, state)
    with reading(model):
        nats, found, grams = stream.gradients(loss, [level], [], 0)
        sums = {
            f"{part}/{s.name}": stream.of(found, level, part, s.name)
            for part in parts_of(settings)
            for s in model.own[level]
        }
        with torch.no_grad():
            squares = {f"delta/{name}": x for name, x in grams.items()}
            after = stream.stepped(level, sums, 1, squares, {}, whole=False)
            if after is not None and math.isfinite(nats):
                stream.write(level, after, weight, LevelReport(f"level {level}", settings.period))
    return nats, stream.state


def _windows(model: "RetrofitModel", ids: Tensor, state: State, whole: bool) -> Iterator[Window]:
    """Chunks of the open one and the new tokens; the last one may be shorter unless `whole`."""
    chunk, context = model.settings.chunk, max(1, model.settings.context)
    before = state["stream/context"]
    known = torch.cat((before, state["stream/pending"], ids))
    start = int(state["clock/tokens"])
    for at in range(before.numel(), known.numel(), chunk):
        size = min(chunk, known.numel() - at)
        if whole and size < chunk:
            return
        window = known[max(0, at - context) : at + size]
        scored = size if at else size - 1
        yield Window(window[None].to(model.device), start + at - before.numel(), size, scored)


def tokens_of(model: Any, tokens: Any) -> Tensor:
    """A row of token ids that this model knows, on the CPU."""
    ids = torch.as_tensor(tokens).detach().cpu()
    ids = ids[0] if ids.ndim == 2 and ids.shape[0] == 1 else ids
    if ids.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"tokens have shape {tuple(ids.shape)} and type {ids.dtype}: pass one row of token ids")
    known = model.config.get_text_config().vocab_size
    if int(ids.min()) < 0 or int(ids.max()) >= known:
        raise ValueError(f"tokens reach from {int(ids.min())} to {int(ids.max())}: the model knows 0 to {known - 1}")
    return ids.to(torch.int64)


@contextlib.contextmanager
def reading(model: "RetrofitModel") -> Iterator[None]:
    """No dropout while a stream is read, whatever mode the base is in."""
    before = model.base.training
    if before:
        model.base.eval()
    try:
        yield
    finally:
        if before:
            model.base.train()
