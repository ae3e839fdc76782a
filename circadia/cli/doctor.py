"""`circadia doctor`: what works on this machine, what does not, and the line that repairs it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check versions, devices, extras, compilers and folders.

    The exit code is 0 unless the core cannot be used.
    """
    import json as json_format

    from circadia.cli import health

    found = health.report()
    if json:
        print(json_format.dumps(found, indent=2))
    else:
        _print(found)
    if not found["usable"]:
        raise typer.Exit(1)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    _row(table, True, f"circadia {found['circadia']}", f"Python {found['python']}, {found['platform']}")
    for package in found["core"]:
        name = f"{package['name']} {package['version'] or ''}".strip()
        _row(table, package["ok"], name, package["problem"] or "", package["fix"])

    _head(table, "Hardware")
    hardware = found["hardware"]
    memory = f"{_gib(hardware['memory'])} memory, {_gib(hardware['memory_available'])} free"
    _row(table, hardware["problem"] is None, f"{hardware['cores']} cores", hardware["problem"] or memory)
    for device in hardware["devices"]:
        text = f"{device['model']}, bf16 {device['bf16']}"
        if device["name"] == "cpu":
            text += f", {hardware['threads']} threads"
        if "memory" in device:
            text += f", {_gib(device['memory'])}"
        _row(table, True, device["name"], text)
    compiler = found["compile"]
    _row(
        table,
        compiler["ok"],
        "torch.compile",
        compiler["problem"] or compiler["path"],
        compiler["fix"],
        optional=True,
    )
    for name, kernel in found["kernels"].items():
        _row(
            table,
            kernel["ok"],
            name,
            kernel["problem"] or "fused kernels can run",
            kernel["fix"],
            optional=True,
        )

    if found["extras"]:
        _head(table, "Extras")
    for extra in found["extras"]:
        names = ", ".join(package["name"] for package in extra["packages"])
        _row(table, extra["ok"], extra["name"], extra["problem"] or names, extra["fix"], optional=True)

    _head(table, "Places")
    for place in found["places"]:
        state = "writable" if place["writable"] else "not writable" if place["path"] else "not set"
        if place["path"] and not place["exists"]:
            state += ", made when first needed"
        text = f"{place['path'] or '-'} ({state}; set by {place['set_by']})"
        fine = place["writable"] or not place["path"]
        fix = None if fine else f"set {place['set_by'].partition(' or ')[0]} to a folder that can be written"
        _row(table, fine, place["name"], text, fix, optional=True)
    Console().print(table)


def _head(table: "Table", title: str) -> None:
    from rich.text import Text

    table.add_row("", "", "")
    table.add_row("", Text(title, "bold"), "")


def _row(table: "Table", ok: bool, name: str, text: str, fix: str | None = None, optional: bool = False) -> None:
    from rich.text import Text

    mark = Text("✓", "green") if ok else Text("-", "yellow") if optional else Text("✗", "red")
    table.add_row(mark, Text(name), Text.assemble(text, *([("\n" + fix, "cyan")] if fix else [])))


def _gib(count: int | None) -> str:
    return "?" if count is None else f"{count / (1 << 30):.1f} GiB"
