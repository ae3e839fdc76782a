"""The learner, and what it is made of while it lives: its versions, its log and its journal, on disk.

with Store.open("store") as store:
    store.create("ana", base=fingerprint)
    with store.writer("ana") as writer:
        writer.remember(text.encode(), source="notes", start=0, stop=512)
        writer.commit(state, reason="observe", tokens=512)
    state = store.load("ana")
"""

import importlib
from typing import Any

_PUBLIC = {
    "Learner": "learner",
    "Answer": "answers",
    "Observed": "observing",
    "Forgotten": "forgetting",
    "Changed": "feedback",
    "Gate": "gate",
    "Awake": "awake",
    "Due": "policy",
    "Night": "sleeping",
    "Policy": "policy",
    "Quarantined": "quarantine",
    "Probe": "guard",
    "Verdict": "guard",
    "Store": "store",
    "Life": "store",
    "Writer": "writer",
    "Version": "versions",
    "Diff": "versions",
    "Moved": "versions",
    "Event": "chain",
    "Experience": "journal",
    "Erased": "erase",
    "Exported": "erase",
    "Tidied": "sweep",
    "Verified": "verify",
    "StoreError": "errors",
    "Busy": "errors",
    "Damaged": "errors",
    "Full": "errors",
    "Unwritable": "errors",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"circadia.live.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'circadia.live' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
