"""Moving what a fast level knows into a slower one: compute -> consolidate -> update.

    (a) the sender's pending update is computed, not applied: `prospective`
    (b) teacher: the self before. Student: the self with that update and with the sender's old experts reset, and one
        new expert in the receiver, the only thing that is trained
    (c) the student is the new self

A state is a value, so that "before" and "after" are simply two of them. Where a stream is read with `schedule.read`,
they are those before and after the chunk that ended the sender's period.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.state import State, key
from circadia.models.retrofit.stream import Stream
from circadia.sleep import pool
from circadia.sleep.fit import Meter
from circadia.sleep.seed import Judge, Seeding, seed, texts
from circadia.sleep.student import Part, Student, Teacher, written
from circadia.sleep.windows import Window


def prospective(model: RetrofitModel, state: State, level: int) -> State:
    """What a level would be if its period ended now: its open sum of gradients is applied, as `learn` applies it."""
    if model.settings.levels[level].feed == "faster" or not any(int(state[key(i, "count")]) for i in range(level + 1)):
        return state
    stream = Stream(model, state)
    stream.ahead(level)
    return stream.state


def check(model: RetrofitModel, sender: int, receiver: int, how: Seeding) -> None:
    """Can one be moved into the other?"""
    if not 0 <= sender < receiver < len(model.own):
        raise ValueError(
            f"sender={sender}, receiver={receiver}: a level sends to a slower one, of 0 to {len(model.own) - 1}"
        )
    if how.expand:
        pool.check(model, receiver)


def consolidate(
    model: RetrofitModel, before: State, after: State, sender: int, receiver: int, how: Seeding,
    windows: Sequence[Window], generator: torch.Generator, meter: Meter, held: dict[str, Any], *, full: str = "merge",
    older: Teacher | None = None, dreams: Tensor | None = None, judge: Judge | None = None, start: int | None = None,
) -> tuple[State, dict[str, Any]]:  # fmt: skip
    """One transfer; the new self, and what was done. `full` is the policy for a full pool."""
    check(model, sender, receiver, how)
    teacher = Teacher(model, before)
    # Drawn again after a stop, from the same numbers: Fit then goes on with its own.
    data = texts(teacher, windows, how, generator, meter, start)
    state, slot = after, 0
    told: list[str] = []
    parts: list[Part]
    if how.expand:
        made = data[0].text if dreams is None else dreams
        state, slot, told = pool.activate(model, state, receiver, full, made)
        state = pool.freed(model, state, sender, how.free)
        parts = pool.parts(model, receiver, slot)
    else:
        state = pool.freed(model, state, sender, how.free)
        parts = written(model, receiver, state)
    student = Student(model, state, parts)
    done = seed(teacher, student, data, how, generator, meter, held, older, dreams, judge)
    where = f"expert {slot} of level {receiver}" if how.expand else f"level {receiver}"
    moved = f"level {sender} into {where}" + ("" if how.free == "nothing" else f"; freed there: {how.free}")
    return student.state(), {**done, "sender": sender, "receiver": receiver, "moved": moved, "pool": told}
