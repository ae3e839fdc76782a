"""What a learner is and what it has been through, as plain data."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circadia.live.forgetting import Line
from circadia.live.reader import position, tail_of

if TYPE_CHECKING:
    from circadia.live.learner import Learner

HELD = ("delta", "a", "b", "gate", "memory")  # parts of a level that are read, of a retrofit and of a model of our own


def of(me: "Learner") -> dict[str, Any]:
    """`Learner.status`."""
    state, settings, version, nights = me.state, me.model.settings, me.version, me.nights()
    life = me.store.learner(me.name)
    clock = int(state["clock/tokens"])
    levels = []
    norms = me.model.norms(state)
    for i, level in enumerate(settings.levels):
        levels.append(
            {
                "level": i,
                "period": level.period,
                "updates": int(state[f"level{i}/steps"]),
                "next": level.period - clock % level.period,
                "norm": norms[i],
                "bytes": sum(x.nbytes for n, x in state.items() if n.startswith(f"level{i}/")),
            }
        )
    sources: dict[str, dict[str, Any]] = {}
    line = Line.of(me.store, me.name)
    held = {e for v in line.way(version.number if version else None) for e in line.brought[v]}
    for one in me.store.experiences(me.name):
        if one.number in held or (one.pending and one.branch == me.branch_name):
            entry = sources.setdefault(one.source, {"experiences": 0, "tokens": 0, "first": one.time, "last": one.time})
            entry["experiences"] += 1
            entry["tokens"] += one.stop - one.start
            entry["last"] = one.time
    return {
        "name": me.name,
        "base": life.base,
        "branch": me.branch_name,
        "branches": life.branches,
        "version": version.number if version else None,
        "tokens": position(state),
        "pending": state["stream/pending"].numel(),
        "waiting": len(tail_of(state)),
        "bytes": sum(x.nbytes for x in state.values()),
        "journal": life.journal,
        "conversations": me.conversations,
        "writer": life.writer,
        "levels": levels,
        "sources": sources,
        "probes": [p.name for p in me.guard.probes],
        "nights": len(nights),
        "night": asdict(nights[0]) if nights else None,
        "quarantine": [asdict(one) for one in me.quarantine()],
        "due": list(me.due().reasons),
        "life": story(me),
        "found": list(me.found),
    }


def group(name: str) -> str:
    """For `diff`: what a level holds, apart from its sums and clocks and from all else."""
    level, _, rest = name.partition("/")
    return level if level.startswith("level") and rest.partition("/")[0] in HELD else "other"


def story(me: "Learner") -> list[dict[str, Any]]:
    """What happened, in order: commits with what was learned, verdicts, rollbacks, forgettings."""
    told: dict[int, dict[str, Any]] = {}
    found: list[dict[str, Any]] = []
    for event in me.store.events(me.name):
        payload = event.payload
        if payload is None:
            continue
        if event.kind == "commit":
            version = payload["version"]
            entry = {"what": "commit", "time": event.time, "version": version["number"], "parent": version["parent"]}
            entry |= {"reason": version["reason"], "current": "to" in payload, "until": version["tokens"]}
            told[version["number"]] = entry
            found.append(entry)
        elif event.kind == "learned" and event.version in told:
            told[event.version] |= payload
        elif event.kind == "rollback" and not payload["reason"].startswith("forget: "):
            entry = {"what": "rollback", "time": event.time, "from": payload["from"], "to": payload["to"]}
            found.append({**entry, "reason": payload["reason"]})
        elif event.kind == "guard" and payload["verdict"] != "accept":
            found.append({"what": payload["verdict"], "time": event.time, "reasons": payload["reasons"]})
        elif event.kind == "erase":
            found.append({"what": "forgot", "time": event.time, "experiences": payload["experiences"]})
        elif event.kind == "feedback":
            found.append({"what": "feedback", "time": event.time})
        elif event.kind == "branch":
            found.append({"what": "branch", "time": event.time, "branch": payload["branch"], "from": payload["to"]})
    return found
