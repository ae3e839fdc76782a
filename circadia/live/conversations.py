"""Whether what is said with a learner teaches it where nobody says so: `Learner.create(..., conversations=True)`.

A setting, like the probes: the first stands in the learner's config, each change is an entry of its log. So it makes no
version, holds on every branch, stays through rollbacks and forgetting, and goes along with an export.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circadia.live.store import Store
    from circadia.live.writer import Writer

KIND = "conversations"  # of the log's entries


def checked(teach: object) -> bool:
    """Yes or no."""
    if not isinstance(teach, bool):
        raise ValueError(f"conversations={teach!r}: give True, or False")
    return teach


def of(store: "Store", name: str) -> bool:
    """What counts now."""
    changes = [event.payload for event in store.events(name, KIND) if event.payload]
    return bool(changes[-1]["teach"] if changes else store.learner(name).config.get("conversations", False))


def change(writer: "Writer", teach: bool) -> None:
    """From now on."""
    writer.record(KIND, {"teach": checked(teach)})
