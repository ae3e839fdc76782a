"""The self-referential weight matrix (Irie, Schlag, Csordas and Schmidhuber 2022, arXiv 2202.05780)."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from circadia.memory.derivatives import shorten
from circadia.models.cache import State
from circadia.models.context import Context

START = 1.0  # entries of W_0; at the authors' 1 / sqrt(d) all keys are nearly alike, and hardly anything is written
RATE = -3.0  # offset of beta
LONGEST = 4.0


class SRWM(nn.Module):
    """One matrix W per head makes its own keys, queries and rates, and rewrites itself (eq. 5-8 of the paper):

    y, k, q, beta = W_{t-1} phi(x_t)                               phi: softmax
    vbar = W_{t-1} phi(k),  v = W_{t-1} phi(q)
    W_t = W_{t-1} + sigmoid(beta) (v - vbar) phi(k)^T              a beta for each of the four parts of W

    Every key depends on the W that all tokens before have made: there is no parallel form, this loop is the truth and
    the implementation. For the backward pass it keeps one W a token. As in the authors' code the heads share the
    features of x among them, without a projection. State: "W" [B, H, 3 d + 4, d], float32 or better; W_0 is learned.

    One thing is added: no row of W grows beyond ``LONGEST`` times the root of its width. As printed the rule can
    explode, since its targets are its own: along phi(k) a write multiplies W by 1 + sigmoid(beta) phi(k) (phi(q) -
    phi(k)), which is above 1 where phi(q) is the sharper of two that point the same way. It did, after 1,000 tokens.
    """

    def __init__(self, config) -> None:
        super().__init__()
        self.heads, self.width = config.num_attention_heads, config.head_dim
        self.start = nn.Parameter(torch.empty(self.heads, 3 * self.width + 4, self.width, dtype=torch.float32))
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.part: Tensor  # which beta each row of W obeys
        self.register_buffer("part", self._parts(), persistent=False)

    def _parts(self) -> Tensor:
        return (torch.arange(3 * self.width + 4) // self.width).clamp_max(3)

    def init_weights(self) -> None:
        init.copy_(self.part, self._parts())
        start = torch.randn(self.start.shape) * START
        # phi sums to 1, so a constant added to the rows of beta is added to beta.
        start[:, -4:] = start[:, -4:] * self.width**-0.5 + RATE
        init.copy_(self.start, start)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        start = self.start.to(dtype).expand(x.shape[0], -1, -1, -1)
        w, d = state.get("W", start), self.width
        phi = x.unflatten(-1, (self.heads, d)).to(dtype).softmax(-1)[..., None]
        ys = []
        with torch.autocast(x.device.type if not x.is_meta else "cpu", enabled=False):
            for t, phi_x in enumerate(phi.unbind(1)):
                if ctx.reset is not None:
                    w = torch.where(ctx.reset[:, t, None, None, None], start, w)
                made = w @ phi_x
                k, q = made[:, :, d : 3 * d].unflatten(2, (2, d)).softmax(3).unbind(2)
                rate = made[:, :, -4:].sigmoid()[:, :, self.part]
                if ctx.mask is not None:
                    rate = rate * ctx.mask[:, t, None, None, None]
                w = shorten(w + rate * (w @ (q - k)) * k.mT, LONGEST * d**0.5)
                ys.append(made[:, :, :d, 0])
        return self.out(torch.stack(ys, 1).flatten(2).to(x.dtype)), {"W": w}

    def levels_entry(self) -> dict:
        return {
            "name": "self-referential weight matrix",
            "period": 1,
            "learns_from": "tokens",
            "objective": "L2 regression, 1/2 |W phi(k) - v|^2, with v = W phi(q) its own",
            "rule": "W_t = W_{t-1} + sigmoid(beta) (v - W_{t-1} phi(k)) phi(k)^T",
            "enters": "in context, by writing (key, value) pairs that it makes itself",
            "leaves": "by reads in context; the start of the next document forgets it",
            "state_bytes": self.start.numel() * max(self.start.element_size(), 4),
            "starts_from": ["start"],
        }
