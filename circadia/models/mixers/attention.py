"""Softmax attention: rotary positions, grouped queries, full or over a sliding window, with persistent tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from circadia.models.cache import State
from circadia.models.context import Context, take


class Attention(nn.Module):
    """State: "k", "v" [B, S, heads, width], "next" [B] the position of the next token, and once padding or documents
    were seen "at" [B, S, 2]: document and position of every stored key, position -1 where it is padding.

    ``persistent`` learned tokens stand before every sequence and are seen from anywhere in it, whatever the window
    (Titans, section 3.3). They have no position: a distance to them would grow without bound as a stream goes on.
    Without ``project`` the heads are returned side by side, for a mixer that goes on with them.
    """

    def __init__(self, config, window: int | None = None, persistent: int = 0, project: bool = True) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.window = window
        self.q = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)
        self.kv = nn.Linear(config.hidden_size, 2 * self.kv_heads * self.width, bias=False)
        self.out = nn.Linear(self.heads * self.width, config.hidden_size, bias=False) if project else nn.Identity()
        self.persistent = nn.Parameter(torch.empty(persistent, config.hidden_size)) if persistent else None
        self.theta = config.rope_theta
        self.inverse: Tensor
        self.register_buffer("inverse", self.frequencies(), persistent=False)

    def init_weights(self) -> None:
        init.copy_(self.inverse, self.frequencies())
        if self.persistent is not None:  # as large as the normalised tokens that they stand beside
            init.normal_(self.persistent)

    def frequencies(self) -> Tensor:
        """Of the rotary embedding, one for each pair of channels."""
        return self.theta ** -(torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        b, t, _ = x.shape
        start = state.get("next", torch.zeros(b, dtype=torch.int64, device=x.device))
        past = state["k"].shape[1] if "k" in state else 0
        marked = not ctx.plain or "at" in state
        position, document, after = _positions(start, t, state, ctx)
        q = self.queries(x, position)
        k, v = self.pairs(x, position)
        new: State = {"k": k, "v": v}
        if marked:
            here = torch.stack((document, position), -1)
            if ctx.mask is not None:
                here = torch.where(ctx.mask[..., None], here, torch.full_like(here, -1))
            new["at"] = here
        if "k" in state:
            old = {name: state[name] for name in ("k", "v")}
            if marked:
                old["at"] = state["at"] if "at" in state else _plain_places(start, past)
            new = {name: torch.cat((old[name], new[name]), 1) for name in new}
        mask, causal = self._seen(t, new, position, document, marked)
        y = self.look(q, new["k"], new["v"], mask, causal)
        return self.out(y), {**self._keep(new), "next": after}

    def queries(self, x: Tensor, position: Tensor) -> Tensor:
        """[B, T, heads, width], rotated to position [B, T]."""
        return _rotate(self.q(x).unflatten(-1, (self.heads, self.width)), position, self.inverse)

    def pairs(self, x: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, kv_heads, width]; the keys rotated, if they have a position."""
        k, v = self.kv(x).unflatten(-1, (2, self.kv_heads, self.width)).unbind(-3)
        return (k if position is None else _rotate(k, position, self.inverse)), v

    def look(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """What the queries find in the persistent tokens and in the keys that the mask [.., T, S] shows them."""
        if self.persistent is not None:
            first = [x.expand(k.shape[0], -1, -1, -1) for x in self.pairs(self.persistent[None], None)]
            k, v = torch.cat((first[0], k), 1), torch.cat((first[1], v), 1)
            if causal:
                mask, causal = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril(), False
            if mask is not None:
                mask = F.pad(mask, (self.persistent.shape[0], 0), value=True)
        repeat = self.heads // self.kv_heads
        k, v = (x.transpose(1, 2).repeat_interleave(repeat, 1) for x in (k, v))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, is_causal=causal)
        return y.transpose(1, 2).flatten(2)

    def levels_entry(self) -> dict:
        """For ``circadia.levels``: solved anew at every token, over all that is kept (eq. 62)."""
        size = 2 * self.kv_heads * self.width * self.kv.weight.element_size()
        return {
            "name": "attention" if self.window is None else f"attention over {self.window} tokens",
            "period": 0,
            "learns_from": "tokens",
            "objective": "Nadaraya-Watson: min over M of Σ s(k_i, q) ‖v_i - M‖² (eq. 62)",
            "rule": "closed form (softmax), nothing is iterated",
            "enters": "in context: every token writes its (k, v)",
            "leaves": "read by later tokens; gone at the end of the sequence",
            "window": self.window,
            "bytes_per_token": size,
            "state_bytes": 0 if self.window is None else (self.window - 1) * size,
        }

    def _seen(self, t: int, new: State, position: Tensor, document: Tensor, marked: bool) -> tuple[Tensor | None, bool]:
        """Which keys each token may look at: a mask, or that it is the causal one."""
        s, device = new["k"].shape[1], position.device
        mask, causal = None, False
        if marked:
            doc, at = new["at"][:, None, :, 0], new["at"][:, None, :, 1]
            seen = (doc == document[..., None]) & (at >= 0) & (at <= position[..., None])
            if self.window is not None:
                seen = seen & (position[..., None] - at < self.window)
            # A padded query sees nothing: let it look at the first key, its answer is not used.
            nothing = ~seen.any(-1, keepdim=True)
            seen = seen | (nothing & (torch.arange(s, device=device) == 0))
            mask = seen[:, None]
        elif self.window is not None and s > min(self.window, t if s == t else 1):
            distance = torch.arange(s - t, s, device=device)[:, None] - torch.arange(s, device=device)
            mask = (distance >= 0) & (distance < self.window)
        elif t > 1 and s == t:
            causal = True
        elif t > 1:
            mask = torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)
        return mask, causal

    def _keep(self, new: State) -> State:
        """What later tokens can still see."""
        if self.window is None:
            return new
        if "at" in new:  # padding to the front, so that it falls out first
            order = (new["at"][..., 1] >= 0).long().argsort(dim=1, stable=True)
            new = {name: take(x, order) for name, x in new.items()}
        return {name: x[:, -(self.window - 1) :] if self.window > 1 else x[:, :0] for name, x in new.items()}


def _positions(start: Tensor, tokens: int, state: State, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
    """Position in the document and number of the document [B, T], and the position of the row's next token."""
    zeros = torch.zeros(start.shape[0], tokens, dtype=torch.int64, device=start.device)
    base = state["at"][..., 0].amax(1, keepdim=True).clamp_min(0) if "at" in state and state["at"].shape[1] else 0
    if ctx.plain:
        return start[:, None] + torch.arange(tokens, device=start.device), zeros + base, start + tokens
    assert ctx.back is not None and ctx.since is not None and ctx.count is not None
    since = take(ctx.since, ctx.back)
    position = torch.where(since < (1 << 30), since, start[:, None] + ctx.back)
    document = zeros + base
    if ctx.reset is not None:
        document = document + ctx.reset.long().cumsum(1)
    last = take(
        position, (ctx.order.gather(1, (ctx.count[:, None] - 1).clamp_min(0)) if ctx.order is not None else zeros)
    )
    after = torch.where(ctx.count > 0, last.squeeze(1) + 1, start)
    return position, document, after


def _plain_places(start: Tensor, past: int) -> Tensor:
    """Document 0 and the positions of keys that were stored without marks."""
    position = start[:, None] - past + torch.arange(past, device=start.device)
    return torch.stack((torch.zeros_like(position), position), -1)


def _rotate(x: Tensor, position: Tensor, inverse: Tensor) -> Tensor:
    """Rotary embedding of x [B, T, heads, width] at its position [B, T], computed in float32 or better."""
    angle = position[..., None].to(torch.promote_types(x.dtype, torch.float32)) * inverse.to(position.device)
    cos, sin = angle.cos()[:, :, None].to(x.dtype), angle.sin()[:, :, None].to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
