"""From a base in any shape to the model, tokenizer and settings of a learner; and back from what the store noted."""

import hashlib
import json
from pathlib import Path
from typing import Any

from circadia.live.awake import of as awake_of
from circadia.live.errors import StoreError
from circadia.live.gate import of as gate_of
from circadia.live.reader import Reader
from circadia.live.text import Words, of_base
from circadia.models.bundled import NAME
from circadia.models.native import NativeModel, able, native
from circadia.models.retrofit import RetrofitModel, Settings, retrofit
from circadia.models.retrofit.build import arranged, loaded
from circadia.models.retrofit.files import _quiet

FORMAT = 1
EVERY = 32768  # tokens of a long stream between two commits


def made(
    base: Any, settings: dict[str, Any], tokenizer: str | None, gate: Any, rehearse: Any = False
) -> tuple[Reader, dict[str, Any]]:
    """A reader for a new learner, and its config."""
    source = str(Path(base).expanduser().resolve()) if _folder(base) else base if isinstance(base, str) else None
    model: RetrofitModel | NativeModel
    if isinstance(base, (RetrofitModel, NativeModel)):
        if settings:
            how = "retrofitted" if isinstance(base, RetrofitModel) else "a model that learns by its own memories"
            raise ValueError(f"{', '.join(settings)}: the base is {how} already and has its own settings")
        model, source = base, base.source
    else:
        if source and (Path(source) / "retrofit.json").is_file() and settings:
            raise ValueError(f"{', '.join(settings)}: {source} is a retrofit and has its own settings")
        with _quiet():
            model = arranging(base, settings)
    words = of_base(model.base, tokenizer, source)
    reader = Reader(model, words, gate_of(gate), awake_of(rehearse))
    if reader.awake is not None:
        reader.awake.check(model)
    config = {
        "format": FORMAT,
        "base": source,
        kind_of(model): _plain(model.settings),
        "tokenizer": words.name,
        "gate": reader.gate.to_dict() if reader.gate else None,
    }
    if reader.awake is not None:
        config["awake"] = reader.awake.to_dict()
    return reader, config


def kind_of(model: RetrofitModel | NativeModel) -> str:
    """Whose memory it is, as a learner notes it."""
    return "native" if isinstance(model, NativeModel) else "retrofit"


def arranging(base: Any, settings: dict[str, Any]) -> RetrofitModel | NativeModel:
    """A base in any shape as a model that learns: by its own memories where it has some, unless a retrofit is asked."""
    if set(settings) - {"chunk", "context"}:
        return _retrofitted(base, settings)
    if isinstance(base, (str, Path)) and not (Path(base).expanduser() / "retrofit.json").is_file():
        base, source = loaded(str(base)), str(base)
    else:
        source = None
    if not able(base):
        made = retrofit(base, **settings)
        made.source = made.source or source
        return made
    own = native(base, **settings)
    own.source = source
    return own


def _retrofitted(base: Any, settings: dict[str, Any]) -> RetrofitModel:
    try:
        return retrofit(base, **settings)
    except ValueError as error:
        if "levels learn in context already" in str(error):
            names = ", ".join(f"{n}={settings[n]!r}" for n in settings if n not in ("chunk", "context"))
            raise ValueError(f"{names}: {error}; or leave these out, and it learns with its own memories") from None
        raise


def again(life: Any, base: Any) -> Reader:
    """The reader of a learner that exists; another base than its own is refused."""
    config = life.config
    if config.get("format") != FORMAT:
        raise StoreError(
            f"name={life.name!r}: made by another program or version (format {config.get('format')!r}, this Circadia "
            f"reads {FORMAT}): open it with the one that made it"
        )
    if base is None and config["base"] is None:
        raise ValueError(f"base: {life.name!r} was made on a model in memory: give that model")
    given = config["base"] if base is None else base
    model: RetrofitModel | NativeModel
    kind = "native" if "native" in config else "retrofit"
    if isinstance(given, (RetrofitModel, NativeModel)):
        model = given
    elif kind == "native":
        with _quiet():
            object_ = loaded(str(given)) if isinstance(given, (str, Path)) else given
        own = config["native"]
        model = native(object_, chunk=own["chunk"], context=own["context"])
        model.source = config["base"]
    elif _folder(given) and (Path(given).expanduser() / "retrofit.json").is_file():
        with _quiet():
            model = retrofit(given)
    else:
        settings = Settings.from_dict(config["retrofit"])
        with _quiet():
            object_ = loaded(str(given)) if isinstance(given, (str, Path)) else given
        model = arranged(
            object_, settings.levels, assign=settings.assign, layers=settings.layers, target=settings.target,
            chunk=settings.chunk, context=settings.context, seed=settings.seed, source=config["base"],
        )  # fmt: skip
    if kind_of(model) != kind:
        other = "a retrofit" if kind == "retrofit" else "a model with memories of its own"
        raise ValueError(
            f"base: {life.name!r} was made on {other}, this is a {type(model).__name__}: give its own base"
        )
    theirs, ours = (_plain(x) for x in (model.settings, type(model.settings).from_dict(config[kind])))
    if theirs != ours:
        changed = [name for name in theirs if theirs[name] != ours[name]]
        what = "retrofit" if kind == "retrofit" else "model"
        raise ValueError(f"base: {life.name!r} was made with another {what}, they differ in {', '.join(changed)}")
    if (found := fingerprint(model)) != life.base:
        raise ValueError(
            f"base: {life.name!r} belongs to the base {life.base[:12]}, this one is {found[:12]}: give the base "
            "that it was made on, with the weights that it had"
        )
    words = Words(None) if config["tokenizer"] is None else Words.open(config["tokenizer"])
    return Reader(model, words, gate_of(config["gate"]), awake_of(config.get("awake")))


def _plain(settings: Any) -> dict[str, Any]:
    """As it is noted; what did not exist yet when a learner was made has its default."""
    return json.loads(json.dumps(settings.to_dict()))


def fingerprint(model: RetrofitModel | NativeModel) -> str:
    """Of the base, and of learned rates where there are some: everything that replay rests on."""
    own = model.fingerprint()
    if model.learned is None:
        return own
    found = hashlib.sha256(own.encode())
    for name, x in sorted(model.learned.state_dict().items()):
        found.update(name.encode() + x.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _folder(base: Any) -> bool:
    return isinstance(base, (str, Path)) and base != NAME and Path(base).expanduser().is_dir()
