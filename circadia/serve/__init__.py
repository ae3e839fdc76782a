"""One base served to many learners over HTTP, in OpenAI's form, with learning beside it.

    service = Service(Settings(base="path", store="store"))
    uvicorn.run(application(service))

or `circadia serve --base path --store store`. Needs the extra `serve`; see docs/serving.md.
"""

import importlib
from typing import Any

_PUBLIC = {"Settings": "settings", "Service": "service", "application": "app", "run": "app", "Keys": "keys"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"circadia.serve.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'circadia.serve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
