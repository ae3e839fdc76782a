"""One copy of the base, and the memories of learners that are worn on it.

A memory is that of a committed version, which never changes: it is read from the store when somebody asks, held by
(learner, version), and dropped least recently used. Who reads with it keeps it until the answer is there.
"""

import contextlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circadia.live.opening import again, arranging, fingerprint
from circadia.live.reader import Reader
from circadia.live.store import Life, Store
from circadia.live.text import Words, of_base
from circadia.models.bundled import NAME
from circadia.models.native import NativeModel, native
from circadia.models.native.worn import Worn
from circadia.models.retrofit import RetrofitModel, Settings, retrofit
from circadia.models.retrofit.build import arranged, loaded
from circadia.models.retrofit.find import positions
from circadia.models.retrofit.wear import Reading, worn

Model = RetrofitModel | NativeModel
KINDS = 1024  # of learners, by their settings, whose arrangement is held
FORGOT = 10_000  # learners of which is known how often they forgot


class Base:
    """The weights that no learner changes, and one arrangement of levels on them for every kind of learner."""

    def __init__(self, given: Any, tokenizer: str | None) -> None:
        self._lock = threading.Lock()
        self._models, self._readers = OrderedDict[str, Model](), OrderedDict[str, Reader]()
        self.source: str | None = None
        self.own: Model | None = None  # a saved retrofit has its own settings, which all learners share
        if isinstance(given, (str, Path)):
            folder = Path(given).expanduser()
            self.source = str(folder.resolve()) if given != NAME and folder.is_dir() else str(given)
            given = retrofit(folder) if (folder / "retrofit.json").is_file() else loaded(str(given))
        if isinstance(given, (RetrofitModel, NativeModel)):
            self.own, self.source = given, self.source or given.source
            self._models[_text(given.settings.to_dict())] = given
            given = given.base
        self.module = given.eval()
        self.words = of_base(given, tokenizer, self.source)

    @property
    def limit(self) -> int | None:
        """Positions that it knows."""
        return positions(self.module)

    @property
    def ends(self) -> list[int]:
        """Tokens after which nothing is said."""
        found: list[int] = []
        for config in (self.module.config.get_text_config(), getattr(self.module, "generation_config", None)):
            end = getattr(config, "eos_token_id", None)
            found += end if isinstance(end, list) else [] if end is None else [end]
        return sorted(set(found))

    def arrange(self, given: Mapping[str, Any]) -> Model:
        """Levels for a new learner."""
        if self.own is not None:
            if given:
                raise ValueError(f"{', '.join(given)}: the base has settings of its own: leave them out")
            return self.own
        made = arranging(self.module, dict(given))
        made.source = self.source
        with self._lock:
            made = self._models.setdefault(_text(made.settings.to_dict()), made)
            self._bound()
            return made

    def reader(self, life: Life) -> Reader:
        """For a learner of the store; one of another base is refused."""
        key = _text([life.config, life.base])
        with self._lock:
            if key in self._readers:
                return self._readers[key]
            own = life.config.get("native")
            wanted = _text(own or life.config.get("retrofit"))
            if wanted not in self._models and self.own is None and own:
                self._models[wanted] = native(self.module, chunk=own["chunk"], context=own["context"])
            elif wanted not in self._models and self.own is None:
                settings = Settings.from_dict(life.config["retrofit"])
                if settings.target == "all":
                    raise ValueError(
                        f"{life.name!r} writes every parameter (target='all'), for which others would have to wait: "
                        "it can be used on the command line only"
                    )
                self._models[wanted] = arranged(
                    self.module, settings.levels, assign=settings.assign, layers=settings.layers,
                    target=settings.target, chunk=settings.chunk, context=settings.context, seed=settings.seed,
                    source=self.source,
                )  # fmt: skip
            found = again(life, self._models.get(wanted, self.own))
            self._readers[key] = found
            self._bound()
            return found

    def _bound(self) -> None:
        """Learners come and go with settings of their own; what is let go is arranged again when it is asked for."""
        for held in (self._models, self._readers):
            while len(held) > KINDS:
                held.popitem(last=False)

    def safe(self, life: Life) -> None:
        """Of a learner that came in a file: it may not make this machine open a tokenizer that the file names."""
        named = life.config.get("tokenizer")
        if named not in (None, "bytes", self.words.name):
            raise ValueError("this learner was made with a tokenizer of another place: import it on the command line")

    def fingerprint(self, model: Model) -> str:
        """As learners note it."""
        return fingerprint(model)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


@dataclass(frozen=True)
class Memory:
    """What is worn for one answer. Of the base: nothing."""

    learner: str | None
    branch: str
    version: int | None
    uid: str
    words: Words
    readings: Mapping[Any, Reading]
    bytes: int
    epoch: int = 0  # of the learner's forgettings
    worn: Worn | None = None  # of a model with memories of its own: what reads in place of the base

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Inside the block, this thread reads with it."""
        with worn(self.readings):
            yield


class Memories:
    """Those that are held."""

    def __init__(self, base: Base, store: Store, limit: int) -> None:
        self.base, self.store, self.limit = base, store, limit
        self._held: OrderedDict[tuple[str, int], Memory] = OrderedDict()
        self._lock, self._loading = threading.Lock(), dict[str, threading.Lock]()
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self.loads = self.evictions = 0

    @property
    def bytes(self) -> int:
        """Of all that are held."""
        with self._lock:
            return sum(memory.bytes for memory in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def frozen(self) -> Memory:
        """The base as it is."""
        return Memory(None, "main", None, "", self.base.words, {}, 0)

    def get(self, name: str, branch: str = "main") -> Memory:
        """The last committed version of a learner's branch."""
        for last in (False, True):
            life = self.store.learner(name)
            epoch = self.epoch(life.uid)  # before the version: what is forgotten in between shows
            version = self.store.current(name, branch)
            number = version.number if version else 0
            with self._lock:
                loading = self._loading.setdefault(life.uid, threading.Lock())
            with loading:  # two who ask for the same read it once
                with self._lock:
                    if (life.uid, number) in self._held:
                        self._held.move_to_end((life.uid, number))
                        # Another branch may have read it: what is learned from an answer goes to the one asked for.
                        return replace(self._held[life.uid, number], branch=branch)
                try:
                    memory = self._load(life, branch, number, epoch)
                except ValueError:
                    if last:
                        raise
                    continue  # erased between the two looks: there is another current version now
                self._keep(life.uid, number, memory, {n or 0 for n in life.branches.values()})
                return memory
        raise AssertionError

    def _load(self, life: Life, branch: str, number: int, epoch: int) -> Memory:
        reader = self.base.reader(life)
        model, readings, size, own = reader.model, {}, 0, None
        state = model.placed(self.store.load(life.name, number)) if number else {}
        if number and isinstance(model, NativeModel):
            own = model.worn(state)
            size = sum(x.nbytes for block in own.blocks for x in block.values())
        elif number and isinstance(model, RetrofitModel):
            model.check(state)
            readings = {m: r for m, r in model.readings(state).items() if r.deltas or r.pairs}
            for reading in readings.values():
                held = [*reading.deltas, *(x for pair in reading.pairs for x in pair if x is not None)]
                size += sum(x.nbytes for x in held)
                size += reading.matrix.weight.nbytes if reading.deltas and reading.matrix.exact else 0  # their sum
        self.loads += 1
        return Memory(life.name, branch, number or None, life.uid, reader.words, readings, size, epoch, own)

    def _keep(self, uid: str, number: int, memory: Memory, heads: set[int]) -> None:
        with self._lock:
            for key in [key for key in self._held if key[0] == uid and key[1] not in heads]:
                del self._held[key]  # no branch points there any more
            if self._epochs.get(uid, 0) != memory.epoch:
                return  # forgotten while it was read
            self._held[uid, number] = memory
            while len(self._held) > 1 and sum(m.bytes for m in self._held.values()) > self.limit:
                self._held.popitem(last=False)
                self.evictions += 1

    def epoch(self, uid: str) -> int:
        """How often something was taken from this learner for good."""
        with self._lock:
            return self._epochs.get(uid, 0)

    def drop(self, uid: str) -> None:
        """What a learner forgot is in no memory that is held."""
        with self._lock:
            self._epochs[uid] = self._epochs.pop(uid, 0) + 1
            gone = {uid}
            if len(self._epochs) > FORGOT:  # it counts from 0 again, and so must what is held of it
                gone.add(self._epochs.popitem(last=False)[0])
            for key in [key for key in self._held if key[0] in gone]:
                del self._held[key]
            for one in gone:
                self._loading.pop(one, None)
