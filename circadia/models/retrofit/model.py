"""The retrofitted model: a base that nobody changes, and what reads, learns and generates with a memory on it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from circadia.models.retrofit import adapt, learn, look, view
from circadia.models.retrofit import state as states
from circadia.models.retrofit.find import Anatomy
from circadia.models.retrofit.report import Report
from circadia.models.retrofit.settings import Settings
from circadia.models.retrofit.state import Site, State, key
from circadia.models.retrofit.wear import Pair, Reading, holds, install, swapped, total, worn


class RetrofitModel(nn.Module):
    """A Hugging Face decoder whose MLPs learn at several frequencies. `circadia.retrofit` makes it.

    The memory is a value: `state = model.start()`, `report, state = model.learn(tokens, state)`,
    `model(input_ids, state=state)`, `model.generate(input_ids, state=state)`. No state: the base itself, bit for bit.
    """

    def __init__(
        self, base: nn.Module, settings: Settings, anatomy: Anatomy | None, layers: Mapping[int, tuple[int, ...]],
        source: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base = base.eval()
        self.settings, self.anatomy, self.layers, self.source = settings, anatomy, dict(layers), source
        self.learned: adapt.Learned | None = None  # rates and decays, once they are to be learned
        self.own: list[list[Site]] = [[] for _ in settings.levels]  # by level
        self.sites: dict[str, Site] = {}
        self._fingerprint: tuple[Any, str] | None = None
        for p in base.parameters():
            p.requires_grad_(False)
        if settings.target == "all":
            for name, p in base.named_parameters():
                wide = torch.promote_types(p.dtype, torch.float32)
                self._add(Site(name, tuple(p.shape), wide, p.device), range(len(settings.levels)))
        else:
            assert anatomy is not None
            for layer, levels in layers.items():
                for matrix in anatomy.layers[layer]:
                    install(matrix.module)
                    kinds = [p for p in matrix.module.parameters() if p.is_floating_point()] if matrix.plain else []
                    wide = torch.promote_types(kinds[0].dtype, torch.float32) if kinds else torch.float32
                    device = next(iter([*matrix.module.parameters(), *matrix.module.buffers()])).device
                    self._add(Site(matrix.name, matrix.shape, wide, device, matrix), levels)

    def _add(self, site: Site, levels: Any) -> None:
        self.sites[site.name] = site
        for level in levels:
            self.own[level].append(site)

    @property
    def config(self) -> Any:
        """The base's."""
        return self.base.config

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        return next(iter(self.base.parameters())).device

    @property
    def anchored(self) -> list[set[str]]:
        """By level: the matrices that decay to a slow copy, because no slower level shares them."""
        found: list[set[str]] = []
        for i, (level, own) in enumerate(zip(self.settings.levels, self.own)):
            slower = {site.name for sites in self.own[i + 1 :] for site in sites}
            kept = level.anchor == "slower" and level.decay > 0 and i + 1 < len(self.own)
            found.append({site.name for site in own} - slower if kept else set())
        return found

    def start(self) -> State:
        """A memory that has read nothing. Its entries are listed in `circadia.models.retrofit.state`."""
        settings = self.settings
        return states.start(settings.levels, self.own, settings.chunk, self.anchored, settings.seed)

    def learn(self, tokens: Any, state: State, weigh: learn.Weigh | None = None) -> tuple[Report, State]:
        """Read a piece of a stream: every chunk is predicted, then learned; the state given stays as it was.

        Chunks lie at fixed positions of the stream, so that learn(a) then learn(b) leaves the bits of learn(a + b). The
        tokens of an open chunk wait in the state.

        weigh    is asked after each chunk was predicted how far it is to be learned, from 0 (not at all: nothing fades
                 either) to 1
        """
        return learn.learn(self, tokens, state, weigh)

    def teach(
        self, loss: Callable[[Any], Tensor], state: State, level: int = 0, weight: float = 1.0
    ) -> tuple[float, State]:
        """One step of a level on any loss of the base's outputs, between two chunks: feedback, for example."""
        return learn.teach(self, loss, state, level, weight)

    def score(self, tokens: Any, state: State | None = None) -> Report:
        """The surprises that `learn` would report if nothing were learned; the last chunk may be shorter.

        The tokens go on from the state's stream. With a state that shall only be worn, and a text of its own:
        `score(tokens, model.fresh(state))`.
        """
        return learn.score(self, tokens, self.start() if state is None else state)

    def fresh(self, state: State) -> State:
        """The same memory at the beginning of another stream: no context, no open chunk."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return {**state, "stream/context": nothing, "stream/pending": nothing.clone()}

    def allocate(self, state: State, level: int, slot: int) -> State:
        """A new state with an empty low-rank expert in this slot."""
        return states.use(state, level, slot, self.settings.levels[level], self.own[level], self.settings.seed, True)

    def free(self, state: State, level: int, slot: int) -> State:
        """A new state without the expert in this slot: reading does exactly what it would without it."""
        return states.use(state, level, slot, self.settings.levels[level], self.own[level], self.settings.seed, False)

    def deltas(self, state: State, name: str) -> list[tuple[int, Tensor]]:
        """The full deltas of one matrix, (level, delta), fastest first."""
        found = [(i, state.get(key(i, "delta", name))) for i in range(len(self.own))]
        return [(i, x) for i, x in found if x is not None]

    def pairs(self, state: State, name: str) -> list[Pair]:
        """The low-rank pairs of one matrix, of every level, slots in use side by side."""
        found = []
        for i in range(len(self.own)):
            if (a := state.get(key(i, "a", name))) is not None:
                b, mask = state[key(i, "b", name)], state[key(i, "mask")]
                used = mask.nonzero().flatten().to(a.device)
                if used.numel():
                    gate = state.get(key(i, "gate", name))
                    gate = None if gate is None else gate[used].flatten(0, 1)
                    found.append(Pair(a[used].flatten(0, 1), b[used].permute(1, 0, 2).flatten(1), gate))
        return found

    @contextlib.contextmanager
    def wearing(self, state: State | None) -> Iterator[nn.Module]:
        """The base reads with this memory inside the block; None: as the base itself. Gives the base.

        Other threads are not touched, and nothing is left behind, also after an exception. With target="all" the
        parameters themselves are swapped, so that other threads wait for the end of the block.
        """
        if state is not None:
            self.check(state)
        if self.settings.target == "all":
            with swapped(self.base, self.whole(state) if state is not None else {}):
                yield self.base
            return
        with worn(self.readings(state)):
            yield self.base

    def readings(self, state: State | None) -> dict[nn.Module, Reading]:
        """How every adapted matrix reads, without what holds nothing."""
        found = {}
        deltas = {name: [x for _, x in self.deltas(state, name)] if state else [] for name in self.sites}
        full = holds([x for own in deltas.values() for x in own])
        answers = iter(full)
        for name, site in self.sites.items():
            assert site.matrix is not None
            moved = [x for x in deltas[name] if next(answers)]
            pairs = self.pairs(state, name) if state else []
            pairs = [pair for pair, there in zip(pairs, holds([pair.b for pair in pairs])) if there]
            found[site.matrix.module] = Reading(site.matrix, moved, pairs)
        return found

    def whole(self, state: State) -> dict[str, Tensor]:
        """target="all": parameters with their deltas, in the base's type; those that have not moved are left out."""
        found = {}
        for name, p in self.base.named_parameters():
            deltas = [x for _, x in self.deltas(state, name)]
            if any(holds(deltas)):
                found[name] = (p.detach() + total(deltas)).to(p.dtype)
        return found

    def forward(self, input_ids: Tensor | None = None, *, state: State | None = None, **given: Any) -> Any:
        """What the base returns, read with a memory. In adaptation (`model.adapting`) every row has one of its own."""
        if self.learned is not None and self.learned.on and state is None:
            return adapt.forward(self, input_ids, **given)
        with self.wearing(state) as base:
            return base(input_ids, **given)

    def generate(self, input_ids: Any = None, *, state: State | None = None, **given: Any) -> Any:
        """The base's own `generate`, with the memory worn from the first token to the last."""
        with self.wearing(state) as base:
            return base.generate(input_ids, **given)  # type: ignore[operator]

    def adapting(self, first_order: bool = False, train: str = "all") -> "RetrofitModel":
        """Make starts, rates and decays learnable; see `circadia.models.retrofit.adapt`."""
        adapt.begin(self, first_order, train)
        return self

    def adapt_loss(self, tokens: Tensor, *, first_order: bool = False) -> Tensor:
        """Mean loss of rows of tokens [B, T] with inner updates on, every chunk scored before it is learned."""
        return adapt.loss(self, tokens, first_order)

    def save_pretrained(self, folder: Any, **given: Any) -> None:
        """Settings, base (by reference or copied) and memory; see `circadia.models.retrofit.files.save`."""
        from circadia.models.retrofit import files

        files.save(self, folder, **given)

    def load_weights(self, folder: Any) -> None:
        """Base and learned rates of a saved retrofit, in place."""
        from circadia.models.retrofit import files

        files.load_weights(self, folder)

    def save_state(self, state: State, path: Any) -> None:
        """One safetensors file with a fingerprint of the base."""
        from circadia.models.retrofit import files

        files.save_state(self, state, path)

    def load_state(self, path: Any) -> State:
        """The state as it was; a memory of another base is refused."""
        from circadia.models.retrofit import files

        return files.load_state(self, path)

    def fingerprint(self) -> str:
        """SHA-256 of the base's config and weights."""
        from circadia.models.retrofit import files

        now = tuple((p.data_ptr(), p._version) for p in self.base.state_dict().values())
        if self._fingerprint is None or self._fingerprint[0] != now:
            self._fingerprint = (now, files.fingerprint(self.base))
        return self._fingerprint[1]

    def export_peft(self, state: State, folder: Any) -> None:
        """A low-rank memory as a LoRA for PEFT and vLLM."""
        from circadia.models.retrofit import export

        export.peft(self, state, folder)

    def export_delta(self, state: State, path: Any) -> None:
        """What the memory adds to each parameter of the base, as one safetensors file."""
        from circadia.models.retrofit import export

        export.delta(self, state, path)

    def merge(self, state: State) -> nn.Module:
        """A copy of the base with the memory added into its weights."""
        from circadia.models.retrofit import export

        return export.merge(self, state)

    def placed(self, stored: State) -> State:
        """A state out of a file, on the devices of the matrices that it belongs to."""
        return look.placed(self, stored)

    def norms(self, state: State) -> list[float]:
        """Of what each level holds in full."""
        return look.norms(self, state)

    def share(self, state: State) -> float:
        """The largest norm of what is learned in a matrix, as a share of the base's."""
        return look.share(self, state)

    def reads(self, tokens: Any, state: State | None) -> Iterator[Tensor]:
        """Logits of a text, in windows as they are read: a chunk's tokens and the context before it."""
        return look.reads(self, tokens, state)

    def check(self, state: State) -> None:
        """Does this state belong to this arrangement of levels?"""
        if not isinstance(state, Mapping):
            raise ValueError(f"state is a {type(state).__name__}: pass what model.start() or model.learn() returned")
        for i, (level, sites) in enumerate(zip(self.settings.levels, self.own)):
            if level.gate == "always" and any(key(i, "gate", site.name) in state for site in sites):
                raise ValueError(
                    f"state does not fit this model: its level {i} has gates, which gate='always' would open"
                )
            for part in states.parts_of(level):
                for site in sites:
                    name = key(i, part, site.name)
                    want = states.shape_of(level, site, part)
                    if name not in state or tuple(state[name].shape) != want:
                        have = tuple(state[name].shape) if name in state else "no such entry"
                        raise ValueError(
                            f"state does not fit this model: {name} must have shape {want}, found {have}; "
                            "use the model that it was made with, or model.start()"
                        )

    def levels_entry(self) -> list[dict[str, Any]]:
        """For `circadia.levels`."""
        return view.entries(self)
