"""The judge before a version becomes current: probes, their bounds, and what follows where one is broken.

    {"kind": "text", "text": "...", "max": 3.5}            nats a token on a text; or "rise": 0.1, over the base's
    {"kind": "qa", "question": "...", "answer": "...", "max": 2.0}   nats a token of the answer; with "choices" it must
                                                           also be likelier than each of them
    {"kind": "drift", "text": "...", "max": 0.5}           mean KL(base || learner) on anchor text, nats a token
    {"kind": "norm", "max": 0.5}                           of what is learned, of any matrix, as a share of the base's;
                                                           of a memory of the model's own, of its learned start's
    "action": "hold" (default; the version waits for `accept`) or "rollback" (what was learned since is dropped)

That everything is finite is always asked. A probe's text is a setting, no experience: `forget` does not look into it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.live.errors import StoreError
from circadia.live.reader import Reader
from circadia.models.retrofit.state import State

ACTIONS = ("hold", "rollback")
NEEDS = {"text": {"text"}, "qa": {"question", "answer"}, "drift": {"text"}, "norm": set()}
BOUNDS = {"text": {"max", "rise"}, "qa": {"max", "choices"}, "drift": {"max"}, "norm": {"max"}}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A check with a bound."""

    kind: str
    name: str = ""
    text: str = ""
    question: str = ""
    answer: str = ""
    choices: tuple[str, ...] = ()
    max: float | None = None
    rise: float | None = None
    action: str = "hold"

    def __post_init__(self) -> None:
        if self.kind not in NEEDS:
            raise ValueError(f"kind={self.kind!r} is no probe: use one of {', '.join(NEEDS)}")
        if self.action not in ACTIONS:
            raise ValueError(f"action={self.action!r}: use hold or rollback")
        object.__setattr__(self, "name", str(self.name))
        for name in ("text", "question", "answer"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r}: give a text, in YAML in quotes")
        if isinstance(self.choices, str) or not all(isinstance(one, str) for one in self.choices):
            raise ValueError(f"choices={self.choices!r}: give a list of texts, in YAML in quotes")
        object.__setattr__(self, "choices", tuple(self.choices))
        for name in NEEDS[self.kind]:
            if not getattr(self, name):
                raise ValueError(f"{name} is missing from a probe of kind {self.kind!r}")
        if not any(getattr(self, name) not in (None, ()) for name in BOUNDS[self.kind]):
            raise ValueError(f"a probe of kind {self.kind!r} needs a bound: {' or '.join(sorted(BOUNDS[self.kind]))}")
        for name in ("max", "rise"):
            value = getattr(self, name)
            odd = isinstance(value, bool) or not isinstance(value, (int, float, type(None)))
            if odd or not math.isfinite(value or 0):
                raise ValueError(f"{name}={value!r} must be a number")


@dataclass(frozen=True)
class Verdict:
    """What is to happen with a state, and why."""

    action: str  # accept, hold or rollback
    reasons: tuple[str, ...]
    scores: dict[str, float | None]


def read(given: Any) -> list[Probe]:
    """Probes out of a YAML or JSONL file, or a list of mappings."""
    if isinstance(given, (str, Path)):
        given = _file(Path(given))
    if not isinstance(given, Iterable):
        raise ValueError(f"probes={given!r:.100}: give a YAML or JSONL file, or a list")
    found: list[Probe] = []
    for i, one in enumerate(given):
        if isinstance(one, Probe):
            found.append(one)
            continue
        try:
            found.append(Probe(**one))
        except (TypeError, ValueError) as error:
            raise ValueError(f"probe {i + 1}: {error}") from None
    named = [Probe(**{**asdict(p), "name": p.name or f"{p.kind} {i + 1}"}) for i, p in enumerate(found)]
    if len({p.name for p in named}) < len(named):
        raise ValueError("two probes have the same name: give each its own")
    return named


def _file(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"probes={str(path)!r} cannot be read ({error.strerror})") from None
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        import yaml

        found = yaml.safe_load(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # yaml has errors of its own
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    found = found.get("probes", found) if isinstance(found, Mapping) else found
    if not isinstance(found, list):
        raise ValueError(f"{path}: a list of probes is expected")
    return found


class Guard:
    """Runs probes. The base's own scores are taken once."""

    def __init__(self, reader: Reader, probes: Sequence[Probe] = ()) -> None:
        self.reader, self.probes = reader, list(probes)
        self._base: dict[str, float] = {}
        for probe in self.probes:
            if probe.kind != "norm" and reader.words.name is None:
                raise StoreError(f"probe {probe.name!r} has text, but this learner has no tokenizer")

    def judge(self, state: State) -> Verdict:
        """Accept, hold or roll back; the worst of all probes counts."""
        odd = [name for name, x in state.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
        if odd:
            return Verdict("rollback", (f"{odd[0]} is not finite",), {})
        scores: dict[str, float | None] = {}
        action, reasons = "accept", []
        for probe in self.probes:
            score, why = self._ask(probe, state)
            scores[probe.name] = score if math.isfinite(score) else None
            if why:
                reasons.append(f"{probe.name}: {why}")
                action = "rollback" if "rollback" in (action, probe.action) else "hold"
        return Verdict(action, tuple(reasons), scores)

    def _ask(self, probe: Probe, state: State) -> tuple[float, str]:
        score = self._score(probe, state)
        if not math.isfinite(score):
            return score, "is not finite"
        if probe.max is not None and score > probe.max:
            return score, f"{score:.4g} is over {probe.max:.4g}"
        if probe.rise is not None:
            if probe.name not in self._base:
                self._base[probe.name] = self._score(probe, None)
            base = self._base[probe.name]
            if score > base * (1 + probe.rise):
                return score, f"{score:.4g} is over the base's {base:.4g} by more than {probe.rise:.0%}"
        if probe.choices:
            others = {c: self._answer(probe.question, c, state) for c in probe.choices if c != probe.answer}
            better = [c for c, nats in others.items() if nats <= score]
            if better:
                return score, f"{better[0]!r} is likelier than {probe.answer!r}"
        return score, ""

    def _score(self, probe: Probe, state: State | None) -> float:
        if probe.kind == "norm":
            return self.reader.model.share(state) if state is not None else 0.0
        if probe.kind == "qa":
            return self._answer(probe.question, probe.answer, state)
        ids = torch.tensor(self.reader.words.encode(probe.text))
        if probe.kind == "drift":
            return self._drift(ids, state)
        model = self.reader.model
        return model.score(ids, None if state is None else model.fresh(state)).surprise

    @torch.no_grad()
    def _answer(self, question: str, answer: str, state: State | None) -> float:
        words = self.reader.words
        given, said = words.encode(question), words.encode(answer)
        return float(nats_of(self.reader.model, given, said, state)) / max(1, len(said))

    @torch.no_grad()
    def _drift(self, ids: Tensor, state: State | None) -> float:
        """Chunk by chunk, as a stream is read."""
        model, total, count = self.reader.model, 0.0, 0
        for both in zip(model.reads(ids, None), model.reads(ids, state)):
            logs = [logits.float().log_softmax(-1) for logits in both]
            total += float(F.kl_div(logs[1], logs[0], reduction="sum", log_target=True))
            count += both[0].shape[0]
        return total / max(1, count)


def nats_of(model: Any, given: Sequence[int], said: Sequence[int], state: State | None) -> Tensor:
    """Summed loss of an answer after a prompt, with a memory worn; only its end where both are too long."""
    with model.wearing(state) as base:
        return answer_nats(base, model, given, said)


def answer_nats(base: Any, model: Any, given: Sequence[int], said: Sequence[int]) -> Tensor:
    """The same, with what is worn already."""
    from circadia.models.retrofit.find import positions

    whole, limit = [*given, *said], positions(model.base)
    ids = torch.tensor(whole[-limit:] if limit else whole, device=model.device)[None]
    count = min(len(said), ids.shape[1] - 1)  # the first token of all has nothing before it
    if count <= 0:
        raise ValueError("the answer is empty: there is nothing to be scored")
    logits = base(ids[:, :-1], use_cache=False).logits[0, -count:]
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), ids[0, -count:],
                           reduction="sum")  # fmt: skip
