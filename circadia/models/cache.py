"""One kind of cache layer for every mixer: a flat dict of tensors, batch first."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

State = dict[str, Tensor]


class StateLayer(CacheLayerMixin):
    """What one block carries from call to call. Everything that generation does to it is one line over the dict."""

    def __init__(self) -> None:
        super().__init__()
        self.state: State = {}
        self.seen = 0  # tokens, padding included: what generation calls the length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("a memory has no keys to initialize: the model writes its state whole")

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a memory takes no keys: the model writes its state whole")

    def write(self, state: State, tokens: int) -> None:
        self.state = state
        self.seen += tokens
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.state, self.seen = {}, 0

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state = {name: change(x) for name, x in self.state.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda x: x[indices.to(x.device)])

    def offload(self) -> None:
        self.home = next((x.device for x in self.state.values()), torch.device("cpu"))
        self._each(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._each(lambda x: x.to(getattr(self, "home", x.device), non_blocking=True))


class HopeCache(Cache):
    """The live state of a model: every block's memory, attention's keys included."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[StateLayer() for _ in range(layers)])

    @property
    def states(self) -> list[State]:
        return [layer.state for layer in self.layers]
