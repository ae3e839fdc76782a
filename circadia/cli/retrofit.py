"""`circadia retrofit`: a Hugging Face decoder in, one that keeps learning out; and what it has learned, exported."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from circadia.models.retrofit import RetrofitModel


class Capacity(StrEnum):
    """What a level holds of each matrix."""

    full = "full"
    lowrank = "lowrank"


def retrofit(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A model's folder or Hub id; to export, a retrofit's folder.")
    ],
    target: Annotated[Path | None, typer.Argument(metavar="DST", help="The folder to write.")] = None,
    periods: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Tokens between updates, fastest first; else the measured arrangement."),
    ] = None,
    assign: Annotated[
        str,
        typer.Option(help="stacked, fast-first, fast-last, interleaved, or JSON: a list of layers a level, or a map."),
    ] = "stacked",
    layers: Annotated[str | None, typer.Option(help="Only these: first:2, last:2, or numbers such as 0,1,5.")] = None,
    capacity: Annotated[Capacity, typer.Option(help="A whole delta, or pairs of low rank.")] = Capacity.full,
    rank: Annotated[int, typer.Option(help="Of a low-rank pair.")] = 16,
    optimizer: Annotated[str, typer.Option(help="gd, ngd, momentum, dgd, adamw or m3.")] = "gd",
    rate: Annotated[float | None, typer.Option(help="Learning rate of every level.")] = None,
    decay: Annotated[float | None, typer.Option(help="Toward the slower level at each update.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens before a chunk that it sees.")] = None,
    all_weights: Annotated[bool, typer.Option("--all-weights", help="Every parameter, not the MLPs alone.")] = False,
    copy_base: Annotated[bool, typer.Option("--copy-base", help="Copy the base into DST; else name its path.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the levels; load no weights, write nothing.")
    ] = False,
    export_peft: Annotated[bool, typer.Option("--export-peft", help="Write the memory of SRC as a LoRA.")] = False,
    export_delta: Annotated[bool, typer.Option("--export-delta", help="Write what SRC adds to each weight.")] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write the base of SRC with its memory added in.")] = False,
    memory: Annotated[Path | None, typer.Option(metavar="FILE", help="To export: SRC/memory.safetensors.")] = None,
) -> None:
    """Make a decoder's MLPs memories that learn at several frequencies; or export what a retrofit has learned."""
    exports = {"--export-peft": export_peft, "--export-delta": export_delta, "--merge": merge}
    wanted = [name for name, on in exports.items() if on]
    if len(wanted) > 1 or (wanted and dry_run):
        raise ValueError(f"{' and '.join([*wanted, *['--dry-run'] * dry_run])} exclude each other: give one")
    if target is None and not dry_run:
        raise ValueError("DST is missing: name the folder to write, or add --dry-run")
    if target is not None and target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ValueError(f"{target} exists already: choose another folder")
    if wanted:
        assert target is not None
        given = {"--periods": periods, "--layers": layers, "--rate": rate, "--decay": decay, "--context": context}
        idle = [name for name, x in {**given, "--all-weights": all_weights, "--copy-base": copy_base}.items() if x]
        if idle:
            raise ValueError(f"{wanted[0]} writes what SRC has learned, with the settings it has: leave out {idle[0]}")
        _export(source, target, wanted[0], memory)
        return
    if memory is not None:
        raise ValueError("--memory: a new retrofit has learned nothing: leave it out, or add one of the exports")
    from circadia.models.retrofit import retrofit as make

    settings: dict[str, Any] = {"assign": _assignment(assign), "layers": _layers(layers), "context": context}
    settings |= {"target": "all" if all_weights else "mlp", "capacity": capacity.value, "rank": rank}
    settings |= {"optimizer": optimizer}
    settings |= {name: value for name, value in (("rate", rate), ("decay", decay)) if value is not None}
    counts = None if periods is None else [_number(part, "--periods") for part in periods.split(",")]
    from circadia.cli import skeleton

    planned = make(skeleton.build(source), counts, **settings)  # what is wrong is said before weights are loaded
    if dry_run:
        _show(planned)
        return
    model = make(source, counts, **settings)
    model.save_pretrained(target, state=model.start(), base="copy" if copy_base else "reference")
    print(f"written to {target}; its base is {'in it' if copy_base else source}")


def _export(source: str, target: Path, what: str, memory: Path | None) -> None:
    """One of the three exports."""
    from circadia.models.retrofit import load

    if not (Path(source) / "retrofit.json").is_file():
        raise ValueError(f"{source} is no retrofit: give the folder that `circadia retrofit` or save_pretrained wrote")
    model = load(source)
    state = model.load_state(memory or Path(source) / "memory.safetensors")
    if what == "--export-peft":
        model.export_peft(state, target)
    elif what == "--merge":
        model.merge(state).save_pretrained(target)  # type: ignore[operator]
    else:
        target.mkdir(parents=True, exist_ok=True)
        model.export_delta(state, target / "delta.safetensors")
    print(f"written to {target}")


def _show(model: "RetrofitModel") -> None:
    """Levels, sizes and what is left alone."""
    from circadia.levels import levels
    from circadia.levels.level import count_text
    from circadia.models.retrofit.state import parts_of, shape_of

    print(levels(model))
    settings = model.settings
    print(f"\nchunks of {settings.chunk:,} tokens, each sees {settings.context:,} before it")
    for i, own in enumerate(model.own):
        layers = [layer for layer, levels_ in model.layers.items() if i in levels_]
        held = sum(
            math.prod(shape_of(settings.levels[i], s, part)) for s in own for part in parts_of(settings.levels[i])
        )
        where = "all parameters" if settings.target == "all" else f"layers {layers}"
        print(f"level {i}: {count_text(held)} parameters of memory in {len(own)} tensors, {where}")
    for layer, what in (model.anatomy.left if model.anatomy else {}).items():
        print(f"layer {layer}: not adapted are {what}")


def _assignment(text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f'--assign={text!r} is no JSON ({error}); write [[4,5],[2,3],[0,1]] or {{"0": 1}}') from error
    return {_number(layer, "--assign"): level for layer, level in found.items()} if isinstance(found, dict) else found


def _layers(text: str | None) -> Any:
    if text is None or ":" in text or text == "all":
        return text
    return [_number(part, "--layers") for part in text.split(",")]


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option}: {text!r} is no whole number") from None
