"""A base that reads with a memory: every call begins from it, in a copy, and leaves it as it is."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from circadia.models.cache import HopeCache, State
from circadia.models.levels import PREFIX
from circadia.models.model import HopeForCausalLM


class Worn:
    """Called and asked to generate like the base. What it reads, its memory writes into the copy of that call."""

    def __init__(self, base: HopeForCausalLM, blocks: Sequence[State]) -> None:
        self.base = base
        self.blocks = [{n: x for n, x in own.items() if not _ours(n)} for own in blocks]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def __call__(self, input_ids: Tensor, **given: Any) -> Any:
        return self.base(input_ids, past_key_values=self.cache(input_ids.shape[0], given), **given)

    def generate(self, input_ids: Tensor, **given: Any) -> Any:
        """The base's own `generate`; the memory reads the prompt and what is said."""
        config = given.get("generation_config")
        wide = [given.get(n) or getattr(config, n, None) or 1 for n in ("num_beams", "num_return_sequences")]
        cache = self.cache(input_ids.shape[0] * max(wide), given)
        return self.base.generate(input_ids, past_key_values=cache, **given)

    def cache(self, rows: int, given: dict[str, Any]) -> HopeCache:
        """A new one for so many texts. It has read nothing of them, so its length is 0."""
        if "past_key_values" in given:
            raise ValueError("past_key_values: the memory of the state is worn: leave it out, or use the base itself")
        cache = HopeCache(len(self.blocks))
        for layer, own in zip(cache.layers, self.blocks):
            layer.write({n: x.expand(rows, *x.shape[1:]) for n, x in own.items()}, 0)
        return cache


def _ours(name: str) -> bool:
    """What only a stream keeps: weights, and sums, which are zero where a text begins."""
    return name.startswith(PREFIX) and (name.endswith(".weight") or ".sum." in name)
