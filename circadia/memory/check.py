"""Bad input gets a ``ValueError`` that names the argument, the value and the fix."""

from collections.abc import Iterable

import torch
from torch import Tensor

from circadia.memory.state import State

READS = ("running", "previous", "chunk")
ORDERS = ("second", "first")


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(repr, allowed))}")


def positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} is not a positive number of tokens: give an integer of at least 1")


def shapes(rule: str, q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor], *, same_width: bool) -> None:
    """q, k [B, H, T, d_k], v [B, H, T, d_v], gates [B, H, T] (the gate stream "x" like k)."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if not isinstance(x, Tensor) or x.ndim != 4:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} is {got}: {rule} needs a tensor [batch, heads, tokens, width]")
        if not x.is_floating_point():
            raise ValueError(f"{name} has dtype {x.dtype}: use a floating-point type")
    if q.shape != k.shape:
        raise ValueError(f"q is {tuple(q.shape)} but k is {tuple(k.shape)}: they must have the same shape")
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"v is {tuple(v.shape)} but k is {tuple(k.shape)}: batch, heads and tokens must agree")
    if same_width and v.shape != k.shape:
        raise ValueError(
            f"v is {v.shape[-1]} wide but k is {k.shape[-1]}: {rule} has a residual, so they must be equal"
        )
    for name, gate in gates.items():
        want = k.shape if name == "x" else k.shape[:3]
        if gate.shape != want:
            raise ValueError(f"gates[{name!r}] is {tuple(gate.shape)}: with this k it must be {tuple(want)}")
    tensors = {"q": q, "k": k, "v": v} | {f"gates[{n!r}]": g for n, g in gates.items()}
    for name, x in tensors.items():
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device} but q is on {q.device}: move them to one device")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} has dtype {x.dtype} but q has {q.dtype}: cast them to one type")


def gate_names(rule: str, gates: dict[str, Tensor], needs: tuple[str, ...], takes: tuple[str, ...]) -> None:
    missing = [n for n in needs if n not in gates]
    if missing:
        raise ValueError(f"gates has no {missing[0]!r}: {rule} needs gates {', '.join(map(repr, needs))}")
    extra = [n for n in gates if n not in needs + takes]
    if extra:
        allowed = ", ".join(map(repr, needs + takes)) or "no gates"
        raise ValueError(f"gates[{extra[0]!r}] is not used by {rule}: it takes {allowed}")


def state_shapes(rule: str, state: State, shapes: dict[str, tuple[int | None, ...] | None], k: Tensor) -> None:
    """Every weight [B, H, ...]; None in a shape means any size."""
    for name, shape in shapes.items():
        if name not in state:
            raise ValueError(f"state has no {name!r}: make one with {rule}.init(...), or pass {', '.join(shapes)}")
        got = state[name]
        full = (k.shape[0], k.shape[1], *(got.shape[2:] if shape is None else shape))
        if got.ndim != len(full) or any(w is not None and w != g for w, g in zip(full, got.shape)):
            want = "[" + ", ".join("*" if w is None else str(w) for w in full) + "]"
            raise ValueError(f"state[{name!r}] is {list(got.shape)}: for these inputs {rule} needs {want}")
    for name, x in state.items():
        if x.device != k.device:
            raise ValueError(f"state[{name!r}] is on {x.device} but k is on {k.device}: move it with .to(k.device)")
        if name in shapes and x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"state[{name!r}] has dtype {x.dtype}: memories are kept in float32 or float64")


def token_mask(name: str, mask: Tensor | None, k: Tensor) -> None:
    if mask is None:
        return
    want = (k.shape[0], k.shape[2])
    if mask.shape != want or mask.dtype != torch.bool:
        raise ValueError(f"{name} is {mask.dtype} {tuple(mask.shape)}: it must be torch.bool {want} (batch, tokens)")
    if mask.device != k.device:
        raise ValueError(f"{name} is on {mask.device} but k is on {k.device}: move them to one device")


class Unwritable(ValueError):
    """A value that would spoil a memory: nothing was written."""


def values(named: dict[str, tuple[Tensor, float, float]]) -> None:
    """Finite and in range [low, high]; one synchronization for all of them when nothing is wrong."""
    if not named:
        return
    fine = torch.stack([_fine(x, low, high) for x, low, high in named.values()])
    if bool(fine.all()):
        return
    for name, (x, low, high) in named.items():
        if x.numel() == 0 or bool(_fine(x, low, high)):
            continue
        bad = ~torch.isfinite(x)
        if bad.any():
            at = [int(i) for i in bad.nonzero()[0]]
            raise Unwritable(
                f"{name} is {x[tuple(at)].item()} at {at} ({int(bad.sum())} such values): nothing was written"
            )
        worst = x.min().item() if x.min() < low else x.max().item()
        raise ValueError(
            f"{name} is {worst:.6g}, outside [{low:g}, {high:g}]: keep it in range, for example by a sigmoid"
        )


def _fine(x: Tensor, low: float, high: float) -> Tensor:
    if x.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=x.device)
    least, most = x.detach().aminmax()
    # A comparison with NaN is false, and aminmax hands NaN on; infinity is refused even where there is no bound.
    return (least >= low) & (most <= high) & torch.isfinite(least) & torch.isfinite(most)
