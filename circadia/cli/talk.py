"""A conversation with a learner, line by line: messages, and commands that begin with a slash."""

import contextlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from circadia.live import Learner
    from circadia.live.answers import Answer
    from circadia.live.observing import Observed

SMALL = 100_000_000  # parameters below which nobody should expect sense
DREAMS = 3  # of a night that are shown
TURNS = 16  # of the conversation that an answer sees


class Talk:
    """One sitting. In a terminal mistakes are told and it goes on; from a pipe the first one ends it."""

    def __init__(self, me: "Learner", learn: bool = True, tokens: int = 128, temperature: float = 0.0) -> None:
        self.me, self.learn, self.tokens = me, learn, tokens
        self.how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
        self.terminal = sys.stdin.isatty()
        self.console = Console(highlight=False, soft_wrap=True)
        self.turns: list[dict[str, str]] = []
        self.answer: Answer | None = None
        self.said = ""  # the last message that was learned, and
        self.before: Any = None  # the state it met, and
        self.seen: Observed | None = None  # what it did
        self.commands: dict[str, tuple[str, str, Callable[[str], None]]] = {
            "why": ("", "what was learned from the last message", self.why),
            "good": ("", "the last answer was good", lambda rest: self.feedback(good=True)),
            "bad": ("", "the last answer was bad", lambda rest: self.feedback(good=False)),
            "correct": (
                "TEXT",
                "what would have been right",
                lambda rest: self.feedback(correction=need(rest, "TEXT")),
            ),
            "raw": ("TEXT", "let it go on with a text", self.raw),
            "read": ("FILE [TIMES]", "let it read a text file", self.read),
            "sleep": (
                "[MINUTES]",
                "go over the day again, and dream; /sleep resume: one that was stopped",
                self.sleep,
            ),
            "levels": ("", "what learns how often, and how far it has moved", self.levels),
            "versions": ("", "what can be gone back to", self.versions),
            "rollback": ("VERSION", "go back (or forth) to a version; 0 is the base", self.rollback),
            "forget": ("[SOURCE]", "the last message, or all from a source; /forget * is everything", self.forget),
            "help": ("", "this list", self.help),
            "quit": ("", "leave; Ctrl-D does, too", lambda rest: None),
        }

    def run(self) -> None:
        """Until /quit, the end of the input, or Ctrl-C where nothing is at work."""
        for text in self.me.found:
            self.note(text)
        self.greet()
        if self.terminal:
            # Arrow keys and history. It is not written to a file, where it would outlive /forget.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401
        while (line := self.line()) is not None:
            if line.split()[:1] == ["/quit"]:
                break
            try:
                self.take(line)
            except KeyboardInterrupt:
                self.note("stopped; what was learned before is kept")
            except (ValueError, OSError) as error:
                if not self.terminal:
                    raise ValueError(str(error)) from error
                self.note(" ".join(str(error).split()), "red")

    def line(self) -> str | None:
        """The next one that says something."""
        while True:
            try:
                found = input("> " if self.terminal else "").strip()
            except (EOFError, KeyboardInterrupt):
                if self.terminal:
                    print()
                return None
            except UnicodeDecodeError as error:
                raise ValueError(f"the input is no UTF-8 text ({error.reason})") from None
            if found:
                return found

    def take(self, line: str) -> None:
        """One line."""
        if not line.startswith("/"):
            self.message(line)
            return
        name, _, rest = line[1:].partition(" ")
        if name not in self.commands:
            near = [known for known in self.commands if name and known.startswith(name)]
            fix = f"did you mean /{near[0]}?" if near else "/help lists what there is"
            raise ValueError(f"/{name} is unknown: {fix}")
        self.commands[name][2](rest.strip())

    def greet(self) -> None:
        """Who this is; a small model says that it is one."""
        model, words = self.me.model, self.me.reader.words
        size = sum(p.numel() for p in model.base.parameters())
        told = f"{size / 1e9:.1f} G" if size >= 1e9 else f"{size / 1e6:.1f} M"
        at = f"version {self.me.version.number}" if self.me.version else "nothing learned yet"
        source = model.source or "a model in memory"
        self.note(f"{self.me.name} on {source}, {told} parameters, {at}; /help lists commands")
        if size < SMALL:
            self.note("This is a very small model: it shows how learning works and does not converse. For that, give "
                      "--base a larger one.", "yellow")  # fmt: skip
        if words.name is None:
            raise ValueError(f"{model.source}: no tokenizer lies beside this base: give a folder that has one")
        if not words.templated:
            self.note("Its tokenizer has no chat template: it goes on with a dialogue of User and Assistant. /raw TEXT "
                      "lets it go on with a text.")  # fmt: skip

    # What is said

    def message(self, line: str) -> None:
        """Answered with what is known, then learned."""
        self.turns = [*self.turns, {"role": "user", "content": line}][-TURNS:]
        source = f"chat/{self.count() + 1}"  # of the answer, too: what was asked stands with it in the journal
        with self.busy():
            self.answer = self.me.chat(
                self.turns, max_new_tokens=self.tokens, learn=False, source=source, **self.how
            )  # fmt: skip
        self.turns.append({"role": "assistant", "content": self.answer.text})
        self.console.print(Text(self.answer.text))
        if self.learn:
            self.observe(line + "\n", source, line)

    def count(self) -> int:
        """The highest number of a message that is still known."""
        sources = {one.source for one in self.me.store.experiences(self.me.name)}
        return max((int(s[5:]) for s in sources if s.startswith("chat/") and s[5:].isdigit()), default=0)

    def observe(self, what: Any, source: str, said: str) -> None:
        """Learn, and keep what /why is to tell."""
        self.before, self.said = self.me.state, said
        self.seen = self.me.observe(what, source, progress=self.terminal and isinstance(what, Path))
        for text in self.seen.held:
            self.note(f"guard: {text}", "yellow")

    def raw(self, rest: str) -> None:
        """Go on with a text; nothing is learned from it."""
        with self.busy():
            self.answer = self.me.generate(need(rest, "TEXT"), max_new_tokens=self.tokens, learn=False, **self.how)
        self.console.print(Text(rest, "dim") + Text(self.answer.text, "default"))

    def read(self, rest: str) -> None:
        """A file, once or several times."""
        given = shlex.split(need(rest, "FILE"))
        times = int(given.pop()) if len(given) > 1 and given[-1].isdigit() else 1
        if times < 1:
            raise ValueError(f"/read {rest}: give a number of times of at least 1")
        path = Path(given[0]).expanduser()
        if len(given) > 1 or not path.is_file():
            raise ValueError(f"/read {rest}: no such file; put a name with spaces in quotes")
        for _ in range(times):
            self.observe(path, path.name, path.read_text(encoding="utf-8", errors="replace")[:2000])
        assert self.seen is not None
        self.note(f"{path.name}: {self.seen.tokens:,} tokens{f', {times} times' if times > 1 else ''}; /why says more")

    def feedback(self, **given: Any) -> None:
        """On the last answer."""
        if self.answer is None or self.answer.id is None:
            raise ValueError("there is no answer yet: say something first")
        done = self.me.feedback(self.answer.id, **given)
        self.note(f"{done.kind}: {done.before:.2f} nats a token before, {done.after:.2f} now; "
                  f"{f'version {done.version}' if done.version else 'no new version'}")  # fmt: skip
        if done.held:
            self.note(f"guard: {done.held}", "yellow")

    def sleep(self, rest: str) -> None:
        """A night with the defaults; it wakes with nothing but its memory."""
        from circadia.cli.sleep_show import told

        how: dict[str, Any] = {}
        if rest == "resume":
            how["resume"] = True
        elif rest:
            try:
                how["minutes"] = float(rest)
            except ValueError:
                raise ValueError(f"/sleep {rest}: give minutes, as a number above 0, or resume") from None
        night = self.me.sleep(progress=self.terminal, **how)
        if night.action == "stopped":
            self.note("stopped: nothing was changed; /sleep resume takes the night up again")
            return
        for text in told(night):
            self.note(text)
        for dream in night.report.get("dreams", [])[:DREAMS]:
            self.note(f"  dream of {dream['about']}: {' '.join(dream['text'].split())[:70]}")
        if night.action == "accept":
            self.turns, self.answer, self.seen = [], None, None
            self.note("It wakes up; the conversation begins anew.")

    # What is known

    def why(self, rest: str) -> None:
        """The way of the last message into the memory."""
        seen = self.seen
        if seen is None:
            raise ValueError("nothing was learned in this sitting yet" + ("" if self.learn else ": --no-learn is on"))
        self.note(f"{self.said[:60]!r}: {seen.tokens} tokens, {seen.chunks} chunks ended with it")
        if seen.surprise is not None:
            parts = ", ".join(f"{name} {value:.2f}" for name, value in seen.gate.items())
            self.note(f"surprise of these chunks {seen.surprise:.2f} nats a token, learned with weight "
                      f"{seen.weight or 0:.2f}{f' ({parts})' if parts else ''}")  # fmt: skip
        for level in seen.levels:
            did = f"{level.updates} updates, moved {level.moved:.4f}" if level.updates else "not yet"
            self.note(f"{level.name}, every {level.period:,}: {did}")
        if seen.pending or seen.waiting:
            self.note(f"{seen.pending} tokens wait for the end of their chunk of {self.me.model.settings.chunk}"
                      + (f", {seen.waiting} characters for the next line" if seen.waiting else ""))  # fmt: skip
        ids = self.me.reader.words.encode(self.said)
        if len(ids) > 1:
            model = self.me.model
            was, now = (model.score(ids, model.fresh(state)).surprise for state in (self.before, self.me.state))
            self.note(f"said again, it would cost {now:.2f} nats a token; before it was learned {was:.2f}")
        version = self.me.version
        self.note(f"version {version.number}" if version else "no version yet")

    def levels(self, rest: str) -> None:
        """As `circadia learner status` has them."""
        table = self.table("level", "written every", "updates", "next in", "how far from the base")
        found = self.me.status()["levels"]
        for level in found:
            table.add_row(f"level {level['level']}", f"{level['period']:,} tokens", f"{level['updates']:,}",
                          f"{level['next']:,}", f"{level['norm']:.4f}")  # fmt: skip
        self.console.print(table)

    def versions(self, rest: str) -> None:
        """Newest first."""
        found, now = self.me.versions(20), self.me.version
        table = self.table("version", "from", "tokens read", "why", "")
        for one in found:
            here = "<- here" if now and one.number == now.number else ""
            table.add_row(str(one.number), str(one.parent or "base"), f"{one.tokens:,}", one.reason, here)
        table.add_row("0", "", "0", "the base", "" if now else "<- here")
        self.console.print(table)

    def rollback(self, rest: str) -> None:
        """A pointer moves; nothing is lost."""
        if not need(rest, "VERSION").isdigit():
            raise ValueError(f"/rollback {rest}: give a version's number, as /versions lists them")
        found = self.me.rollback(int(rest) or None, "chat")
        self.turns, self.answer, self.seen = [], None, None
        self.note(f"now at {f'version {found.number}' if found else 'the base'}; the conversation begins anew")

    def forget(self, rest: str) -> None:
        """Out of memory and disk."""
        if rest == "*":
            done = self.me.forget(all=True)
        else:
            if not rest and not self.count():
                raise ValueError("/forget: no message is known; name a source, as /help says")
            done = self.me.forget(rest or f"chat/{self.count()}")
        self.turns, self.answer, self.seen = [], None, None
        gone = len(done.erased.versions) if done.erased else 0
        self.note(f"forgot {len(done.experiences)} experiences, {len(done.tied)} answers and thumbs tied to them and "
                  f"{gone} versions; {done.replayed} experiences learned again without them")  # fmt: skip
        self.note("It has the bits of a life in which that never happened. Corrections stay, with the question that "
                  "they answer: /forget feedback removes those. The conversation begins anew.")  # fmt: skip
        for text in (*done.held, *done.notes):
            self.note(text, "yellow")

    def help(self, rest: str) -> None:
        """All commands."""
        table = self.table("", "")
        for name, (given, what, _) in self.commands.items():
            table.add_row(f"/{name} {given}", what)
        self.console.print(table)

    # How it looks

    def note(self, text: str, style: str = "dim") -> None:
        """What the program says, as apart from the model."""
        self.console.print(Text(text, style))

    def table(self, *head: str) -> Table:
        """Columns without lines."""
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim", show_header=any(head))
        for name in head:
            table.add_column(name, overflow="fold")
        return table

    def busy(self) -> Any:
        """A spinner, where somebody looks."""
        return self.console.status("...") if self.terminal else contextlib.nullcontext()


def need(rest: str, what: str) -> str:
    """What a command cannot do without."""
    if not rest:
        raise ValueError(f"{what} is missing; /help says how it is written")
    return rest
