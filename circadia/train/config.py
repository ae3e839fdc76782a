"""The configuration of a run: a YAML or TOML file, `key=value` overrides on top, every field checked."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Reader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-8 for a text: here it is the number that it is in TOML, JSON and YAML 1.2."""


class _Writer(yaml.SafeDumper):
    """What looks like such a number but is a text gets quotes."""


for _each in (_Reader, _Writer):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(_Part):
    """Which model: one of `preset` and `path`."""

    preset: str | None = None  # architecture/size as `circadia models` lists them: gated-deltanet/tiny
    path: str | None = None  # a folder or Hub id to go on from
    config: dict[str, Any] = {}  # fields of the model's configuration, over those of the preset or the folder
    # Settings of circadia.retrofit, and `first_order` and `train` of its adaptation: inner updates are on in training.
    retrofit: dict[str, Any] | None = None


class DataPart(_Part):
    """What is read, and in which pieces."""

    path: str | list[str]  # files or folders of text, .jsonl, .parquet, compressed or not; or hf:NAME[:CONFIG]
    text: str = "text"  # the field of JSONL and Parquet that holds the text
    split: str = "train"  # of a Hugging Face dataset
    streaming: bool = False  # tokenize while training; else once, into a cache, and the order is a full shuffle
    tokenizer: str = "bytes"  # or a folder, a tokenizer.json or a Hub id of a Hugging Face tokenizer
    heldout: float | list[str] = 0.02  # fraction of documents, or patterns: "author=Hardy", "*/test/*"
    length: PositiveInt = 1024  # tokens of a row
    reset: bool = True  # the memory starts anew where a document starts within a row
    carry: bool = False  # the memory goes on from row to row of the same document (truncated backpropagation)
    buffer: PositiveInt = 1024  # streaming: rows from which the next one is drawn at random
    workers: NonNegativeInt = 0  # processes that tokenize and cut rows; the order does not depend on them


class OptimPart(_Part):
    """How the slow weights are written."""

    name: str = "adamw"  # as `circadia optimizers` lists them, or torch.NAME
    lr: PositiveFloat = 1e-3
    settings: dict[str, Any] = {}  # of the optimizer: {weight_decay: 0.1, betas: [0.9, 0.95]}
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: Fraction = 0.02  # fraction of the steps
    decay: Fraction = 0.2  # wsd: the last fraction of the steps
    floor: Fraction = 0.1  # the last learning rate, as a fraction of lr
    clip: PositiveFloat | None = 1.0  # norm of the gradient
    periods: dict[str, PositiveInt] = {}  # CMS in the stream: pattern of parameter names -> tokens between updates


class TrainPart(_Part):
    """How long, on what, and what is kept."""

    tokens: PositiveInt = 20_000_000
    batch: PositiveInt = 16  # rows of one step, over all processes
    micro: PositiveInt | None = None  # rows of one forward pass in a process; None: as many as fit, see make.micro
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    checkpointing: bool = False  # compute activations again in the backward pass
    device: str = "auto"
    parallel: Literal["fsdp", "ddp"] = "fsdp"  # under torchrun
    eval_every: PositiveInt = 200  # steps
    eval_tokens: NonNegativeInt = 1_000_000  # of the held-out text; 0: all of it
    save_every: PositiveInt = 200  # steps
    save_minutes: NonNegativeFloat | None = None  # also in the middle of a step, where steps are long
    patience: PositiveInt | None = None  # stop after so many evaluations without a better one
    spike: PositiveFloat = 2.0  # a step whose loss is so many nats above the last ones is skipped
    levels_every: NonNegativeInt = 20  # steps after which the log says what each level does in context; 0: never
    track: Literal["tensorboard", "trackio"] | None = None


class StagePart(_Part):
    """What differs in a stage; everything else is as in the run."""

    name: str
    model: dict[str, Any] = {}  # fields of the model's configuration that leave the shapes of parameters as they are
    data: dict[str, Any] = {}
    optim: dict[str, Any] = {}
    train: dict[str, Any] = {}


# What concerns the whole run, so that no stage may change it.
WHOLE_RUN = ("device", "parallel", "track", "patience", "compile", "checkpointing", "precision")


class TrainConfig(_Part):
    """A whole run."""

    model: ModelPart
    data: DataPart
    optim: OptimPart = OptimPart()
    train: TrainPart = TrainPart()
    stages: list[StagePart] = []  # one after another, each with an optimizer and a schedule of its own
    out: str = "runs/train"  # the folder of the run
    seed: int = 0

    def stage(self, index: int) -> "TrainConfig":
        """The configuration that holds in a stage."""
        if not self.stages:
            return self
        own = self.stages[index]
        base = self.model_dump(exclude={"stages"})
        base["model"]["config"] = {**base["model"]["config"], **own.model}
        for part in ("data", "optim", "train"):
            base[part] = {**base[part], **getattr(own, part)}
        return _validated(base, f"stages[{index}] ({own.name}): ")

    @property
    def names(self) -> list[str]:
        """Of the stages."""
        return [stage.name for stage in self.stages] or ["train"]

    @property
    def steps(self) -> int:
        """Of one stage."""
        return max(1, round(self.train.tokens / (self.train.batch * self.data.length)))

    def checked(self) -> "TrainConfig":
        """Complain about what does not fit together."""
        if (self.model.preset is None) == (self.model.path is None):
            raise ValueError("model: give one of model.preset (such as gated-deltanet/tiny) and model.path")
        if isinstance(self.data.heldout, float) and not 0 <= self.data.heldout < 1:
            raise ValueError(f"data.heldout={self.data.heldout}: give a fraction below 1, or patterns")
        if self.data.carry and self.data.streaming:
            raise ValueError("data.carry=true needs rows at fixed places: set data.streaming=false")
        if self.data.streaming and not self.train.eval_tokens:
            raise ValueError("train.eval_tokens=0 means all held-out text, which a stream does not know: give a number")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"stages: the names {self.names} repeat; give each stage its own")
        for i, stage in enumerate(self.stages):
            if wrong := [key for key in WHOLE_RUN if key in stage.train]:
                raise ValueError(f"stages[{i}].train.{wrong[0]} holds for the whole run: set train.{wrong[0]}")
            self.stage(i)
        return self


def load(source: str | Path | Mapping[str, Any] | None, overrides: Iterable[str] = ()) -> TrainConfig:
    """A configuration from a file, a mapping or nothing, with ``key.key=value`` on top; values are YAML."""
    tree: dict[str, Any] = _read(Path(source)) if isinstance(source, (str, Path)) else _copy(source or {})
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ValueError(f"{text!r} is no override: write key=value, such as optim.lr=3e-4")
        try:
            _set(tree, key.split("."), yaml.load(value, _Reader))
        except yaml.YAMLError as error:
            raise ValueError(f"{text!r}: the value is no YAML ({error})") from error
    return _validated(tree).checked()


def dump(config: TrainConfig) -> str:
    """As YAML that `load` reads back to an equal configuration."""
    return yaml.dump(config.model_dump(), Dumper=_Writer, sort_keys=False, allow_unicode=True)


def changed(old: TrainConfig, new: TrainConfig) -> list[str]:
    """Keys that differ, dotted."""
    a, b = _flat(old.model_dump()), _flat(new.model_dump())
    return [key for key in {**a, **b} if a.get(key) != b.get(key)]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a YAML or TOML file, or --preset and --data")
    if path.suffix not in (".yaml", ".yml", ".toml"):
        raise ValueError(f"{path}: a configuration ends in .yaml, .yml or .toml")
    text = path.read_text(encoding="utf-8")
    try:
        tree = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _Reader)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected keys with values, found {type(tree).__name__}")
    return tree


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _set(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{'.'.join(keys)}: {key} is {inner!r} and has no fields")
        tree = inner
    tree[keys[-1]] = value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in tree.items():
        found.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return found


def _fields(part: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Dotted name -> last part, of every field."""
    found = {}
    for name, field in part.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found.update(_fields(inner, f"{prefix}{name}."))
        found[f"{prefix}{name}"] = name
    return found


def _nearest(location: tuple[Any, ...]) -> str:
    """The known key that is most like a wrong one: in its own part first, then anywhere."""
    if location[0] == "stages" and len(location) > 2:
        options = [f"stages.{location[1]}.{name}" for name in StagePart.model_fields]
        return max(options, key=lambda name: _like(name.split(".")[-1], str(location[-1])))
    wrong, known = ".".join(map(str, location)), _fields(TrainConfig)
    return max(known, key=lambda name: _like(known[name], str(location[-1])) + 0.5 * _like(name, wrong))


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a wrong one."""
    return max(known, key=lambda each: _like(each, name))


def _like(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _validated(tree: Mapping[str, Any], where: str = "") -> TrainConfig:
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ValueError(where + "; ".join(_message(each) for each in error.errors()[:3])) from error


def _message(error: Any) -> str:
    location = tuple(part for part in error["loc"] if part not in ("float", "list[str]", "str", "function-after"))
    name = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        return f"{name} is unknown: did you mean {_nearest(location)}?"
    if error["type"] == "missing":
        return f"{name} is missing" + (": give data.path or --data" if name in ("data", "data.path") else "")
    text = error["msg"][0].lower() + error["msg"][1:]
    return f"{name}={error['input']!r}: {text}"
