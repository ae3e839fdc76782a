"""A memory in your own model: a layer that stores pairs as it reads, and answers for keys seen before."""

import torch
import torch.nn.functional as F
from torch import nn

import circadia
from circadia.memory import get

KEYS, VALUES, PAIRS, WIDTH, HEADS = 8, 8, 24, 32, 2


class MemoryLayer(nn.Module):
    """Projections, a rate per token and head, and a memory that every sequence writes for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rule, self.head = get("dgd"), WIDTH // HEADS
        self.into, self.rate, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, HEADS), nn.Linear(WIDTH, WIDTH)
        self.start = nn.Parameter(torch.zeros(HEADS, self.head, self.head))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.into(x).view(batch, tokens, 3, HEADS, self.head).permute(2, 0, 3, 1, 4)
        eta = 2 * torch.sigmoid(self.rate(x)).transpose(1, 2)
        state = {"w": self.start.expand(batch, -1, -1, -1)}
        y, _ = self.rule(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, {"eta": eta}, state, chunk=16)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, WIDTH))

    def levels_entry(self) -> list[dict]:
        return [{**e, "starts_from": ["start"]} for e in self.rule.levels_entry({"w": self.start[None]}, chunk=16)]


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (key, value) in one token each, from a map drawn anew for every sequence, then a key alone."""
    table, keys = torch.randint(VALUES, (size, KEYS)), torch.randint(KEYS, (size, PAIRS))
    pairs = keys * (VALUES + 1) + table.gather(1, keys)
    asked = keys.gather(1, torch.randint(PAIRS, (size, 1)))
    return torch.cat((pairs, asked * (VALUES + 1) + VALUES), 1), table.gather(1, asked).squeeze(1)


def main(steps: int = 300) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(KEYS * (VALUES + 1), WIDTH), MemoryLayer(), nn.Linear(WIDTH, VALUES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    print(circadia.levels(model, optimizer))
    for step in range(1, steps + 1):
        x, y = batch(64)
        answers = model(x)[:, -1]
        loss, right = F.cross_entropy(answers, y), answers.argmax(-1).eq(y).float().mean().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {right:.0%} recalled (chance {1 / VALUES:.0%})")
    return right


if __name__ == "__main__":
    main()
