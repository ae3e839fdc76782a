"""Text out of a model, many rows at once, from a generator of random numbers of its own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.models.retrofit import RetrofitModel
from circadia.models.retrofit.find import positions
from circadia.sleep.student import Student, Teacher


@torch.no_grad()
def sample(
    who: Teacher | Student, prompts: Tensor, tokens: int, generator: torch.Generator, temperature: float = 1.0,
    batch: int = 32, end: int | None = None,
) -> Tensor:  # fmt: skip
    """Prompts [n, p] with what follows, [n, p + tokens]. Ends of text are tokens like others: a dream may go on.

    `end`: a token after which nothing more is asked of a row; the rows are as long as the longest, filled up with it.
    """
    if prompts.ndim != 2 or prompts.shape[1] < 1:
        raise ValueError(f"prompts of shape {tuple(prompts.shape)}: give rows of at least one token")
    limit = positions(who.model.base)
    if limit is not None and prompts.shape[1] + tokens > limit:
        raise ValueError(f"{prompts.shape[1]} + {tokens} tokens are more than the model's {limit} positions")
    with who.wearing() as base:
        rows = [
            _some(base, part.to(who.model.device), tokens, generator, temperature, end) for part in prompts.split(batch)
        ]
    longest = max(part.shape[1] for part in rows)
    return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=end or 0) for part in rows]).cpu()


def _some(
    base: Any, ids: Tensor, tokens: int, generator: torch.Generator, temperature: float, end: int | None
) -> Tensor:
    past, new = None, ids
    ended = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    for _ in range(tokens):
        out = base(new, past_key_values=past, use_cache=True)
        past = getattr(out, "past_key_values", None)
        logits = out.logits[:, -1].float().cpu()
        if temperature > 0:
            following = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            following = logits.argmax(-1, keepdim=True)
        following = following.to(ids.device)
        if end is not None:
            following = following.masked_fill(ended, end)
            ended |= following == end
        ids = torch.cat((ids, following), 1)
        if bool(ended.all()):
            break
        new = ids if past is None else following  # a base without a cache reads everything again
    return ids


def starts(model: RetrofitModel, count: int, start: int | None = None) -> Tensor:
    """`count` prompts of nothing but the token a text starts with: the base's, or a new line for a base of bytes."""
    config = model.config.get_text_config()
    for found in (start, config.bos_token_id, 10 if config.vocab_size == 256 else config.eos_token_id):
        if isinstance(found, int):
            return torch.full((count, 1), found)
    raise ValueError("start=None: this base names no token that a text begins with; give its number")
