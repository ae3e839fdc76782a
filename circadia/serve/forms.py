"""What requests may hold. Fields that would change an answer and are not known here are refused, others ignored."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from circadia.live.writer import NAME
from circadia.sleep import DEFAULT


def _written(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair, which is no text") from None
    return text


Text = Annotated[str, AfterValidator(_written)]
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Source = Annotated[Text, Field(min_length=1, max_length=200)]
PROBES = 50  # of a learner, at most
UNKNOWN = ("tools", "functions", "audio", "best_of", "suffix", "echo", "prediction", "web_search_options", "n")


class Form(BaseModel):
    """Of every body."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Message(Form):
    """One turn; parts of type text are put together."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[Any]

    def plain(self) -> dict[str, str]:
        """As a learner takes it."""
        text = self.content
        if isinstance(text, list):
            if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in text):
                raise ValueError("messages: only parts of type 'text' can be read")
            text = "\n".join(_written(part["text"]) for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Form):
    """Of a streamed answer."""

    include_usage: bool = False


class Asked(Form):
    """Both kinds of completion."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: Text
    user: Text | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: Text | list[Text] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    learn: bool | None = None  # None: as the learner's policy has it
    source: Source = "conversation"

    @model_validator(mode="after")
    def _known(self) -> "Asked":
        extra = self.model_extra or {}
        for name in UNKNOWN:
            value = extra.get(name)
            if value not in (None, [], False) and not (name in ("n", "best_of") and value == 1):
                raise ValueError(f"{name} is not supported: leave it out")
        shape = extra.get("response_format")
        if shape is not None and shape != {"type": "text"}:
            raise ValueError("response_format: only {'type': 'text'} is supported")
        return self

    def stops(self) -> tuple[str, ...]:
        """At most four, as OpenAI has it."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(found) > 4 or any(not 0 < len(one) <= 1000 for one in found):
            raise ValueError("stop: give at most 4 texts of 1 to 1000 characters")
        return tuple(found)

    def bias(self, vocab: int) -> dict[int, float]:
        """By token."""
        found = {}
        for key, value in (self.logit_bias or {}).items():
            if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocab:
                raise ValueError(f"logit_bias: {key[:20]!r} is no token; there are {vocab}")
            found[int(key)] = value
        return found


class Named(Form):
    """A model, and nothing else that matters."""

    model: Text


class ChatAsked(Asked):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class TextAsked(Asked):
    """/v1/completions."""

    prompt: Text | list[Any]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class NewLearner(Form):
    """POST /v1/learners; what is left out has the default of `circadia.retrofit`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Name
    periods: Annotated[list[Annotated[int, Field(ge=1, le=10**7)]], Field(min_length=1, max_length=8)] | None = None
    context: Annotated[int, Field(ge=0, le=10**6)] | None = None
    rate: Annotated[float, Field(gt=0, le=100)] | None = None
    decay: Annotated[float, Field(ge=0, le=1)] | None = None
    capacity: Literal["full", "lowrank"] | None = None
    rank: Annotated[int, Field(ge=1, le=256)] | None = None
    gate: bool = True
    journal: bool = True
    every: Annotated[int, Field(ge=1, le=10**9)] | None = None
    sleep: Annotated[Text, Field(max_length=200)] | None = None
    rehearse: bool = False
    conversations: bool = False

    def settings(self) -> dict[str, Any]:
        """Of the retrofit."""
        given = self.model_dump(include={"periods", "context", "rate", "decay", "capacity", "rank"})
        return {name: value for name, value in given.items() if value is not None}


class Change(Form):
    """What every change may say: on which branch, and how the reply comes."""

    model_config = ConfigDict(extra="forbid", strict=True)
    branch: Name = "main"
    stream: bool = False
    wait: bool = True


class Set(Change):
    """What can be changed later; on all branches."""

    conversations: bool


class Observe(Change):
    """Either a text or a conversation."""

    text: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    source: Source = "http"
    trust: Annotated[float, Field(ge=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "Observe":
        if (self.text is None) == (self.messages is None):
            raise ValueError("give either text or messages")
        return self


class Feedback(Change):
    """On a completion of this server, or an answer of the journal."""

    completion: Text | None = None
    answer: Annotated[int, Field(gt=-(2**62), lt=2**62)] | None = None
    good: bool | None = None
    correction: Text | None = None
    about: Text | None = None
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "Feedback":
        if (self.completion is None) == (self.answer is None):
            raise ValueError("give either completion, the id of a reply, or answer, a number in the journal")
        return self


class Rollback(Change):
    """0 is the base."""

    version: Annotated[int, Field(ge=0, lt=2**62)]
    reason: Annotated[Text, Field(max_length=500)] = "rollback"


class Branch(Change):
    """A new name for a version, the current one by default."""

    name: Name
    version: Annotated[int, Field(ge=1, lt=2**62)] | None = None


class Sleep(Change):
    """A night. Its settings are those that cost no more than a night may; all others are for the command line."""

    wait: bool = False
    preset: Annotated[Text, Field(max_length=60)] = DEFAULT
    minutes: Annotated[float, Field(gt=0, le=10**6)] | None = None
    compute: Annotated[float, Field(gt=0, le=1e15)] | Annotated[Text, Field(max_length=40)] | None = None
    fit: Annotated[float, Field(gt=0, le=10**6)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    days: Annotated[int, Field(ge=1, le=10**6)] | None = 1
    resume: bool = False
    filter: bool = False
    presentations: Annotated[float, Field(gt=0, le=1000)] | None = None
    length: Annotated[int, Field(ge=4, le=1024)] | None = None
    dreams: Annotated[int, Field(ge=4, le=512)] | None = None
    dream_length: Annotated[int, Field(ge=2, le=512)] | None = None

    def changes(self) -> dict[str, Any]:
        """Of the preset, as `Learner.sleep` takes them."""
        found = self.model_dump(include={"dreams", "dream_length"}, exclude_none=True)
        replay = self.model_dump(include={"presentations", "length"}, exclude_none=True)
        return found | ({"replay": replay} if replay else {}) | ({"filter": {}} if self.filter else {})


class Decision(Change):
    """On what is in quarantine, by numbers."""

    numbers: Annotated[list[Annotated[int, Field(ge=1, lt=2**62)]], Field(min_length=1, max_length=1000)]


class Probe(Form):
    """A check with a bound; see circadia/live/guard.py."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["text", "qa", "drift", "norm"]
    name: Annotated[Text, Field(max_length=100)] = ""
    text: Annotated[Text, Field(max_length=20_000)] = ""
    question: Annotated[Text, Field(max_length=4000)] = ""
    answer: Annotated[Text, Field(max_length=4000)] = ""
    choices: Annotated[list[Annotated[Text, Field(min_length=1, max_length=4000)]], Field(max_length=20)] = []
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    rise: Annotated[float, Field(allow_inf_nan=False)] | None = None
    action: Literal["hold", "rollback"] = "hold"


class Probes(Change):
    """In place of those that are there; or some more, or without those of these names."""

    probes: Annotated[list[Probe], Field(max_length=PROBES)] | None = None
    add: Annotated[list[Probe], Field(max_length=PROBES)] = []
    remove: Annotated[list[Annotated[Text, Field(max_length=100)]], Field(max_length=PROBES)] = []

    @model_validator(mode="after")
    def _one(self) -> "Probes":
        if (self.probes is None) == (not self.add and not self.remove):
            raise ValueError("give either probes, which takes the place of all, or add and remove")
        return self


class Forget(Change):
    """Of a source, from `since` up to `until`, or all."""

    source: Source | None = None
    since: float | Text | None = None
    until: float | Text | None = None
    all: bool = False
