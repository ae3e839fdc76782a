"""An MLP that is read and whose gradient is formed in one go: W_out act(W_up x), for SwiGLU and GELU.

``learn`` gives the answers y and the gradient of sum_t w_t 1/2 |y_t - target_t|^2 in both matrices. The outer gradient
through both is written out below: as ordinary operations it takes more than twice as long.

Letters: a = x W_up^T; h = act(a); e = w (y - target); b = e W_out, the error at h; n = b act'(a), the error at a.
Bars are outer gradients. For SwiGLU a = (g, u), h = silu(g) u, so n = (b u silu'(g), b silu(g)).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from circadia.memory.derivatives import gelu_and_slope

Kind = Literal["swiglu", "gelu"]


def mlp(kind: Kind, x: Tensor, up: Tensor, out: Tensor) -> Tensor:
    """W_out act(W_up x), with weights [m, d] or one for each sequence [B, m, d]."""
    return act(kind, x @ up.mT) @ out.mT


def act(kind: Kind, a: Tensor) -> Tensor:
    if kind == "gelu":
        return F.gelu(a)
    gate, value = a.chunk(2, -1)
    return F.silu(gate) * value


def learn(
    kind: Kind, x: Tensor, target: Tensor, weight: Tensor, up: Tensor, out: Tensor, first: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """X, target [B, C, d], weight [B, C, 1], matrices [m, d] or [B, m, d] -> (y, gradient of up, gradient of out).

    ``first``: the matrices inside the gradients are constants to the outer gradient; y and the inputs are not.
    """
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return _Learn.apply(kind, x, target, weight, up, out, first)
    # The backward pass runs outside of the region, where nothing is cast: it has to find one type.
    half = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        x, target, weight, up, out = (z.to(half) for z in (x, target, weight, up, out))
        return _Learn.apply(kind, x, target, weight, up, out, first)


def _slopes(kind: Kind, a: Tensor) -> tuple[Tensor, ...]:
    """Of gelu: h, h', h''. Of SwiGLU: u, silu, silu', silu''."""
    if kind == "gelu":
        h, slope = gelu_and_slope(a)
        return h, slope, (2.0 - a * a) * torch.exp(-0.5 * a * a) * 0.3989422804014327
    gate, value = a.chunk(2, -1)
    sig = torch.sigmoid(gate)
    silu = gate * sig
    slope = sig + silu * (1.0 - sig)
    return value, silu, slope, sig * (1.0 - sig) * (2.0 + gate * (1.0 - 2.0 * sig))


class _Learn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kind: Kind, x: Tensor, target: Tensor, weight: Tensor, up: Tensor, out: Tensor, first: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        a = x @ up.mT
        if kind == "gelu":
            h, slope, _ = _slopes(kind, a)
        else:
            value, silu, slope, _ = _slopes(kind, a)
            h = silu * value
        y = h @ out.mT
        miss = y - target
        e = weight * miss
        b = e @ out
        n = b * slope if kind == "gelu" else torch.cat((b * value * slope, b * silu), -1)
        ctx.save_for_backward(x, miss, weight, up, out, a, b)
        ctx.kind, ctx.first = kind, first
        return y, n.mT @ x, e.mT @ h

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> Any:
        dy, dup, dout = bars
        x, miss, weight, up, out, a, b = ctx.saved_tensors
        e = weight * miss
        dn = x @ dup.mT
        # Through the error at the hidden layer, and the gradient of W_out.
        if ctx.kind == "gelu":
            h, slope, curve = _slopes(ctx.kind, a)
            n, db = b * slope, dn * slope
            dh = e @ dout
            da_inner = dn * b * curve
        else:
            value, silu, slope, curve = _slopes(ctx.kind, a)
            h = silu * value
            by = b * slope
            dn_gate, dn_value = dn.chunk(2, -1)
            n = torch.cat((by * value, b * silu), -1)
            db = dn_gate * value * slope + dn_value * silu
            dh = e @ dout
            da_inner = torch.cat((b * (dn_gate * value * curve + dn_value * slope), dn_gate * by), -1)
        de = h @ dout.mT + db @ out.mT
        dmiss = weight * de
        dweight = (miss * de).sum(-1, keepdim=True)

        def through(bar: Tensor) -> Tensor:
            """From h to a."""
            return bar * slope if ctx.kind == "gelu" else torch.cat((bar * (value * slope), bar * silu), -1)

        if ctx.first:
            read, inner = through(dy @ out), through(dh + dmiss @ out) + da_inner
            d_up, d_out = read.mT @ x, dy.mT @ h
            dx = (read + inner) @ up + n @ dup
        else:
            whole = dy + dmiss
            da = through(dh + whole @ out) + da_inner
            d_up, d_out = da.mT @ x, whole.mT @ h + e.mT @ db
            dx = da @ up + n @ dup
        # Matrices that the batch shares.
        d_up, d_out = d_up.sum_to_size(up.shape), d_out.sum_to_size(out.shape)
        return None, dx, -dmiss, dweight, d_up, d_out, None
