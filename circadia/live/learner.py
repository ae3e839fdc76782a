"""`circadia.Learner`: one model, one life, on a base that many may share.

    me = Learner.create("store", base, "ana")
    me.observe(text, source="notes")
    answer = me.chat("Where does Mira live?")
    me.feedback(answer.id, correction="Mira lives in Oslo.")
    me.rollback(1); me.forget(source="notes")

The state at any time is a function of the base, the settings and the experiences on the way to the current version, in
their order (reader.py, feedback.py). Everything else here keeps that true on disk.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from circadia.live import (
    answers,
    commits,
    feedback,
    forgetting,
    observing,
    opening,
    policy,
    sleeping,
    status,
)
from circadia.live import conversations as talks
from circadia.live.chain import Event
from circadia.live.erase import Erased, Exported
from circadia.live.errors import StoreError
from circadia.live.guard import Guard, Verdict
from circadia.live.guard import read as probes_of
from circadia.live.quarantine import Quarantined, decide, listed
from circadia.live.reader import Reader, position
from circadia.live.store import Store
from circadia.live.sweep import Tidied
from circadia.live.verify import Verified
from circadia.live.versions import Diff, Version
from circadia.live.writer import Writer
from circadia.models.retrofit.state import State


class Learner:
    """Made by `create`, `open` or `import_`. The first change takes the right to write, until `close`."""

    def __init__(self, store: Store, name: str, reader: Reader, branch: str, owns: bool) -> None:
        life = store.learner(name)
        self.store, self.name, self.reader, self.branch_name = store, name, reader, branch
        self.config, self.journal = life.config, life.journal
        self.found = [text for text in store.found if text.startswith(f"{name}: ")]  # what the opening found, in words
        self.guard = Guard(reader, probes_of(commits.latest_probes(store, name)))
        self._owns, self._lock, self._stack = owns, threading.RLock(), contextlib.ExitStack()
        self._writer: Writer | None = None
        self._state: State | None = None
        self._at: int | None = None  # the version that the state is, but for what is open
        self.unsaved = commits.Open()
        self.answers: dict[int, answers.Answer] = {}  # of this process
        self.stopped_night: tuple[int, int | None, dict[str, Any]] | None = None  # to go on from, in this process
        self.policy = policy.of(self.config.get("sleep"))
        weakref.finalize(self, _end, self._stack)  # the right to write ends with the object, at the latest
        waiting = commits.waiting(self)
        if waiting:
            self.found.append(
                f"{name}: {len(waiting)} experiences are in no version: the next change learns them first"
                if self.journal
                else f"{name}: {len(waiting)} experiences are in no version, and the journal is off: they are missing"
            )
        if sleeping.stopped(self):
            self.found.append(f"{name}: a night was stopped and has changed nothing: sleep again, or take it up again")

    @classmethod
    def create(
        cls, store: Any, base: Any, name: str, *, tokenizer: str | None = None, gate: Any = True, probes: Any = (),
        journal: bool = True, every: int = opening.EVERY, key: str | bytes | None = None, sleep: Any = None,
        rehearse: Any = False, conversations: bool = False, **settings: Any,
    ) -> "Learner":  # fmt: skip
        """A learner that has learned nothing.

        store      a folder or a `Store`; `key` encrypts a new store's journal at rest
        base       a retrofitted model, a Hugging Face causal model, its folder or Hub id; `settings` are those of
                   `circadia.retrofit` (periods, rate, decay, ...). One of Circadia's own models that learns in context
                   learns with its own memories; `settings` are then chunk and context of `circadia.models.native`, and
                   settings of a retrofit make it one
        tokenizer  "bytes" or a folder; default what lies in the base's folder, or bytes where it knows 256 tokens
        gate       True, False (everything is learned in full), or settings of `circadia.live.Gate`
        probes     a YAML or JSONL file, or a list; see circadia/live/guard.py
        journal    keep what is observed, which forgetting exactly needs
        every      tokens of a long stream between two versions
        sleep      when `observe` sleeps by itself, such as "period" or "tokens=65536"; see circadia/live/policy.py
        rehearse   True, or settings of `circadia.live.Awake`: steps on windows of earlier nights between chunks
        conversations   True: what is said with it teaches it, where `chat` and `generate` are not told otherwise
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r} must be a number of tokens of at least 1")
        reader, config = opening.made(base, settings, tokenizer, gate, rehearse)
        when = policy.of(sleep)
        if when is not None:
            when.check(reader.model, journal)
            config["sleep"] = when.to_dict()
        if talks.checked(conversations):
            config["conversations"] = True
        found = probes_of(probes)
        Guard(reader, found)
        where, owns = _store(store, key, True)
        try:
            where.create(name, opening.fingerprint(reader.model), {**config, "every": every}, journal)
            made = cls(where, name, reader, "main", owns)
            if found:
                made.probes(found)
        except BaseException:
            if owns:
                where.close()
            raise
        return made

    @classmethod
    def open(
        cls, store: Any, name: str, base: Any = None, *, branch: str = "main", key: str | bytes | None = None
    ) -> "Learner":
        """A learner as it was left; `base` only where it was made on a model in memory, or has moved."""
        where, owns = _store(store, key, False)
        try:
            where.current(name, branch)
            return cls(where, name, opening.again(where.learner(name), base), branch, owns)
        except BaseException:
            if owns:
                where.close()
            raise

    @classmethod
    def import_(
        cls, store: Any, path: Any, name: str | None = None, base: Any = None, *, key: str | bytes | None = None,
        file_key: str | bytes | None = None,
    ) -> "Learner":  # fmt: skip
        """A learner out of a file that `export` wrote."""
        where, owns = _store(store, key, True)
        try:
            life = where.import_(path, name, file_key)
            try:
                return cls(where, life.name, opening.again(life, base), "main", owns)
            except BaseException:
                where.delete(life.name)
                raise
        except BaseException:
            if owns:
                where.close()
            raise

    def close(self) -> None:
        """Give back the right to write; what is not committed stays in the journal."""
        with self._lock:
            self._drop()
            if self._owns:
                self.store.close()

    def __enter__(self) -> "Learner":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # State

    @property
    def model(self) -> Any:
        """The base, retrofitted or with memories of its own; shared."""
        return self.reader.model

    @property
    def state(self) -> State:
        """What it is now: committed, and what is open."""
        with self._lock:
            if self._state is None:
                self._load()
            assert self._state is not None
            return self._state

    @property
    def at(self) -> int | None:
        """The version that the state is, but for what is open."""
        with self._lock:
            if self._state is None:
                self._load()
            return self._at

    @property
    def version(self) -> Version | None:
        """The current one; None for the base."""
        return self.store.current(self.name, self.branch_name)

    @property
    def tokens(self) -> int:
        """Read in this life."""
        return position(self.state)

    def logits(self, tokens: Any) -> torch.Tensor:
        """Of the base with the memory worn, for one row of tokens."""
        ids = torch.as_tensor(tokens, device=self.model.device)
        with torch.no_grad():
            return self.model(ids[None] if ids.ndim == 1 else ids, state=self.state, use_cache=False).logits

    def score(self, text: Any) -> float:
        """Surprise on a text of its own, in nats a token, without learning."""
        ids = self.reader.words.encode(text) if isinstance(text, str) else text
        return self.model.score(ids, self.model.fresh(self.state)).surprise

    def _load(self) -> None:
        version = self.version
        self._at = None if version is None else version.number
        stored = {} if version is None else self.store.load(self.name, version.number)
        self._state = self.model.placed(stored) or self.reader.start()
        self.unsaved = commits.Open()

    def _drop(self) -> None:
        """Forget what is in memory; what is on disk counts."""
        self._stack.close()
        self._writer, self._state = None, None
        self.unsaved = commits.Open()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """For the modules beside: the right to change this learner, with a state that is up to date."""
        with self._lock:
            try:
                if self._writer is None:
                    self._begin()
                assert self._writer is not None
                yield self._writer
            except BaseException as error:
                # A user's mistake leaves the state as it was; after anything else, what is on disk counts.
                if not isinstance(error, ValueError) or self.unsaved.torn:
                    self._drop()
                raise

    def _begin(self) -> None:
        """Take the right to write, and bring to its end what a kill left; it is as before where that fails."""
        try:
            self._writer = self._stack.enter_context(self.store.writer(self.name, self.branch_name))
            self._state = None
            self.guard = Guard(self.reader, probes_of(commits.latest_probes(self.store, self.name)))
            forgetting.resume(self)
            commits.catch_up(self)
        except BaseException:
            self._drop()
            raise

    # Life

    def observe(
        self, what: Any, source: str = "user", trust: float = 1.0, *, commit: bool = True,
        progress: bool | Callable[[observing.Progress], None] = False, stop: Callable[[], bool] | None = None,
    ) -> observing.Observed:  # fmt: skip
        """Predict every chunk, then learn it. Text, tokens, messages, an open file, a Path, or an iterator of these.

        observe(a), observe(b) leaves the bits of observe(a + b). A version is committed every so many tokens and at
        the end, unless `commit=False`. Ctrl-C ends it at a border, with what was learned committed, and so does `stop`,
        which is asked after each piece, and between the steps of a night that the learner's policy asks for.
        """
        return observing.observe(self, what, source, trust, commit, progress, stop)

    def commit(self, reason: str = "commit", notes: str = "") -> Version | None:
        """A version of what is open, if the guard lets it; returns the current one."""
        with self.writing():
            commits.commit(self, reason, notes)
        return self.version

    def generate(
        self, prompt: Any, *, max_new_tokens: int = 128, learn: bool | None = None, source: str = "conversation",
        keep: bool = True, **given: Any,
    ) -> answers.Answer:  # fmt: skip
        """Go on with a text. `keep`: the answer gets an id, for feedback; `learn`: both are observed.

        Without `learn` the learner's policy says (`conversations`); an answer that is not kept is then not learned.
        """
        return answers.generate(self, prompt, max_new_tokens, learn, source, keep, given)

    def chat(
        self, messages: Any, *, max_new_tokens: int = 128, learn: bool | None = None, source: str = "conversation",
        keep: bool = True, **given: Any,
    ) -> answers.Answer:  # fmt: skip
        """Answer a question or a conversation; `keep` and `learn` as in `generate`."""
        return answers.chat(self, messages, max_new_tokens, learn, source, keep, given)

    def feedback(
        self, answer: int, good: bool | None = None, *, correction: str | None = None, about: str | None = None,
        weight: float = 1.0,
    ) -> feedback.Changed:  # fmt: skip
        """Say that an answer was good or bad, what would have been right, or what was wrong with it."""
        kind, text = feedback.named(good, correction, about)
        if not 0 < weight <= 1:
            raise ValueError(f"weight={weight!r} must be above 0 and at most 1")
        return answers.feedback(self, answer, kind, text, float(weight))

    def sleep(
        self, settings: Any = None, *, minutes: float | None = None, compute: float | str | None = None,
        seed: int | None = None, days: int | None = 1, progress: bool | sleeping.Tell = False,
        stop: Callable[[], bool] | None = None, resume: bool = False, fit: float | None = None, **changes: Any,
    ) -> sleeping.Night:  # fmt: skip
        """Go over what was observed since the last night, and wake up as one new version, if the guard lets it.

        settings  a preset's name (circadia.sleep.PRESETS) or `circadia.sleep.Settings`; `changes` are changes to it,
                  such as filter={} or replay={"presentations": 20}
        minutes, compute   budgets; compute in tokens, where one that is learned counts 3, or "0.5 days" of reading
        seed      default the number of the night
        days      how many days, each up to a night; None: the whole life
        stop      asked between steps; True, or Ctrl-C, ends the night, and nothing is changed
        resume    take up the night that was stopped; after a kill it begins again, with the same result
        fit       cost at most so many days of reading: the most surprising windows alone, each as often as ever
        """
        return sleeping.sleep(self, settings, minutes, compute, seed, days, progress, stop, resume, fit, changes)

    def due(self, asked: bool = False) -> policy.Due:
        """Whether and why to sleep now, by the learner's policy; and which levels are about to overwrite themselves."""
        return policy.due(self, asked=asked)

    def nights(self) -> list[sleeping.Night]:
        """All nights that the journal tells of, with their reports, newest first."""
        return sleeping.nights(self.store, self.name, self.branch_name)

    def quarantine(self) -> list[Quarantined]:
        """What nights held back, and what became of it."""
        return listed(self)

    def admit(self, *numbers: int) -> list[Quarantined]:
        """Let the next night learn from these."""
        return decide(self, "admit", numbers)

    def drop(self, *numbers: int) -> list[Quarantined]:
        """Let no night learn from these. What reading them did awake stays: `forget` removes that."""
        return decide(self, "drop", numbers)

    def forget(
        self, source: str | None = None, *, since: Any = None, until: Any = None, all: bool = False
    ) -> forgetting.Forgotten:
        """Remove experience and its effect, from memory and disk. Of a source, from `since` up to `until`, or all."""
        return forgetting.forget(self, source, since, until, all)

    # Versions

    def versions(self, limit: int | None = None) -> list[Version]:
        """All that are kept, newest first."""
        return self.store.versions(self.name, limit)

    def diff(self, a: int, b: int | None = None) -> Diff:
        """How far each level moved from version a to b (default: the current one), and which probes changed.

        Sums, clocks and the gate's memory are one group, "other".
        """
        if b is None:
            now = self.version
            if now is None:
                raise StoreError("b: there is no current version to compare with: give one")
            b = now.number
        return self.store.diff(self.name, a, b, status.group)

    def rollback(self, version: int | None, reason: str = "rollback") -> Version | None:
        """Go back (or forth) to a version; None is the base. What is open is dropped."""
        with self.writing() as writer:
            writer.rollback(version, reason)
            self._load()
        return self.version

    def accept(self, version: int, reason: str = "accepted") -> Version:
        """Let a held version become current."""
        with self.writing() as writer:
            found = writer.accept(version, reason)
            self._load()
        return found

    def branch(self, name: str, version: int | None = None) -> None:
        """A second way to go on from a version; `switch` goes there."""
        with self.writing() as writer:
            writer.branch(name, version)

    def switch(self, branch: str) -> None:
        """Go on from another branch; what is open must be committed."""
        with self._lock:
            if self.unsaved.dirty:
                raise StoreError("switch: what is open is not committed: commit() or rollback() first")
            self.store.current(self.name, branch)
            self._drop()
            self.branch_name = branch

    def probes(self, given: Any) -> None:
        """Replace the guard's probes: a YAML or JSONL file, or a list."""
        guard = Guard(self.reader, probes_of(given))
        with self.writing() as writer:
            writer.record("probes", {"probes": [vars(p) | {"choices": list(p.choices)} for p in guard.probes]})
            self.guard = guard

    @property
    def conversations(self) -> bool:
        """Whether what is said with it teaches it, where nobody says so."""
        return talks.of(self.store, self.name)

    def set(self, *, conversations: bool) -> None:
        """Change a setting, on all branches. It makes no version and is not undone by a rollback."""
        with self.writing() as writer:
            talks.change(writer, conversations)

    def judge(self) -> Verdict:
        """What the guard says of the state as it is."""
        return self.guard.judge(self.state)

    # The whole

    def export(self, path: str | Path) -> Exported:
        """The whole life in one file."""
        return self.store.export(self.name, path)

    def gc(self, keep: int | None = None) -> Tidied:
        """Remove versions but the newest `keep` and those that branches point to, then files that nobody needs."""
        with self.writing() as writer:
            return writer.gc(keep)

    def verify(self) -> Verified:
        """Compute every hash again and compare."""
        return self.store.verify(self.name)

    def delete(self) -> Erased:
        """This learner with everything, for good."""
        with self._lock:
            self._drop()
            done = self.store.delete(self.name)
            if self._owns:
                self.store.close()
        return done

    def events(self, kind: str | None = None) -> list[Event]:
        """The log."""
        return self.store.events(self.name, kind)

    def status(self) -> dict[str, Any]:
        """Levels, clocks, what was learned when, surprise over time."""
        return status.of(self)

    def picture(self, path: str | Path) -> Path:
        """The life as SVG, or PNG by the file's name: surprise, ticks of each level, versions, rollbacks."""
        from circadia.live import picture

        return picture.write(self, Path(path))


def _end(stack: contextlib.ExitStack) -> None:
    """When nobody waits for an error any more."""
    with contextlib.suppress(Exception):
        stack.close()


def _store(store: Any, key: str | bytes | None, create: bool) -> tuple[Store, bool]:
    if isinstance(store, Store):
        if key is not None:
            raise ValueError("key: the store is open already, with its key")
        return store, False
    return Store.open(store, key, create), True
