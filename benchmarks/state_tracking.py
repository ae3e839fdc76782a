"""Does the self-modifying memory learn? Parity and (aa)*, which need eigenvalues down to -1, and recall of pairs.

    python -m benchmarks.state_tracking parity --seed 0

One layer, trained on short strings, tested on fresh ones as long and twice as long. What the tasks do not share
is in ``TASKS``: one setting for both is still open.
"""

import argparse
import math
import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from circadia.memory import RULES, SelfModifying, expand

WIDTH, HEADS, CHUNK, BATCH, EVERY = 32, 2, 16, 32, 100
HEAD = WIDTH // HEADS


@dataclass(frozen=True)
class Task:
    """Symbols in and out, lengths in training, what the memory is given, and the learning rate."""

    symbols: int
    classes: int
    short: tuple[int, int]
    long: tuple[int, int]
    memory: dict
    hidden: int
    gain: float
    lr: float


STRICT = {"scale": 1 / 16, "output_scale": 1 / 16, "bound": 1.0}
TASKS = {
    "parity": Task(2, 2, (2, 50), (52, 100), STRICT, 16, 0.5, 3e-3),
    "aa": Task(1, 2, (2, 50), (52, 100), STRICT, 16, 0.5, 3e-3),
    "recall": Task(16, 16, (64, 64), (128, 128), {"output_scale": 1 / 16, "clip": None}, 32, 2.0, 5e-3),
}


class Layer(nn.Module):
    """Four streams through a short convolution, the memory, a norm and a gain per head."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        rule = RULES["self_modifying"]
        assert isinstance(rule, SelfModifying)
        self.rule = replace(rule, **task.memory)
        self.streams, self.out = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.taps, self.gain = nn.Parameter(0.15 * torch.randn(4, 4 * WIDTH)), nn.Parameter(torch.ones(HEADS, 1, HEAD))
        start = self.rule.init(1, HEADS, HEAD, hidden=task.hidden, gain=task.gain)
        wide = {
            n: w[0] * (10.0 if n.endswith("skip") else 1.0) for n, w in start.items()
        }  # the gates look at the input
        self.start = nn.ParameterDict({n.replace(".", "/"): nn.Parameter(w.clone()) for n, w in wide.items()})
        self.offsets = nn.Parameter(torch.tensor([0.0, 8.0])[:, None, None].repeat(1, HEADS, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        past = F.pad(self.streams(x), (0, 0, 3, 0))
        mixed = past[:, 3:] + sum(past[:, 3 - j : 3 - j + tokens] * self.taps[j] for j in range(4))
        k, v, gate, q = mixed.view(batch, tokens, 4, HEADS, HEAD).permute(2, 0, 3, 1, 4)
        eta, alpha = (o.expand(batch, -1, tokens) for o in self.offsets)
        start = expand({n.replace("/", "."): w for n, w in self.start.items()}, batch)
        y, _ = self.rule(q, k, v, {"x": gate, "eta": eta, "alpha": alpha}, start, chunk=CHUNK)
        y = F.rms_norm(y, (HEAD,), eps=1e-5) * self.gain
        return self.out(y.transpose(1, 2).reshape(batch, tokens, WIDTH))


class Model(nn.Module):
    """Embedding, the layer, an MLP, a head; residual and normed."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.embed, self.layer, self.head = (
            nn.Embedding(task.symbols, WIDTH),
            Layer(task),
            nn.Linear(WIDTH, task.classes),
        )
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.layer(self.norms[0](x))
        return self.head(self.norms[2](x + self.mlp(self.norms[1](x))))


def sample(name: str, size: int, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels, -100 where nothing is asked."""
    if name == "recall":  # key, value, key, value, ... from a table of its own; a key seen before asks for its value
        keys, table = torch.randint(8, (size, high // 2)), torch.randint(8, 16, (size, 8))
        values = table.gather(1, keys)
        before = torch.stack([(keys[:, :i] == keys[:, i : i + 1]).any(1) for i in range(high // 2)], 1)
        labels = torch.stack((values.masked_fill(~before, -100), torch.full_like(values, -100)), 2)
        return torch.stack((keys, values), 2).flatten(1), labels.flatten(1)
    tokens = torch.randint(2, (size, high)) if name == "parity" else torch.zeros(size, high, dtype=torch.long)
    labels = tokens.cumsum(1) % 2 if name == "parity" else (torch.arange(high) % 2).expand(size, high)
    ends = torch.randint(low, high + 1, (size, 1))
    return tokens, labels.masked_fill(torch.arange(high) >= ends, -100)


@torch.no_grad()
def score(model: Model, name: str, span: tuple[int, int], strings: int, seed: int) -> tuple[float, float]:
    """Share of strings without a mistake, and of single answers that are right."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = right = asked = 0
        for _ in range(strings // 128):
            tokens, labels = sample(name, 128, *span)
            hit, counts = model(tokens).argmax(-1) == labels, labels != -100
            whole += int((hit | ~counts).all(1).sum())
            right, asked = right + int((hit & counts).sum()), asked + int(counts.sum())
    return whole / (strings // 128 * 128), right / asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(given.seed)
    task, began = TASKS[given.task], time.perf_counter()
    model = Model(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, given.steps + 1):
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * step / given.steps))
        optimizer.param_groups[0]["lr"] = task.lr * min(1.0, step / 50) * cosine
        tokens, labels = sample(given.task, BATCH, *task.short)
        loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        if step % EVERY == 0:
            seen = [score(model, given.task, span, 256, 11) for span in (task.short, task.long)]
            print(f"step {step}: loss {loss.item():.4f}, strings {seen[0][0]:.1%} and {seen[1][0]:.1%}", flush=True)
            if min(s[0] for s in seen) == 1.0:
                break
    for kind, span in (("as long as in training", task.short), ("twice as long", task.long)):
        strings, answers = score(model, given.task, span, 2048, 99)
        print(f"{given.task}, seed {given.seed}, {kind}: strings {strings:.2%}, answers {answers:.3%}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
