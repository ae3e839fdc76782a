"""What other packages offer at the same task, each in its own published form, beside ours.

titans-pytorch          NeuralMemory, a whole layer: so ours is a layer too, ``Projected``. In its default it takes all
                        gradients of a sequence at one point; with batch_size = chunk it renews the point, as ours does.
nested-learning         SelfModifyingTitans.forward_with_updates: one head as wide as the layer, reads from the start of
                        the chunk. Its writes run without gradients: only its forward pass can be timed.
flash-linear-attention  the Triton kernel of the gated delta rule, which two of our rules map to exactly.

An adapter raises ``NotMeasured`` where a package is missing; whatever else goes wrong is reported by the harness.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import NotMeasured, reason
from benchmarks.inputs import Inputs, Shape
from circadia.memory import Rule, expand, get

Layer = Callable[[Tensor], Tensor]


class Projected(nn.Module):
    """The least layer round a rule: norm, projections, gates, a learned start, an output projection."""

    def __init__(self, rule: Rule, heads: int, width: int, chunk: int) -> None:
        super().__init__()
        self.rule, self.heads, self.chunk = rule, heads, chunk
        self.norm = nn.RMSNorm(heads * width)
        self.qkv = nn.Linear(heads * width, 3 * heads * width, bias=False)
        self.to_gates = nn.Linear(heads * width, heads * len(rule.needs))
        self.out = nn.Linear(heads * width, heads * width, bias=False)
        self.start = nn.ParameterDict({name: x[0].clone() for name, x in rule.init(1, heads, width).items()})

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        raw = self.to_gates(x).transpose(1, 2).chunk(len(self.rule.needs), 1)
        # 0.02 keeps a chunk of gradient steps on random projections from overshooting; a retention starts near 1.
        gates = {
            name: torch.sigmoid(g + 4 if name == "alpha" else g) * (0.02 if name == "eta" else 1.0)
            for name, g in zip(self.rule.needs, raw)
        }
        start = expand(dict(self.start.items()), x.shape[0])
        y, _ = self.rule(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, gates, start, chunk=self.chunk)
        return self.out(y.transpose(1, 2).flatten(2))


class SelfMade(nn.Module):
    """``self_modifying`` as nested-learning has it: one head, a static query, the stream itself to all the others."""

    def __init__(self, rule: Rule, width: int, chunk: int) -> None:
        super().__init__()
        self.rule, self.chunk = rule, chunk
        self.query = nn.Linear(width, width, bias=False)
        start = rule.init(1, 1, width)
        self.names = list(start)
        self.start = nn.ParameterList([x[0].clone() for x in start.values()])

    def forward(self, x: Tensor) -> Tensor:
        start = expand(dict(zip(self.names, self.start)), x.shape[0])
        stream = x[:, None]
        y, _ = self.rule(self.query(x)[:, None], stream, stream, {"x": stream}, start, chunk=self.chunk, read="chunk")
        return y[:, 0]


@dataclass(frozen=True)
class Peer:
    """A package with a layer comparable to one of our rules."""

    package: str
    rule: str
    slow: bool  # time it at the length of the loop
    ours: Callable[[Shape, int], nn.Module]
    theirs: Callable[[Shape, int], dict[str, nn.Module]]


class _Answer(nn.Module):
    """A layer that returns more than its output."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class _Updating(_Answer):
    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        return layer.forward_with_updates(x, layer.init_fast_state())[0]


def load(module: str, package: str) -> ModuleType:
    """An optional package."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.split(".")[0]:
            raise NotMeasured(f"not installed: pip install {package}") from error
        raise NotMeasured(f"cannot be imported ({reason(error)})") from error
    except Exception as error:
        raise NotMeasured(f"cannot be imported ({reason(error)})") from error


def _titans_pytorch(shape: Shape, chunk: int) -> dict[str, nn.Module]:
    memory = load("titans_pytorch", "titans-pytorch").NeuralMemory
    layers: dict[str, nn.Module] = {}
    for name, batch_size in (("titans-pytorch, one point", None), ("titans-pytorch, point per chunk", chunk)):
        layers[name] = _Answer(
            memory(
                shape.heads * shape.width,
                chunk_size=chunk,
                batch_size=batch_size,
                dim_head=shape.width,
                heads=shape.heads,
                # Per-head starts are stride-0 views there, which no optimizer can step.
                per_head_learned_parameters=False,
                # As large a memory as ours.
                default_model_kwargs={"depth": 2, "expansion_factor": 1.0},
            )
        )
    return layers


def _nested_learning(shape: Shape, chunk: int) -> dict[str, nn.Module]:
    module = load("nested_learning.titan.self_modifying", "nested-learning")
    config = module.SelfModifyingTitansConfig(
        dim=shape.heads * shape.width,
        chunk_size_other=chunk,
        chunk_size_memory=chunk,
        objective="dot",
        local_conv_window=None,
    )
    return {"nested-learning": _Updating(module.SelfModifyingTitans(config))}


PEERS = [
    Peer(
        "titans-pytorch",
        "titans",
        False,
        lambda shape, chunk: Projected(get("titans"), shape.heads, shape.width, chunk),
        _titans_pytorch,
    ),
    Peer(
        "nested-learning",
        "self_modifying",
        True,
        lambda shape, chunk: SelfMade(get("self_modifying"), shape.heads * shape.width, chunk),
        _nested_learning,
    ),
]

FLA = ("gated_deltanet", "dgd")  # the rules that are its gated delta rule


def gated_delta_rule(rule: str, inputs: Inputs) -> dict[str, Tensor | float]:
    """A call of ours as arguments of ``chunk_gated_delta_rule``, whose layout is [B, T, H, D].

    Its S = M^T obeys S_t = e^g S_{t-1} (I - beta k k^T) + beta v k^T (written for M). ``gated_deltanet`` is that with
    g = log alpha and beta = eta; ``dgd``, M (alpha I - eta k k^T) + eta v k^T, needs beta = eta / alpha and alpha v.
    """
    alpha, eta = inputs.gates["alpha"], inputs.gates["eta"]
    v, beta = inputs.v, eta
    if rule == "dgd":
        v, beta = alpha[..., None] * v, eta / alpha
    q, k, v = (x.transpose(1, 2).contiguous() for x in (inputs.q, inputs.k, v))
    # The kernel takes half-precision tokens, but sums the log decay in float32 at least.
    g = alpha.to(torch.promote_types(alpha.dtype, torch.float32)).log()
    return {"q": q, "k": k, "v": v, "g": g.mT.contiguous(), "beta": beta.mT.contiguous(), "scale": 1.0}


def flash_linear_attention(rule: str, inputs: Inputs) -> Tensor:
    """The same call through the kernel; the mapping of the gates is part of it. The start must be an empty memory."""
    kernel = load("fla.ops.gated_delta_rule", "flash-linear-attention").chunk_gated_delta_rule
    return kernel(**gated_delta_rule(rule, inputs))[0].transpose(1, 2)
