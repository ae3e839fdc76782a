"""What `circadia learner` prints."""

import json as format_
import time
from dataclasses import asdict, is_dataclass
from typing import Any


def _json(value: Any) -> None:
    print(format_.dumps(asdict(value) if is_dataclass(value) else value, default=str))  # type: ignore[arg-type]


def plain(value: dict[str, Any], json: bool) -> None:
    """Name and value, line by line."""
    if json:
        _json(value)
        return
    for name, entry in value.items():
        print(f"{name:10} {entry}")


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Columns; all but the first and last to the right."""
    cells = [head, *(tuple("" if x is None else str(x) for x in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        last = len(row) - 1
        parts = [x.ljust(w) if i in (0, last) else x.rjust(w) for i, (x, w) in enumerate(zip(row, widths))]
        print("  ".join(parts).rstrip())


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def observed(done: Any, source: str, json: bool) -> None:
    """One call of observe."""
    if json:
        _json({**asdict(done), "source": source})
        return
    learned = f"surprise {_number(done.surprise)}, weight {_number(done.weight, 2)}"
    learned = learned if done.chunks else "no chunk is full yet, so nothing is learned yet"
    print(f"{source}: {done.tokens:,} tokens in {done.seconds:.1f} s; {learned}")
    for level in done.levels:
        print(f"  {level.name}, every {level.period:,}: {level.updates} updates, moved {level.moved:.4f}, "
              f"norm {level.norm:.4f}")  # fmt: skip
    if own := {name: done.gate[name] for name in ("eta", "cms") if name in done.gate}:
        print("  rates of its own: " + ", ".join(f"{name} {rate:.3f}" for name, rate in own.items()))
    if done.refused:
        print(f"  {done.refused} chunks were not finite and not learned")
    if done.pending or done.waiting:
        print(f"  {done.pending} tokens wait for the end of their chunk, {done.waiting} characters for their line's")
    for night in done.nights:
        print(f"  slept on the way: {night.action}, version {night.version or '-'}")
    print("  " + (f"version {done.versions[-1]}" if done.versions else "no new version"))
    for text in done.held:
        print(f"  guard: {text}")
    if done.interrupted:
        print("  interrupted: what was learned is committed")


def answer(said: Any, json: bool) -> None:
    """With its id."""
    if json:
        _json(said)
        return
    print(said.text)
    if said.id is not None:
        print(f"[answer {said.id}, version {said.version if said.version is not None else 'base'}, "
              f"{said.seconds:.1f} s]")  # fmt: skip


def feedback(done: Any, json: bool) -> None:
    """What it changed."""
    if json:
        _json(done)
        return
    print(f"{done.kind}: {done.before:.3f} nats a token before, {done.after:.3f} after; "
          f"{f'version {done.version}' if done.version else 'no new version'}")  # fmt: skip
    if done.held:
        print(f"guard: {done.held}")


def status(found: dict[str, Any], json: bool) -> None:
    """Levels, sources and the last of the life."""
    if json:
        _json(found)
        return
    at = found["version"] if found["version"] is not None else "none: the base"
    print(f"{found['name']} on {found['branch']}: version {at}, {found['tokens']:,} tokens read, "
          f"{found['bytes'] / 1e6:.2f} MB, journal {'on' if found['journal'] else 'off'}"
          f"{', conversations teach it' if found['conversations'] else ''}")  # fmt: skip
    print(f"{found['pending']} tokens wait for their chunk, {found['waiting']} characters for the end of their line\n")
    rows: list[tuple[Any, ...]] = []
    for x in found["levels"]:
        size = f"{x['bytes'] / 1e6:.2f} MB"
        row = f"level {x['level']}", f"{x['period']:,}", x["updates"], f"{x['next']:,}", f"{x['norm']:.4f}", size
        rows.append(row)
    _table(("level", "period", "updates", "next in", "norm", "size"), rows)
    if found["sources"]:
        print()
        rows = [(name, x["experiences"], f"{x['tokens']:,}", _when(x["last"])) for name, x in found["sources"].items()]
        _table(("source", "experiences", "tokens", "last"), rows)
    if found["nights"]:
        from circadia.cli.sleep_show import summary

        last = found["night"]
        print(f"\n{found['nights']} nights; the last, {_when(last['time'])}, ended with {last['action']}")
        print(f"  {summary(last['report'])}")
    held = sum(one["status"] == "held" for one in found["quarantine"])
    if held:
        print(f"{held} experiences are in quarantine: see `circadia learner quarantine list {found['name']}`")
    for text in found["due"]:
        print(f"due to sleep: {text}")
    life = found["life"][-12:]
    if life:
        print()
        _table(("time", "surprise", "weight", "what"), [_event(entry) for entry in life])


def _event(entry: dict[str, Any]) -> tuple[Any, ...]:
    what = entry["what"]
    if what == "commit":
        held = "" if entry["current"] else ", held"
        text = f"version {entry['version']} ({entry['reason']}{held}), {entry.get('tokens', 0):,} tokens"
        surprise, weight = entry.get("surprise"), entry.get("weight")
        return _when(entry["time"]), _number(surprise), _number(weight, 2), text
    text = {
        "rollback": lambda: f"rollback from {entry['from'] or 'base'} to {entry['to'] or 'base'} ({entry['reason']})",
        "forgot": lambda: f"forgot experiences {entry['experiences']}",
        "branch": lambda: f"branch {entry['branch']} from {entry['from'] or 'base'}",
    }.get(what, lambda: f"{what} {'; '.join(entry.get('reasons', []))}".strip())()
    return _when(entry["time"]), "", "", text


def versions(found: list[Any], branches: dict[str, int | None], nights: dict[int | None, Any], json: bool) -> None:
    """Newest first; those that nights made with what they did."""
    if json:
        _json([asdict(v) | ({"night": asdict(nights[v.number])} if v.number in nights else {}) for v in found])
        return
    points: dict[int | None, list[str]] = {}
    for name, number in branches.items():
        points.setdefault(number, []).append(name)
    rows = [(v.number, v.parent or "base", f"{v.tokens:,}", v.state[:12], _when(v.time), " ".join(
        [v.reason, v.notes and f"({v.notes})", _night(nights.get(v.number)),
         *(f"<- {n}" for n in points.get(v.number, []))]).replace("  ", " "))
        for v in found]  # fmt: skip
    _table(("version", "from", "tokens", "state", "time", "reason"), rows)


def _night(night: Any) -> str:
    if night is None or night.report["bound"][0] is None:
        return ""
    return "bound {:.0%} -> {:.0%}".format(*night.report["bound"])


def diff(found: Any, a: int, b: int, json: bool) -> None:
    """By group."""
    if json:
        _json(found)
        return
    rows = [(name, f"{x.norm:.4f}", f"{x.moved:.4f}", f"{len(x.changed)} changed") for name, x in found.groups.items()
            if name != "other"]  # fmt: skip
    _table((f"{a} -> {b}", "norm", "moved", "tensors"), rows)
    for name, (before, after) in found.probes.items():
        print(f"probe {name}: {before} -> {after}")


def forgotten(done: Any, json: bool) -> None:
    """The report."""
    if json:
        _json(done)
        return
    erased = done.erased
    print(f"forgot {len(done.experiences)} experiences and {len(done.tied)} tied to them")
    print(f"erased {len(erased.versions)} versions, {len(erased.files.blobs)} blobs, {len(erased.events)} entries of "
          f"the log; {done.replayed} experiences learned again")  # fmt: skip
    for old, new in done.rebuilt.items():
        print(f"  version {old} is now {new}")
    for text in (*done.held, *done.notes):
        print(f"  {text}")
    for one in done.exports:
        print(f"  exported before: {one.file}, {_when(one.time)}")
    if not done.exports:
        print("  nothing of it was ever exported")


def verified(done: Any, json: bool) -> None:
    """What was checked, and what is wrong."""
    if json:
        _json(done)
        return
    print(f"{done.learners} learners, {done.versions} versions, {done.blobs} blobs, {done.events} entries: "
          f"{len(done.faults)} faults")  # fmt: skip
    for text in done.faults:
        print(f"  {text}")
