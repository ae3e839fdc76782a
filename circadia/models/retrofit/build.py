"""`circadia.retrofit`: a Hugging Face decoder becomes a model whose MLPs keep learning."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from circadia.models.bundled import located
from circadia.models.retrofit.assign import assign as assigned
from circadia.models.retrofit.find import anatomy, positions
from circadia.models.retrofit.model import RetrofitModel
from circadia.models.retrofit.settings import Settings, chunk_of, context_of, levels_of, periods_of
from circadia.models.retrofit.step import rule_of

TARGETS = ("mlp", "all")
# Where no periods are given: two levels, of which the slow one keeps. Of the arrangements that `circadia eval read` saw
# harm the base by at most 0.65 of what full fine-tuning does, it forgets least; docs/experiments.md.
DEFAULT = {"periods": (256, 1024), "rate": [0.35, 0.15], "clip": 0.3, "decay": [0.02, 0.002]}


def retrofit(
    model: Any,
    periods: Sequence[int] | int | None = None,
    *,
    assign: Any = "stacked",
    layers: Any = None,
    target: str = "mlp",
    chunk: int | None = None,
    context: int | None = None,
    seed: int = 0,
    dtype: Any = None,
    **levels: Any,
) -> RetrofitModel:
    """Give a decoder memories at several frequencies. The base is frozen, and never written.

    model      a Hugging Face causal language model, its folder or Hub id; or the folder of a saved retrofit, which
               brings its own settings
    periods    tokens of the stream between two updates of each level, fastest first; each divides the next. Left
               out: the arrangement that did best in our measurements (`DEFAULT`), but for settings that are given
    assign     "stacked": every adapted MLP has one delta a level, which are summed onto the base. "fast-first",
               "fast-last", "interleaved": consecutive layers are given to the levels. Or the layers of each level,
               fastest first, [[4, 5], [2, 3], [0, 1]]; or the level of each layer, {4: 0, 5: 0, 0: 2}
    layers     with a named assignment: only these, "first:2", "last:2" or numbers. The others are frozen
    target     "mlp"; or "all": every parameter of the base has a delta on every level (full fine-tuning)
    chunk      tokens predicted with one state; a divisor of the fastest period, which is the default
    context    tokens before a chunk that it sees; default as many as the chunk, 0: only the last one
    dtype      of a base that is loaded from a path; default as it is stored

    Of every level, one value for all or a list with one a level:

    capacity   "full": a whole delta; "lowrank": pairs A, B of `rank`, in `slots` of which the first is in use
    gate       of the slots: "always" on; or "router": each adds g(x) B A x, with sigmoid g that learns when to
    optimizer  "gd", "ngd" (the gradient at norm 1), "momentum", "dgd", "adamw", "m3"; `options` are those of its rule
    rate, clip, bound   learning rate, if left out one that suits the optimizer; norm of the mean gradient over all
               matrices of the level; largest norm of a delta as a fraction of its base matrix
    reduction  "mean" of the gradient over the tokens of a period, or their "sum" (eq. 71 as printed: the clipped mean
               times their number)
    anchor, decay       what a delta decays to, and by how much at each update. "slower": the next slower level. In a
               stack a delta is written on top of the slower ones, so that it decays to zero. Without slower ones in the
               same matrix, to a slow copy of itself that moves by `follow` of the way at each update of the next slower
               level; the slowest level to the base. "base": to zero. None: not at all
    listen     take the gradient only from the last so many tokens of the period: the rest of it is read at the cost of
               reading, and does not teach this level
    feed       "gradient", or "faster": no gradient; at its period the level takes over `transfer` of what the next
               faster level holds in the same matrix
    """
    saved = _saved(model)
    if saved is not None:
        from circadia.models.retrofit import files

        return files.load(saved)
    if isinstance(model, RetrofitModel):
        raise ValueError("model is retrofitted already: pass its base, model.base")
    if periods is None:
        # Its rates are those of plain steps.
        plain = levels.get("optimizer", "gd") == "gd"
        levels = {**{name: x for name, x in DEFAULT.items() if plain or name != "rate"}, **levels}
        periods = levels.pop("periods")
    made = levels_of(periods_of(periods), levels)
    for level in made:
        rule_of(level)
    if target not in TARGETS:
        raise ValueError(f"target={target!r} is unknown: use 'mlp' or 'all'")
    source = str(model) if isinstance(model, (str, Path)) else None
    base = loaded(source, dtype) if source is not None else model
    return arranged(base, made, assign=assign, layers=layers, target=target, chunk=chunk, context=context, seed=seed,
                    source=source)  # fmt: skip


def arranged(
    base: Any, levels: Any, *, assign: Any, layers: Any, target: str, chunk: int | None, context: int | None, seed: int,
    source: str | None,
) -> RetrofitModel:  # fmt: skip
    """A base and checked levels put together."""
    found = anatomy(base)
    where: dict[int, tuple[int, ...]] = {}
    if target == "all":
        if layers is not None or assign != "stacked":
            raise ValueError("target='all' writes every parameter on every level: leave out assign and layers")
        _whole(base, levels)
    else:
        where = assigned(assign, layers, list(found.layers), found.count, len(levels))
        _fits(levels, where, {name for i in where for name in found.layers[i] if not name.plain})
    limit = positions(base)
    chunk = chunk_of(chunk, levels, limit)
    settings = Settings(levels=levels, assign=_plain(assign), layers=_plain(layers), target=target, chunk=chunk,
                        context=context_of(context, chunk, limit), seed=seed)  # fmt: skip
    return RetrofitModel(base, settings, found, where, source)


def _plain(given: Any) -> Any:
    """As JSON gives it back: ranges and tuples are lists."""
    if isinstance(given, Mapping):
        return {layer: _plain(x) for layer, x in given.items()}
    return [_plain(x) for x in given] if isinstance(given, Sequence) and not isinstance(given, str) else given


def _fits(levels: Any, where: dict[int, tuple[int, ...]], odd: set) -> None:
    """What only shows with the assignment."""
    for i, level in enumerate(levels):
        if level.feed == "faster" and any(i in own and i - 1 not in own for own in where.values()):
            raise ValueError(
                f"feed='faster' of level {i}: level {i - 1} must be in the same layers; use assign='stacked'"
            )
        if level.feed == "faster" and levels[i - 1].capacity != "full":
            raise ValueError(f"feed='faster' of level {i}: level {i - 1} must have capacity='full'")
        if level.bound is not None and odd:
            raise ValueError(
                f"bound={level.bound}: {next(iter(odd)).name} is quantised and has no norm; use bound=None"
            )


def _whole(base: nn.Module, levels: Any) -> None:
    for level in levels:
        if level.capacity != "full" or level.optimizer in ("dgd", "m3"):
            raise ValueError("target='all' writes vectors too: use capacity='full' and gd, ngd, momentum or adamw")
    for name, p in base.named_parameters():
        if not p.is_floating_point():
            raise ValueError(f"target='all': {name} is quantised ({p.dtype}); use target='mlp'")


def loaded(source: str, dtype: Any = None) -> Any:
    """A causal language model from a folder or the Hub."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(located(source)).expanduser()
    if source.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"{source}: no such folder; give a model's folder or Hub id")
    where = str(folder) if folder.is_dir() else source
    try:
        config = AutoConfig.from_pretrained(where)
    except Exception as error:  # unknown, offline, broken files: each has its own class
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{source}: its config cannot be read; give a model's folder or Hub id ({said})") from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"{source} is a {config.model_type}, no causal language model: give a decoder")
    return AutoModelForCausalLM.from_pretrained(where, dtype=dtype or config.dtype or torch.float32)


def _saved(model: Any) -> Path | None:
    """The folder of a retrofit, if it is one."""
    if not isinstance(model, (str, Path)):
        return None
    folder = Path(model).expanduser()
    return folder if (folder / "retrofit.json").is_file() else None


def settings_of(folder: Path) -> dict[str, Any]:
    """What `files.save` wrote."""
    try:
        return json.loads((folder / "retrofit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no retrofit: retrofit.json cannot be read ({error})") from error
