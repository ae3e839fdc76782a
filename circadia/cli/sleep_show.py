"""What the commands of sleep print."""

from dataclasses import asdict
from typing import Any

from circadia.cli.learner_show import _json, _number, _table, _when


def _share(x: float | None) -> str:
    return "-" if x is None or x != x else f"{x:.0%}"


def night(done: Any, json: bool) -> None:
    """One that just ended."""
    if json:
        _json(done)
        return
    print("\n".join(told(done)))


def told(done: Any) -> list[str]:
    """The short report, a line each."""
    if done.action == "none":
        return ["nothing to sleep on was observed since the last night: nothing was changed"]
    if done.action == "stopped":
        return ["stopped: nothing was changed; --resume takes the night up again"]
    from circadia.sleep.report import superseded  # torch comes with it

    report = done.report
    lines = [summary(report)]
    lines += [f"  moved: {text}" for text in report["moved"]]
    lines += [f"  dropped: {text}" for text in report["dropped"]]
    lines += [
        f"  held back: {one['number']} ({one['source']}): {one['reason']}; {one['detail']}"
        for one in report["quarantined"]
    ]
    lines += [f"  said otherwise later: {superseded(one)}" for one in report.get("superseded", [])]
    cost = report["cost"]
    cut = ": the budget ended it" if report["stopped_by_budget"] else ""
    tokens = f"learned {cost['learned']:,} tokens, read {cost['read']:,}, made {cost['made']:,}"
    lines.append(f"  {tokens}, in {done.seconds:.1f} s{cut}")
    if report["refused"]:
        lines.append(f"  nothing was changed: {report['refused']}")
    end = {"accept": f"version {done.version}", "hold": f"version {done.version} is held"}
    lines.append("  " + end.get(done.action, "no new version"))
    return lines + [f"  guard: {text}" for text in done.reasons]


def summary(report: dict[str, Any]) -> str:
    """One line."""
    bound, older = report["bound"], report["older"]
    return (
        f"{report['preset'] or 'own settings'}: {report['entries']} entries, {report['windows']} windows; probes bound "
        f"{_share(bound[0])} -> {_share(bound[1])}; from the older self {_number(older[0])} -> {_number(older[1])} nats"
    )


def nights(found: list[Any], json: bool) -> None:
    """Newest first."""
    if json:
        _json([asdict(one) for one in found])
        return
    rows = [
        (one.number, one.version or "-", one.action, _when(one.time), len(one.report["quarantined"]) or "",
         summary(one.report))
        for one in found
    ]  # fmt: skip
    _table(("night", "version", "ended", "time", "held back", "what"), rows)


def report(one: Any, json: bool) -> None:
    """All that is known of one."""
    if json:
        _json(one)
    else:
        print(one.markdown(), end="")


def due(found: Any, policy: bool, json: bool) -> None:
    """Reasons, or what there is instead."""
    if json:
        _json({"due": bool(found), **asdict(found)})
        return
    print(f"{found.tokens:,} tokens read since the last night, {found.surprise:,.0f} nats of surprise")
    for text in found.reasons:
        print(f"  {text}")
    for sender, receiver in found.pairs:
        print(f"  with the next chunk, level {sender} overwrites what level {receiver} has not got yet")
    if not found:
        print("  no reason to sleep" if policy else "  no reason to sleep: it has no policy, see `new --sleep`")


def quarantine(found: list[Any], json: bool) -> None:
    """By number."""
    if json:
        _json([asdict(one) for one in found])
        return
    rows = [(one.number, one.source, one.status, one.night, f"{one.reason}; {one.detail}") for one in found]
    _table(("number", "source", "status", "night", "reason"), rows)
