"""What a configuration names: the model, the optimizer, the data."""

import inspect
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from circadia.models import HopeConfig, HopeForCausalLM, preset
from circadia.models.bundled import located
from circadia.models.measure import activation_bytes
from circadia.optim import CMS, OPTIMIZERS, Combined, build
from circadia.train import corpus as corpora
from circadia.train import data as rows
from circadia.train.config import DataPart, ModelPart, OptimPart, TrainConfig, nearest
from circadia.train.sources import HeldOut, Source
from circadia.train.tokens import Tokenizer


def model(part: ModelPart, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """The model of a run, retrofitted if the run says so."""
    if part.retrofit is None:
        return _plain(part, tokenizer, seed)
    from circadia.models.retrofit import retrofit

    settings = dict(part.retrofit)
    how = {name: settings.pop(name) for name in ("first_order", "train") if name in settings}
    try:
        return retrofit(_plain(part, tokenizer, seed), **settings).adapting(**how)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.retrofit: {error}") from error


def _plain(part: ModelPart, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """With weights drawn from the seed or read from a folder."""
    torch.manual_seed(corpora.seed_of("weights", seed))
    if part.preset is not None:
        # The preset's own vocabulary stands for the papers' tokenizer; the one in use decides.
        return HopeForCausalLM(configured(part, {"vocab_size": tokenizer.size}))
    from transformers import AutoConfig, AutoModelForCausalLM

    assert part.path is not None
    if part.path.startswith((".", "/", "~")) and not Path(part.path).expanduser().is_dir():
        raise ValueError(f"model.path: {part.path}: no such folder")
    where = located(part.path)
    try:
        config = AutoConfig.from_pretrained(where)
    except Exception as error:  # unknown, offline, broken files: each has its own class
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.path={part.path!r} cannot be read: give a model's folder or Hub id ({said})"
        ) from error
    found = AutoModelForCausalLM.from_pretrained(where, config=_changed(config, part.config), dtype=torch.float32)
    if found.config.vocab_size < tokenizer.size:
        raise ValueError(
            f"data.tokenizer={tokenizer.name!r} has {tokenizer.size} tokens, the model of {part.path} knows "
            f"{found.config.vocab_size}: use the model's own tokenizer"
        )
    return found.train()


def configured(part: ModelPart, defaults: dict[str, Any] | None = None) -> HopeConfig:
    """The configuration of a preset with what the run changes in it."""
    assert part.preset is not None
    name, separator, size = part.preset.partition("/")
    if not separator:
        raise ValueError(f"model.preset={part.preset!r}: write architecture/size, such as gated-deltanet/tiny")
    return _changed(preset(name, size), {**(defaults or {}), **part.config})


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    """A new configuration, checked as a whole."""
    if not changes:
        return config
    if isinstance(config, HopeConfig):  # these follow from others unless they are named
        if "num_attention_heads" in changes and config.num_key_value_heads == config.num_attention_heads:
            changes = {"num_key_value_heads": None, **changes}
        if "hidden_size" in changes:
            changes = {"intermediate_size": None, **changes}
    known = [name for name in config.to_dict() if not name.startswith("_")]
    for name in changes:
        if name not in known:
            raise ValueError(f"model.config.{name} is unknown: did you mean {nearest(name, known)}?")
    try:
        return type(config).from_dict({**config.to_dict(), **changes})
    except Exception as error:  # huggingface_hub's strict dataclasses have their own classes of errors
        raise ValueError(f"model.config={changes}: {' '.join(str(error).split())}") from error


def next_stage(old: nn.Module, part: ModelPart, tokenizer: Tokenizer) -> nn.Module:
    """The same weights in a model that is configured anew; the shapes of its parameters must not change."""
    config: Any = old.config
    ours = part.preset is not None
    new = configured(part, {"vocab_size": tokenizer.size}) if ours else _changed(config, part.config)
    if new.to_dict() == config.to_dict():
        return old
    if part.retrofit is not None:
        raise ValueError(f"stages: model.{part.config} changes the base of a retrofit: train it in a run of its own")
    with torch.device("meta"):
        wanted = {name: p.shape for name, p in type(old)(new).named_parameters()}
    held = {name: p.shape for name, p in old.named_parameters()}
    for name in {**held, **wanted}:
        if held.get(name) != wanted.get(name):
            raise ValueError(
                f"stages: model.{part.config} changes the parameter {name} from {_shape(held.get(name))} to "
                f"{_shape(wanted.get(name))}: a stage may change only what leaves parameters as they are"
            )
    made = type(old)(new)
    made.load_state_dict(old.state_dict())
    return made.train(old.training)


def _shape(shape: Any) -> str:
    return "nothing" if shape is None else str(tuple(shape))


def takes_reset(net: nn.Module) -> bool:
    """Can documents be marked in a row?"""
    return isinstance(net, HopeForCausalLM) or "reset" in inspect.signature(net.forward).parameters


ROOM = 4 * 2**30  # bytes for activations on the CPU; on a GPU half of its memory
MORE = 1.25  # a backward pass needs room beside what was kept for it


def micro(net: Any, now: TrainConfig, own: int, device: torch.device) -> int:
    """Rows of one forward pass of the ``own`` of a process: as told, or the largest even share that fits."""
    if now.train.micro is not None or not isinstance(net.config, HopeConfig):
        return min(now.train.micro or own, own)
    room = ROOM
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // 2
    row = MORE * activation_bytes(net.config, now.data.length, now.train.checkpointing)
    return max((n for n in range(1, own + 1) if own % n == 0 and n * row <= room), default=1)


def optimizer(net: nn.Module, part: OptimPart) -> Optimizer:
    """By name, with the settings of the run; under CMS if the run names periods."""
    try:
        if part.name.startswith("torch."):
            made: Any = _torch(net, part)
        else:
            made = build(net, part.name, lr=part.lr, **part.settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optim: {error}") from error
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    if not part.periods:
        return made
    names = [name for name, _ in net.named_parameters()]
    for pattern in part.periods:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"optim.periods: {pattern!r} fits no parameter: the names are such as {names[0]!r}")
    parts = [_by_period(one, net, part.periods) for one in getattr(made, "parts", [made])]
    return CMS(parts[0] if len(parts) == 1 else Combined(parts), unit="token")


def _torch(net: nn.Module, part: OptimPart) -> Optimizer:
    name = part.name.removeprefix("torch.")
    make: Any = getattr(torch.optim, name, None)
    if not (isinstance(make, type) and issubclass(make, Optimizer) and make is not Optimizer):
        raise ValueError(f"name={part.name!r} is no optimizer of torch; ours are {', '.join(OPTIMIZERS)}")
    params = [p for p in net.parameters() if p.requires_grad]
    return make(params, **{"lr": part.lr, **part.settings})


def _by_period(made: Optimizer, net: nn.Module, periods: dict[str, int]) -> Optimizer:
    """Split every group of an optimizer that has not stepped yet by the period of its parameters."""
    period = {}
    for name, p in net.named_parameters():
        fits = [each for pattern, each in periods.items() if fnmatchcase(name, pattern)]
        if not fits:
            raise ValueError(f"optim.periods: no pattern fits {name!r}: add one, or '*' for the rest")
        period[id(p)] = fits[0]
    groups = []
    for group in made.param_groups:
        for each in sorted({period[id(p)] for p in group["params"]}):
            own = [p for p in group["params"] if period[id(p)] == each]
            groups.append({**group, "params": own, "period": each})
    made.param_groups = groups
    return made


def source(part: DataPart) -> Source:
    """Where the text comes from."""
    paths = (part.path,) if isinstance(part.path, str) else tuple(part.path)
    if not paths:
        raise ValueError("data.path=[] is empty: name a file, a folder or a dataset")
    return Source(paths, part.text, part.split)


class Data:
    """The text of a run: batches to train on, and held-out ones."""

    def __init__(self, part: DataPart, seed: int, eval_tokens: int) -> None:
        self.part, self.seed, self.eval_tokens = part, seed, eval_tokens
        self.tokenizer = Tokenizer(part.tokenizer)
        self.source = source(part)
        if part.streaming:
            self.train = None
            documents = corpora.encoded(self.source, self.tokenizer, HeldOut(part.heldout), part.workers)
            self.held = corpora.first_held_out(documents, eval_tokens if part.heldout else 0)
        else:
            self.train, self.held = corpora.prepare(self.source, self.tokenizer, part.heldout, part.workers)

    def batches(self, batch: int, share: tuple[int, int], state: tuple[dict, dict] | None) -> Any:
        """Batches from a place on; None: from the beginning."""
        if self.train is None:
            return rows.Stream(self.source, self.tokenizer, self.part, batch, self.seed, share, state)
        position = 0 if state is None else state[0]["position"]
        if state is not None and state[0]["tokens"] != len(self.train):
            raise ValueError(
                f"data.path has {len(self.train):,} tokens, the run was started with {state[0]['tokens']:,}: "
                "give it the same text again"
            )
        return rows.Batches(self.train, self.part, batch, self.seed, share, position)

    def held_out(self, batch: int, share: tuple[int, int]) -> Iterator[rows.Batch]:
        """The held-out batches, once."""
        return rows.held_out_batches(self.held, self.part, batch, self.eval_tokens, share)

    def __str__(self) -> str:
        size = (
            "a stream" if self.train is None else f"{len(self.train):,} tokens in {len(self.train.starts):,} documents"
        )
        held = f"{len(self.held):,} tokens held out" if len(self.held) > 1 else "nothing held out: no evaluation"
        return f"{size}, {held}"
