"""The LSTM (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), for formal languages."""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from circadia.models.cache import State
from circadia.models.context import Context

FORGET = (4.0, 10.0)  # offsets of the forget gate, from the shortest to the longest memory


class LSTM(nn.Module):
    """i, f, g, o = W x_t + R h_{t-1} + b; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g); h_t = sigmoid(o) tanh(c_t).

    State: "h", "c" [B, D], float32 or better; both starts are learned. Rows in step run in torch's own kernels, which
    equal the loop below; padding and documents take the loop.
    """

    def __init__(self, config) -> None:
        super().__init__()
        width = config.hidden_size
        self.inputs = nn.Linear(width, 4 * width, bias=False)
        self.recurrent = nn.Parameter(torch.empty(4 * width, width))
        self.bias = nn.Parameter(torch.empty(4 * width))
        self.start = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(width, dtype=torch.float32)) for name in ("h", "c")}
        )
        self.out = nn.Linear(width, width, bias=False)

    def init_weights(self) -> None:
        """Orthogonal in the recurrence. Forget biases from short to long memories, as in chrono initialisation (Tallec
        and Ollivier 2018); a cell that keeps f gets the variance of its sum of inputs from i^2 / (1 - f^2), which the
        input biases of half the size make the same for every f.
        """
        width = self.out.in_features
        init.normal_(self.inputs.weight, std=width**-0.5)
        square = torch.empty(width, width, dtype=torch.float32, device=self.recurrent.device)
        init.copy_(self.recurrent, torch.cat([nn.init.orthogonal_(square.clone()) for _ in range(4)]))
        forget = torch.linspace(*FORGET, width)
        zero = torch.zeros(width)
        init.copy_(self.bias, torch.cat((-forget / 2, forget, zero, zero)))
        for start in self.start.values():
            init.zeros_(start)

    def forward(self, x: Tensor, state: State, ctx: Context) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        start = {name: w.to(dtype).expand(x.shape[0], -1) for name, w in self.start.items()}
        h, c = (state.get(name, start[name]) for name in ("h", "c"))
        weights = [w.to(dtype) for w in (self.inputs.weight, self.recurrent, self.bias, torch.zeros_like(self.bias))]
        with torch.autocast(x.device.type if not x.is_meta else "cpu", enabled=False):
            # Operations inside torch's kernel cannot be counted, so on the meta device the loop stands for it.
            if ctx.plain and not x.is_meta:
                h, c = (w[None].contiguous() for w in (h, c))
                y, h, c = torch.lstm(x.to(dtype), (h, c), weights, True, 1, 0.0, self.training, False, True)
                h, c = h[0], c[0]
            else:
                y, h, c = self._loop(x.to(dtype) @ weights[0].mT + weights[2], h, c, weights[1], start, ctx)
        return self.out(y.to(x.dtype)), {"h": h, "c": c}

    def _loop(
        self, inputs: Tensor, h: Tensor, c: Tensor, recurrent: Tensor, start: State, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One token after another; padding leaves the state as it is, a document begins from the start."""
        ys = []
        for t, at in enumerate(inputs.unbind(1)):
            if ctx.reset is not None:
                begins = ctx.reset[:, t, None]
                h, c = torch.where(begins, start["h"], h), torch.where(begins, start["c"], c)
            i, f, g, o = (at + h @ recurrent.mT).chunk(4, -1)
            new = f.sigmoid() * c + i.sigmoid() * g.tanh()
            out = o.sigmoid() * new.tanh()
            if ctx.mask is None:
                h, c = out, new
            else:
                real = ctx.mask[:, t, None]
                h, c = torch.where(real, out, h), torch.where(real, new, c)
            ys.append(h)
        return torch.stack(ys, 1), h, c

    def levels_entry(self) -> dict:
        size = self.bias.element_size()
        return {
            "name": "LSTM",
            "period": 1,
            "learns_from": "tokens",
            "objective": "dot product per cell, -c tanh(g), with decay (eq. 64, by analogy)",
            "rule": "c_t = f c_{t-1} + i tanh(g); h_t = o tanh(c_t)",
            "enters": "in context: every token writes what its input gate lets in",
            "leaves": "by reads in context; the start of the next document forgets it",
            "state_bytes": 2 * self.out.in_features * max(size, 4),
            "starts_from": ["start.h", "start.c"],
        }
