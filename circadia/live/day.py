"""What a night of a learner is about: what it observed since the last one, without what is in quarantine.

All of it is a function of the experiences on the way to the state, in their order, as the state itself is: neither
numbers in the journal nor positions count, so that a life from which something was forgotten has the same nights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from circadia.live import commits
from circadia.models.retrofit.find import positions
from circadia.sleep import Entry, Probe, Task, Window

if TYPE_CHECKING:
    from circadia.live.journal import Experience
    from circadia.live.learner import Learner
    from circadia.live.store import Store

TOGETHER = 1024  # characters up to which small pieces of one source are one entry


@dataclass
class Day:
    """What goes into `circadia.sleep.sleep`."""

    entries: list[Entry] = field(default_factory=list)
    members: dict[int, list[int]] = field(default_factory=dict)  # experiences of an entry, by its number
    tasks: list[Task] = field(default_factory=list)  # out of corrections
    admitted: list[int] = field(default_factory=list)
    earlier: list[list[Window]] = field(default_factory=list)  # of the nights before, without those of the day

    @property
    def tokens(self) -> int:
        """In all entries."""
        return sum(entry.tokens.numel() for entry in self.entries)


def lived(me: "Learner") -> list["Experience"]:
    """The experiences that made the state what it is, in order, without what they were."""
    return behind(me.store, me.name, me.at, me.unsaved.experiences)


def behind(store: "Store", name: str, version: int | None, more: Sequence[int] = ()) -> list["Experience"]:
    """The same of a version; no state is read for it."""
    from circadia.live.forgetting import Line

    line = Line.of(store, name)
    numbers = {e for v in line.way(version) for e in line.brought[v]} | set(more)
    return [one for one in store.experiences(name) if one.number in numbers]


def reports(store: "Store", name: str, line: Sequence["Experience"]) -> list[dict[str, Any]]:
    """What the nights on the way wrote, in the order of the nights. One that had nothing to sleep on wrote nothing."""
    told = [commits.header(store.payload(name, one.number)) for one in line if one.kind == "report"]
    return sorted(told, key=lambda said: said["night"])


def day(me: "Learner", days: int | None) -> Day:
    """Since the last night but `days` - 1 before it, or since ever; and what was let out of quarantine since then."""
    from circadia.live.quarantine import folded

    line = lived(me)
    before = reports(me.store, me.name, line)
    nights = [told["night"] for told in before]
    border = 0 if days is None or len(nights) < days else nights[-days]
    kept = folded(me, line)
    away = {n for one in kept.values() if one.status != "admitted" for n in one.members}
    again = {n for one in kept.values() if one.status == "admitted" and one.decided > border for n in one.members}
    found = Day(admitted=sorted(one.number for one in kept.values() if one.status == "admitted"))
    found.earlier = [
        [Window.from_dict(one) for one in night if one["number"] <= border and one["number"] not in away]
        for night in (before[-1].get("kept", []) if before else [])  # older reports have none
    ]
    some: list[tuple[Experience, str]] = []
    for one in line:
        if one.number in away or (one.number <= border and one.number not in again):
            continue
        if one.kind not in ("text", "tokens", "chat", "feedback"):
            continue
        told = commits.header(me.store.payload(me.name, one.number))
        text = told["data"] if told["op"] == "observe" and told["form"] == "text" else None
        if some and not (text is not None and _joins(some, one, text)):
            _entry(me, found, some)
            some = []
        if text is not None:
            some.append((one, text))
        elif told["op"] == "observe":
            _take(me, found, one, told)
        elif told["op"] == "feedback" and told["kind"] == "correction":
            _correction(me, found, one, told)
    if some:
        _entry(me, found, some)
    return found


def _joins(some: Sequence[tuple["Experience", str]], one: "Experience", text: str) -> bool:
    first = some[0][0]
    size = sum(len(before) for _, before in some) + len(text)
    return (first.source, first.trust) == (one.source, one.trust) and size <= TOGETHER


def _entry(me: "Learner", found: Day, some: Sequence[tuple["Experience", str]]) -> None:
    _add(me, found, some[0][0], me.reader.words.encode("".join(text for _, text in some)), [e.number for e, _ in some])


def _take(me: "Learner", found: Day, one: "Experience", told: dict[str, Any]) -> None:
    data, words = told["data"], me.reader.words
    if told["form"] == "chat":
        data = words.chat(data)
        data = words.encode(data) if isinstance(data, str) else data
    _add(me, found, one, data, [one.number])


def _correction(me: "Learner", found: Day, one: "Experience", told: dict[str, Any]) -> None:
    """Gone over like a text; and a task for dreams: to give the right answer."""
    prompt, answer = list(told["prompt"]), me.reader.words.encode(told["text"])
    _add(me, found, one, [*prompt, *answer], [one.number], correction=True)
    ids, cue = fitting(me, prompt, answer)
    if cue:
        name = f"correction {one.number}"
        found.tasks.append(Task(name, ids, (Probe(name, ids, cue),)))


def _add(
    me: "Learner", found: Day, one: "Experience", ids: Sequence[int], numbers: list[int], correction: bool = False
) -> None:
    if len(ids):
        tokens = torch.tensor(list(ids), dtype=torch.int64)
        found.entries.append(Entry(tokens, one.source, one.trust, one.number, one.time, correction))
        found.members[one.number] = numbers


def fitting(me: "Learner", given: Sequence[int], said: Sequence[int]) -> tuple[torch.Tensor, int]:
    """A prompt with what follows, as much of its end as the base has positions for, and where the answer begins."""
    limit = positions(me.model.base)
    ids = [*given, *said]
    cut = max(0, len(ids) - limit) if limit else 0
    return torch.tensor(ids[cut:], dtype=torch.int64), max(0, len(given) - cut) if len(said) else 0


def asked(me: "Learner", given: Sequence[Any]) -> list[Probe]:
    """The guard's questions and texts, so that the report has their scores before and after."""
    words, found = me.reader.words, []
    for probe in given:
        if probe.kind == "qa":
            ids, cue = fitting(me, words.encode(probe.question), words.encode(probe.answer))
        elif probe.kind == "text":
            whole = words.encode(probe.text)
            ids, cue = fitting(me, whole[:1], whole[1:])
            ids, cue = ids, max(1, cue)
        else:
            continue
        if 0 < cue < ids.numel():
            found.append(Probe(probe.name, ids, cue))
    return found
