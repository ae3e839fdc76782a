"""The levels view: any module, with its optimizer, as a nested system (arXiv 2512.24695, Def. 2-3)."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from circadia.levels import describe, optimizers
from circadia.levels.level import Level, count_text, summarise

Found = tuple[Level, list[str]]  # a level, and the names of the modules or parameters that it covers


@dataclass(frozen=True)
class LevelsView:
    """The levels of a model, from the fastest to the slowest."""

    model: str
    levels: tuple[Level, ...]
    parameters: int
    tokens_per_step: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; a period of None means never."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "tokens_per_step": self.tokens_per_step,
            "levels": [level.to_dict() for level in self.levels],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The view as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def svg(self) -> str:
        """The view as a picture: a lane a level, time to the right, a tick wherever the level is written."""
        from circadia.levels.picture import draw

        return draw(self)

    def __str__(self) -> str:
        """A plain-text table."""
        rows = [("level", "period", "learns from", "size", "members")]
        for level in self.levels:
            members = ", ".join(member.pattern for member in level.members[:2])
            more = f", and {len(level.members) - 2} more" if len(level.members) > 2 else ""
            period = level.period_text(self.tokens_per_step)
            rows.append((level.name, period, level.learns_from, level.size_text(), members + more))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "-" * max(len(line) for line in lines))
        size = f"{count_text(self.parameters)} parameters on {len(self.levels)} levels"
        return "\n".join([f"{self.model}: {size}, fastest first", "", *lines])


def levels(
    module: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    tokens_per_step: float | None = None,
) -> LevelsView:
    """Show a module, with its optimizer or optimizers, as a nested system of levels.

    Everything that is written while tokens or gradients stream by is a memory on a level: attention (period
    0, it is solved anew at every token), recurrent states (1 token), an optimizer's moments and the weights
    they write (1 optimizer step), frozen weights (never). Nothing is run or allocated, so a model on the meta
    device is enough. Every parameter is counted once, on the level that writes it.

    `tokens_per_step` is the number of tokens between two optimizer steps (batch x length x accumulation);
    with it, periods in steps are put on the axis of tokens.

    A module that the table in `circadia.levels.describe` does not know describes itself with a method

        def levels_entry(self) -> Mapping | Iterable[Mapping]

    Each mapping is one level: `name` and `period` (required; the period may be `math.inf`) and any other
    field of `circadia.levels.Level` except `members` and `parameters`, which follow from the module. Three more
    keys name parameters of the module, relative to it:

    - `owns`: parameters that this level itself writes (slow weights updated every C tokens). They are counted
      here and not on the optimizer's level.
    - `starts_from`: parameters that are the meta-learned initial state of this level (eq. 28). They stay on
      the level of whatever trains them, in a row of their own.
    - `beside`: parameters that this level's state is added to in reading. They name its members and nothing else.

    An optimizer may have the same method; its periods count optimizer steps unless `unit` says otherwise.
    """
    if not isinstance(module, nn.Module):
        raise ValueError(f"module must be a torch.nn.Module, got {type(module).__name__}; pass the model itself")
    if tokens_per_step is not None and not 0 < tokens_per_step < math.inf:
        raise ValueError(
            f"tokens_per_step must be above 0 and finite, got {tokens_per_step}; leave it out if it is not known"
        )
    named = dict(module.named_parameters())  # tied weights appear once
    for name, parameter in named.items():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"parameter {name!r} of module has no shape yet; run the module once on an example first")

    chosen = _as_list(optimizer)
    places = _places(chosen, named)
    found, owned, starts = _module_memories(module)
    rows: dict[tuple[int | None, Level], set[int]] = {}
    for name, parameter in named.items():
        if id(parameter) not in owned:
            index, group = places.get(id(parameter), (None, {}))
            optimizer_here = None if index is None else chosen[index]
            row = _weights(name, parameter, id(parameter) in starts, optimizer_here, group, bool(chosen))
            rows.setdefault((index, row), set()).add(id(parameter))
    # An optimizer's memory comes right before the weights that it writes. Weights in no optimizer come last.
    for index in [*range(len(chosen)), None]:
        for level, parameters in [] if index is None else _optimizer_memories(chosen[index]):
            found.append((level, list(_roll_up(module, {id(parameter) for parameter in parameters}))))
        for (place, level), ids in rows.items():
            if place == index:
                count = sum(parameter.numel() for parameter in named.values() if id(parameter) in ids)
                found.append((replace(level, parameters=count), list(_roll_up(module, ids))))

    merged = sorted(_merge(found), key=lambda level: _speed(level, tokens_per_step))
    total = sum(parameter.numel() for parameter in named.values())
    assert sum(level.parameters for level in merged) == total
    return LevelsView(type(module).__name__, tuple(merged), total, tokens_per_step)


def _module_memories(module: nn.Module) -> tuple[list[Found], set[int], set[int]]:
    """The memories inside the module, and ids of the parameters that they own and that they start from."""
    found: list[Found] = []
    owned: set[int] = set()
    starts: set[int] = set()
    for path, part, level in _walk("", module):
        here = [path or type(part).__name__]
        if level is not None:
            found.append((level, here))
            continue
        for entry in _entries(part):
            level, owns, starts_from, beside = _read_entry(entry, part)
            fresh = {id(parameter): parameter.numel() for parameter in owns if id(parameter) not in owned}
            owned |= fresh.keys()
            starts |= {id(parameter) for parameter in starts_from}
            shown = set(fresh) or {id(parameter) for parameter in beside}
            members = list(_roll_up(module, shown)) if shown else here
            found.append((replace(level, parameters=sum(fresh.values())), members))
    return found, owned, starts


def _walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, Level | None]]:
    """The memories among the modules. A module that describes itself comes without a level."""
    described = callable(getattr(module, "levels_entry", None))
    if described:
        yield path, module, None
    else:
        level = describe.describe(path, module)
        if level is not None:
            yield path, module, level
            return  # what is inside is part of this memory (the convolution of a Mamba mixer)
    empty = not described
    for name, child in module.named_children():
        for found in _walk(f"{path}.{name}" if path else name, child):
            empty = False
            yield found
    if empty and (level := describe.unknown_attention(module)):
        yield path, module, level


def _entries(owner: Any) -> Iterable[Mapping[str, Any]]:
    entries = owner.levels_entry()
    return [entries] if isinstance(entries, Mapping) else entries


_FIELDS = {field.name for field in fields(Level)} - {"members", "parameters"}
_NAMED = ("owns", "starts_from", "beside")  # keys that name parameters


def _read_entry(
    entry: Any, owner: Any, unit: str = "token"
) -> tuple[Level, list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Check what `levels_entry` returned: the level, and the parameters of each key in ``_NAMED``."""
    who = f"{type(owner).__name__}.levels_entry()"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{who} must return a mapping or several, got {type(entry).__name__}")
    if unknown := sorted(set(entry) - _FIELDS - set(_NAMED)):
        raise ValueError(f"{who} has unknown keys {unknown}; known are {sorted(_FIELDS | set(_NAMED))}")
    if missing := sorted({"name", "period"} - set(entry)):
        raise ValueError(f"{who} lacks {missing}; every level needs a name and a period")
    for key in ("name", "learns_from", "objective", "rule", "enters", "leaves", "note"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f"{who}: {key} must be text, got {entry[key]!r}")
    for key in ("state_bytes", "bytes_per_token"):
        if not isinstance(entry.get(key, 0), int):
            raise ValueError(f"{who}: {key} must be a whole number of bytes, got {entry[key]!r}")
    period = entry["period"]
    if not isinstance(period, (int, float)) or not period >= 0:
        raise ValueError(f"{who}: period must be a number >= 0 (math.inf for never), got {period!r}")
    level = Level(**{"unit": unit, **{key: value for key, value in entry.items() if key in _FIELDS}})
    if level.unit not in ("token", "step"):
        raise ValueError(f"{who}: unit must be 'token' or 'step', got {level.unit!r}")
    named: list[list[nn.Parameter]] = []
    for key in _NAMED:
        own = dict(owner.named_parameters(remove_duplicate=False)) if entry.get(key) else {}
        if strangers := sorted(set(entry.get(key, ())) - own.keys()):
            raise ValueError(f"{who}: {key} names {strangers}, which are not parameters of the module")
        named.append([own[name] for name in entry.get(key, ())])
    return level, named[0], named[1], named[2]


def _as_list(optimizer: Any) -> list[Optimizer]:
    if optimizer is None:
        return []
    given = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    for one in given:
        if not isinstance(one, Optimizer):
            got = type(one).__name__
            raise ValueError(f"optimizer must be a torch.optim.Optimizer or a list of them, got {got}")
    # An optimizer made of several (circadia.optim.Combined) is shown as what it is made of.
    return [part for one in given for part in getattr(optimizers.unwrap(one), "parts", [optimizers.unwrap(one)])]


def _places(chosen: list[Optimizer], named: Mapping[str, nn.Parameter]) -> dict[int, tuple[int, dict[str, Any]]]:
    """For every parameter, by id: which optimizer holds it, and in which group."""
    inside = {id(parameter) for parameter in named.values()}
    places: dict[int, tuple[int, dict[str, Any]]] = {}
    for index, one in enumerate(chosen):
        given = [(parameter, group) for group in one.param_groups for parameter in group["params"]]
        strangers = sum(id(parameter) not in inside for parameter, _ in given)
        if strangers:
            raise ValueError(
                f"optimizer {type(one).__name__} holds {strangers} of {len(given)} parameters that are not "
                "in module; build it from module.parameters(), or pass the module that contains them all"
            )
        twice = sum(id(parameter) in places for parameter, _ in given)
        if twice:
            raise ValueError(
                f"optimizer {type(one).__name__} holds {twice} parameters that another one in the list holds "
                "too; give every parameter to one optimizer"
            )
        places |= {id(parameter): (index, group) for parameter, group in given}
    return places


def _optimizer_memories(optimizer: Optimizer) -> Iterator[tuple[Level, list[Tensor]]]:
    if not callable(getattr(optimizer, "levels_entry", None)):
        yield from optimizers.memories(optimizer)
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for entry in _entries(optimizer):
        yield _read_entry({"shared": True, **entry}, optimizer, unit="step")[0], parameters


_BACKPROP = "training loss through backprop: each layer maps its input to its local error (eq. 29-31)"


def _weights(
    name: str,
    parameter: nn.Parameter,
    is_start: bool,
    optimizer: Optimizer | None,
    group: dict[str, Any],
    any_optimizer: bool,
) -> Level:
    """The level of one ordinary parameter."""
    what = "initial states" if is_start else "low-rank adapters" if ".lora_" in f".{name}" else "weights"
    leaves = (
        "start of the in-context memory, every sequence anew (eq. 28)" if is_start else "read in every forward pass"
    )
    held = optimizer is not None and optimizers.learning_rate(group) == 0
    if parameter.requires_grad and optimizer is not None and not held:
        return Level(
            name=f"{what} trained by {type(optimizer).__name__}",
            # A group may have a period of its own (circadia.optim.CMS).
            period=group.get("period", 1),
            unit=group.get("unit", "step"),
            learns_from="gradients",
            objective=_BACKPROP,
            rule=optimizers.weights_rule(optimizer, group),
            enters="by backprop, one step at a time (eq. 8-9)",
            leaves=f"{leaves}; persistent",
            shared=True,
        )
    if not parameter.requires_grad:
        label, note = f"frozen {what}", "requires_grad is False"
    elif held:
        label, note = f"{what} held at lr 0", "in a param group whose learning rate is 0 now"
    elif any_optimizer:
        label, note = f"{what} outside the optimizer", "in no param group of the optimizer"
    else:
        label, note = f"{what}, no optimizer", "trainable, no optimizer given"
    return Level(
        name=label,
        period=math.inf,
        learns_from="nothing",
        objective="none while frozen",
        rule="none",
        enters="nothing: what is there was learned before",
        leaves=f"{leaves}; persistent",
        shared=True,
        note=note,
    )


def _roll_up(module: nn.Module, wanted: set[int], path: str = "", seen: set[int] | None = None) -> Iterator[str]:
    """Names that cover exactly the wanted parameters: the largest modules that hold no other ones."""
    seen = set() if seen is None else seen
    ids = {id(parameter) for parameter in module.parameters()}
    if not ids & wanted - seen:
        return  # nothing here, or only weights tied to some named already
    if ids <= wanted:
        seen |= ids
        yield path or type(module).__name__
        return
    prefix = f"{path}." if path else ""
    for name, parameter in module.named_parameters(recurse=False):
        if id(parameter) in wanted - seen:
            seen.add(id(parameter))
            yield prefix + name
    for name, child in module.named_children():
        yield from _roll_up(child, wanted, prefix + name, seen)


def _merge(found: Iterable[tuple[Level, list[str]]]) -> Iterator[Level]:
    """Memories that agree in everything but place and size are one level."""
    merged: dict[tuple[Any, ...], tuple[list[Level], list[str]]] = {}
    for level, names in found:
        same, members = merged.setdefault(level.identity(), ([], []))
        same.append(level)
        members.extend(names)
    for same, members in merged.values():
        yield replace(
            same[0],
            members=summarise(members),
            parameters=sum(level.parameters for level in same),
            state_bytes=sum(level.state_bytes for level in same),
            bytes_per_token=sum(level.bytes_per_token for level in same),
        )


def _speed(level: Level, tokens_per_step: float | None) -> tuple[int, float]:
    """Sort key, fastest first. Steps of unknown length come after all periods in tokens.

    The sort keeps the order of equal periods, where the level that another one needs is the faster (Def. 2):
    weights are written with what the optimizer holds after this very step.
    """
    if math.isinf(level.period):
        return 2, 0
    if level.unit == "token":
        return 0, level.period
    return (0, level.period * tokens_per_step) if tokens_per_step else (1, level.period)
