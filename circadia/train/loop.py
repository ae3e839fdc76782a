"""The training loop, from a configuration to a report. Everything that happens in a step is in `Run.step`."""

import contextlib
import math
import signal
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from circadia import __version__
from circadia.files import write_whole
from circadia.models import HopeCache, HopeConfig, watch
from circadia.optim import CMS
from circadia.train import checkpoint, distributed, make, report
from circadia.train.config import TrainConfig, changed, dump, load
from circadia.train.data import IGNORED, Batch
from circadia.train.distributed import World
from circadia.train.log import Bar, Log
from circadia.train.place import Place
from circadia.train.schedule import scale

BAD_STEPS = 10  # skipped in a row: then it is no accident
RECENT = 64  # good losses that a spike is measured against, once there are a quarter of them
# What may differ when a run is taken up again: where and with what it runs, not what it computes.
MAY_CHANGE = ("data.workers", "train.device", "train.parallel", "train.micro", "train.compile", "train.checkpointing",
              "train.save_every", "train.save_minutes", "train.levels_every", "train.track", "out")  # fmt: skip


class Diverged(RuntimeError):
    """Too many steps in a row were not finite or far too bad."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    place: Place
    stopped: str  # finished, early, or the name of a signal
    held_out: dict[str, float] | None = None


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Result:
    """Run a configuration to its end, or from its last checkpoint on."""
    with distributed.started(config.train.device) as world, contextlib.ExitStack() as stack:
        folder = Path(config.out).expanduser()
        there = (folder / "config.yaml").exists()
        if there and not resume:
            raise ValueError(f"out={folder} holds a run: go on with --resume, or choose another folder with out=...")
        if there:
            old = load(folder / "config.yaml")
            wrong = [key for key in changed(old, config) if not key.startswith(MAY_CHANGE)]
            if wrong:
                raise ValueError(f"{folder} was started with another {', '.join(wrong)}: a run cannot change it")
        if world.first:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"out={folder}: {error}: choose a folder that can be written with out=...") from error
            stack.enter_context(checkpoint.lock(folder))
        world.wait()
        return Run(config, folder, world, console if world.first else None).go()


class Run:
    """One run in one process."""

    def __init__(self, config: TrainConfig, folder: Path | None, world: World, console: Console | None) -> None:
        """Without a folder nothing is written: a trial."""
        self.config, self.world = config, world
        self.stages = [config.stage(i) for i in range(len(config.names))]
        self.saved = None
        if folder is not None:
            self.folder = folder
            self.checkpoints = checkpoint.Checkpoints(folder, world)
            self.saved = self.checkpoints.latest()  # to go on from
        self.place = Place(**checkpoint.numbers_of(self.saved)["place"]) if self.saved else Place()
        self.net: Any = None
        self.now = self.stages[0]  # the configuration of the open stage
        self.data: make.Data | None = None
        self.batches: Any = None
        self.caches: dict[int, HopeCache] = {}  # carried memories of each part of a batch
        self.batch: Batch | None = None  # of the open step
        self.found: tuple[int, dict[str, float] | None] = (-1, None)  # the last evaluation, and its step
        self.signal: int | None = None
        self.last_save = time.monotonic()
        steps = sum(stage.steps for stage in self.stages)
        self.bar = Bar(console, steps, self.place.step)
        # Only the first process writes; the log of the others is nowhere.
        self.log: Any = lambda *args, **values: None
        if world.first and folder is not None:
            self.log = Log(folder, self.place.step, config.model_dump(), config.train.track)

    def go(self) -> Result:
        """All stages that are left, then the report."""
        stopped, held_out = "finished", None
        try:
            with self.listening():
                for index in range(self.place.stage, len(self.stages)):
                    self.open(index)
                    if self.world.first:  # once everything that it names could be made
                        write_whole(self.folder / "config.yaml", dump(self.config).encode())
                    stopped = self.stage()
                    if stopped not in ("finished", "early"):
                        break
                if stopped in ("finished", "early"):
                    held_out = self.found[1] if self.found[0] == self.place.step else self.evaluate()
                    self.end()
        finally:
            self.bar.close()
            if self.world.first:
                self.log.close()
        return Result(self.folder, self.place, stopped, held_out)

    def open(self, index: int) -> None:
        """Model, data and optimizer of a stage: new, from the stage before, or from a checkpoint."""
        before = self.now if self.net is not None else None
        self.now, place, world = self.stages[index], self.place, self.world
        now = self.now
        going_on = before is not None and before.data == now.data and before.train.batch == now.train.batch
        data_state = (self.batches.state() if going_on else None) if before is not None else None
        if before is None or before.data != now.data or before.train.eval_tokens != now.train.eval_tokens:
            if world.first:  # one process fills the cache of tokens, the others find it
                self.data = make.Data(now.data, now.seed, now.train.eval_tokens)
            world.wait()
            if not world.first:
                self.data = make.Data(now.data, now.seed, now.train.eval_tokens)
        assert self.data is not None
        if index != place.stage:
            place.stage, place.stage_step, place.recent, place.without_better = index, 0, [], 0
        old = self.net
        if old is None:
            self.net = make.model(now.model, self.data.tokenizer, now.seed)
        elif world.size == 1:
            self.net = make.next_stage(self.net, now.model, self.data.tokenizer)
        elif before is not None and before.model != now.model:
            raise ValueError("stages that change the model run in one process: train each by itself, with model.path")
        net = self.net
        _check(net, now, world)
        if net is not old:
            net.to(world.device).train()
            if now.train.checkpointing:
                # The second is the name before transformers 5.23.
                enable = getattr(net, "activation_checkpointing_enable", None) or net.gradient_checkpointing_enable
                enable({"use_reentrant": False})
            if now.train.compile:
                for block in distributed.blocks(net):
                    block.compile()
            self.called = distributed.shard(net, now.train.parallel, world)
        self.optimizer = make.optimizer(net, now.optim)
        self.caches = {}
        self.learns = now.train.levels_every > 0 and watch.learns(net)
        own = now.train.batch // world.size
        self.micro = make.micro(net, now, own, world.device)  # rows of one forward pass
        self.parts = own // self.micro
        if self.saved is not None:
            rest = checkpoint.load(self.saved, net, self.optimizer, world)
            data_state = self.restore(rest)
            self.log("resume", place.step, checkpoint=self.saved.name)
            self.bar.say(f"resumed from {self.saved}")
            self.saved = None
        self.batches = self.data.batches(now.train.batch, world.share, data_state)
        if place.stage_step == 0:
            parameters = sum(p.numel() for p in net.parameters())
            self.log("stage", place.step, name=self.config.names[index], parameters=parameters, steps=now.steps)
            name = now.model.preset or now.model.path
            self.bar.say(f"{self.config.names[index]}: {name}, {parameters:,} parameters, {now.steps:,} steps")
            self.bar.say(f"text: {self.data}")

    def stage(self) -> str:
        """Steps until the stage is over, or something stops it: says what."""
        now, place = self.now, self.place
        self.evaluate_if_due()  # if a signal came between a step and its evaluation
        while place.stage_step < now.steps and not self.impatient():
            self.step()
            if self.stopping():
                self.save()
                assert self.signal is not None
                name = signal.Signals(self.signal).name
                self.bar.say(f"{name} after step {place.step}; go on with: circadia train {self.folder} --resume")
                return name
            self.evaluate_if_due()
            if place.stage_step == now.steps or place.stage_step % now.train.save_every == 0 or self.too_long_ago():
                self.save()
            if self.impatient():
                self.save()
                self.bar.say(f"stopped early: best after step {place.best_step}, no better in {now.train.patience}")
        return "finished" if place.stage_step == now.steps else "early"

    def evaluate_if_due(self) -> None:
        """Every so many steps and after the last one of a stage, once."""
        now, place = self.now, self.place
        due = place.stage_step == now.steps or place.stage_step % now.train.eval_every == 0
        if due and place.evaluated < place.step:
            self.keep_best(self.evaluate())

    def impatient(self) -> bool:
        """Has the held-out loss been no better for too long?"""
        return self.now.train.patience is not None and self.place.without_better >= self.now.train.patience

    def step(self) -> None:
        """Read a batch, add up the gradients of its parts, write the weights, or skip it if it went wrong."""
        now, place, world = self.now, self.place, self.world
        begin = time.perf_counter()
        if self.batch is None:
            self.batch = next(self.batches)
        batch = self.batch
        waited = time.perf_counter() - begin
        (count,) = world.sum(float((batch.labels != IGNORED).sum()))
        nats: Tensor = torch.tensor(place.nats, device=world.device)
        while place.micro < self.parts:
            part = batch.part(place.micro * self.micro, (place.micro + 1) * self.micro).to(world.device)
            with distributed.accumulating(self.called, place.micro == self.parts - 1):
                loss = self.loss(part, place.micro)
                # Gradients are averaged over the processes, the loss is a mean over the tokens of all of them.
                (loss * (world.size / max(1.0, count))).backward()
            nats = nats + loss.detach()
            place.micro += 1
            if place.micro < self.parts and world.size == 1 and self.too_long_ago():
                place.nats = float(nats)
                self.save()
        (total,) = world.sum(nats)
        loss_value = total / max(1.0, count)
        norm = distributed.whole(nn.utils.clip_grad_norm_(self.net.parameters(), now.optim.clip or math.inf)).item()
        good = math.isfinite(norm) and not self.spike(loss_value)
        factor = scale(place.stage_step, now.steps, now.optim.schedule, now.optim.warmup, now.optim.decay,
                       now.optim.floor)  # fmt: skip
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        tokens = now.train.batch * now.data.length
        if good:
            if isinstance(self.optimizer, CMS):
                self.optimizer.step(tokens=tokens)
            else:
                self.optimizer.step()
            place.recent = [*place.recent[1 - RECENT :], loss_value]
            place.skipped_in_a_row = 0
        else:
            self.caches = {}  # what such a batch wrote into carried memories is not kept either
            place.skipped += 1
            place.skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.batch = None
        place.micro, place.nats = 0, 0.0
        place.step += 1
        place.stage_step += 1
        seconds = time.perf_counter() - begin
        # JSON knows no NaN: what is not finite is null.
        known = {name: x if math.isfinite(x) else None for name, x in (("loss", loss_value), ("norm", norm))}
        self.log("step", place.step, **known, lr=now.optim.lr * factor, skipped=not good, tokens=tokens,
                 seconds=seconds, waited=waited)  # fmt: skip
        self.bar.update(place.step, loss_value, tokens / seconds)
        if not good:
            self.skipped(loss_value, norm)
        elif self.learns and place.stage_step % now.train.levels_every == 0:
            self.watch(batch)

    def loss(self, part: Batch, index: int, net: nn.Module | None = None) -> Tensor:
        """Nats, summed over the labels of some rows; memories go on from `caches` where the run carries them."""
        now = self.now
        given: dict[str, Any] = {} if part.reset is None else {"reset": part.reset}
        if now.data.carry:
            if part.fresh or index not in self.caches:
                self.caches[index] = HopeCache(self.net.config.num_hidden_layers)
            given["past_key_values"] = self.caches[index]
        half = now.train.precision == "bf16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=half):
            out = (self.called if net is None else net)(input_ids=part.tokens, use_cache=now.data.carry, **given)
        if now.data.carry:
            # Gradients end at the row's border. In order, so that a checkpoint gives back the same bits.
            for layer in self.caches[index].layers:
                layer.state = {name: x.detach().contiguous() for name, x in layer.state.items()}
        logits = out.logits.float().flatten(0, 1)
        return F.cross_entropy(logits, part.labels.flatten(), ignore_index=IGNORED, reduction="sum")

    def spike(self, loss: float) -> bool:
        """Not finite, or far above the losses of the last good steps."""
        recent = self.place.recent
        if not math.isfinite(loss):
            return True
        return len(recent) >= RECENT // 4 and loss > statistics.fmean(recent) + self.now.train.spike

    def watch(self, batch: Batch) -> None:
        """How far each level moves in one row, and how surprised it is: into the log and onto the bar."""
        row = batch.part(0, 1).to(self.world.device)
        half = self.now.train.precision == "bf16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=half):
            found = watch.flat(watch.watch(self.net, row.tokens, row.reset))
        sums = self.world.sum(*found.values())  # of one row in each process
        found = {name: total / self.world.size for name, total in zip(found, sums)}
        self.log("levels", self.place.step, **{n: x if math.isfinite(x) else None for n, x in found.items()})
        self.bar.levels(found)

    def skipped(self, loss: float, norm: float) -> None:
        """Say it; after too many in a row, stop."""
        place = self.place
        self.bar.say(f"step {place.step} skipped: loss {loss:.4g}, norm of the gradient {norm:.4g}")
        if place.skipped_in_a_row >= BAD_STEPS:
            last = self.checkpoints.latest()
            where = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
            raise Diverged(
                f"stopped after step {place.step}: {BAD_STEPS} steps in a row were skipped because their loss or "
                f"gradient was not finite or more than train.spike={self.now.train.spike:g} nats above the last good "
                f"ones; {where}; try a lower optim.lr"
            )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float] | None:
        """Loss on held-out text; a chunk is predicted with the memory from before it."""
        assert self.data is not None
        if len(self.data.held) < 2:
            return None
        kept, self.caches = self.caches, {}
        self.net.eval()
        nats: Any = 0.0
        tokens: float = 0
        size: float = 0
        for batch in self.data.held_out(self.micro, self.world.share):
            nats += self.loss(batch.to(self.world.device), 0, net=self.net)
            tokens += int((batch.labels != IGNORED).sum())
            size += int(batch.widths.sum())
        self.net.train()
        self.caches = kept
        nats, tokens, size = self.world.sum(nats, tokens, size)
        loss = nats / max(1, tokens)
        # A token stands for several bytes: only bits per byte compare tokenizers.
        return {
            "loss": loss,
            "bits_per_byte": nats / math.log(2) / max(1, size),
            "perplexity": math.exp(min(loss, 700)),
        }

    def keep_best(self, found: dict[str, float] | None) -> None:
        """Log an evaluation, and keep the model if there was no better one."""
        self.found = (self.place.step, found)
        self.place.evaluated = self.place.step
        if found is None:
            return
        place = self.place
        self.log("eval", place.step, **{name: x if math.isfinite(x) else None for name, x in found.items()})
        self.bar.say(f"step {place.step}: held-out bits per byte {found['bits_per_byte']:.4f}")
        if math.isfinite(found["loss"]) and (place.best is None or found["loss"] < place.best):
            place.best, place.best_step, place.without_better = found["loss"], place.step, 0
            self.checkpoints.save(f"best-{place.step:08d}", self.save_model)
        else:
            place.without_better += 1

    def save_model(self, folder: Path) -> None:
        checkpoint.save_model(self.net, folder, self.world)
        if self.world.first:
            assert self.data is not None
            self.data.tokenizer.save(folder)

    def too_long_ago(self) -> bool:
        """Is a checkpoint due by the clock?"""
        minutes = self.now.train.save_minutes
        due = minutes is not None and time.monotonic() - self.last_save >= 60 * minutes
        return bool(self.world.sum(due)[0]) if minutes is not None else False

    def save(self) -> None:
        """A checkpoint of everything, also between two parts of a step."""
        place = self.place
        place.data, tensors = self.batches.state()
        rest = {f"data/{name}": value for name, value in tensors.items()}
        rest |= {f"samples/{name}": value for name, value in checkpoint.samples(self.optimizer).items()}
        seen = {}
        for index, cache in self.caches.items():
            for i, layer in enumerate(cache.layers):
                seen[f"{index}/{i}"] = layer.seen
                rest |= {f"carry/{index}/{i}/{name}": value for name, value in layer.state.items()}
        if place.micro:
            assert self.batch is not None
            held = {name: value for name, value in vars(self.batch).items() if isinstance(value, Tensor)}
            rest |= {f"batch/{name}": value for name, value in held.items()}
            rest |= {f"gradient/{n}": p.grad for n, p in self.net.named_parameters() if p.grad is not None}
        numbers = {
            "place": asdict(place),
            "rows": self.micro,
            "seen": seen,
            "fresh": self.batch is None or self.batch.fresh,
        }
        name = f"step-{place.step:08d}" + (f"-{place.micro:04d}" if place.micro else "")
        self.checkpoints.save(
            name, lambda folder: checkpoint.save(folder, self.net, self.optimizer, rest, numbers, self.world)
        )
        self.last_save = time.monotonic()

    def restore(self, rest: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Carried memories, and an open step if there is one; returns the place in the data."""
        assert self.saved is not None
        numbers = checkpoint.numbers_of(self.saved)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in rest.items():
            kind, _, key = name.partition("/")
            parts.setdefault(kind, {})[key] = value
        same = numbers["processes"] == self.world.size
        if self.place.micro and not (same and numbers["rows"] == self.micro):
            raise ValueError(
                f"{self.saved} stands in the middle of a step of one process with train.micro={numbers['rows']}: "
                "resume with these, then change them after the next whole step"
            )
        if self.now.data.carry and not same:
            raise ValueError(f"data.carry: each process holds its memories; resume with {numbers['processes']} again")
        if same:
            checkpoint.restore_samples(self.optimizer, parts.get("samples", {}))
        for key, count in numbers["seen"].items():
            index, layer = key.split("/")
            cache = self.caches.setdefault(int(index), HopeCache(self.net.config.num_hidden_layers))
            own = {n.removeprefix(f"{key}/"): x for n, x in parts.get("carry", {}).items() if n.startswith(f"{key}/")}
            cache.layers[int(layer)].write({n: x.to(self.world.device) for n, x in own.items()}, count)
        if "batch" in parts:
            held: dict[str, Any] = {"reset": None, **parts["batch"], "fresh": numbers["fresh"]}
            self.batch = Batch(**held)
            for name, p in self.net.named_parameters():
                if name in parts["gradient"]:
                    p.grad = distributed.like(parts["gradient"][name], p.detach()).to(p.device)
        return self.place.data or {}, parts.get("data", {})

    @contextlib.contextmanager
    def listening(self) -> Any:
        """SIGINT and SIGTERM wait for the end of the step; a second one does not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.signal = number
            signal.signal(number, before[number])

        before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stopping(self) -> bool:
        """Was any process told to stop?"""
        (number,) = self.world.sum(self.signal or 0) if self.world.size > 1 else (self.signal or 0,)
        if number and self.signal is None:
            self.signal = signal.SIGTERM
        return bool(number)

    def end(self) -> None:
        """The last model for from_pretrained, and the report."""
        self.save_model(self.folder / "model")
        if not self.world.first:
            return
        facts = {
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "processes": self.world.size,
            "device": self.world.device.type,
            "versions": f"circadia {__version__}, torch {torch.__version__}",
        }
        path = report.write(self.folder, self.config, facts)
        self.bar.say(f"model: {self.folder / 'model'}; best: {self.checkpoints.best() or '-'}; report: {path}")


def _check(net: Any, now: TrainConfig, world: World) -> None:
    """What only shows with the model and the processes."""
    if now.model.retrofit is not None:
        if world.size > 1:
            raise ValueError("model.retrofit trains in one process: start it without torchrun")
        if now.data.carry or now.train.compile or now.train.checkpointing:
            raise ValueError(
                "model.retrofit learns within each row, and differentiates twice: set data.carry, train.compile and "
                "train.checkpointing to false"
            )
    if now.train.compile and world.device.type == "cpu" and " " in (place := str(Path(torch.__file__).parent)):
        raise ValueError(
            f"train.compile: torch lies in {place}, and its compiler cannot link from a path with spaces: set "
            "train.compile=false, or make the environment in another folder"
        )
    own, rest = divmod(now.train.batch, world.size)
    if rest or (now.train.micro and own % min(own, now.train.micro)):
        raise ValueError(
            f"train.batch={now.train.batch} cannot be divided into {world.size} processes with parts of "
            f"train.micro={now.train.micro or own} rows"
        )
    if now.data.reset and getattr(net.config, "learns_from_loss", False):
        raise ValueError("data.reset=true: cms_signal='loss' takes no marks of documents; set data.reset=false")
    if now.data.reset and not make.takes_reset(net):
        raise ValueError(f"data.reset=true: {type(net).__name__} takes no marks of documents; set data.reset=false")
    if now.data.carry:
        if not isinstance(net.config, HopeConfig):
            raise ValueError(f"data.carry=true: {type(net).__name__} is no model of ours; set data.carry=false")
        if "attention" in net.config.layer_mixers:
            raise ValueError("data.carry=true: attention to everything would grow for ever; use sliding_attention")
