"""Hope from nothing: self-modifying memories, then MLPs at three frequencies, trained to copy what it just read."""

import torch
import torch.nn.functional as F

import circadia
from circadia.models import HopeConfig, HopeForCausalLM
from circadia.optim import build

SYMBOLS, LENGTH = 8, 6


def batch(size: int) -> torch.Tensor:
    """A few symbols, a separator, and the same symbols again."""
    drawn = torch.randint(1, SYMBOLS + 1, (size, LENGTH))
    return torch.cat((drawn, torch.zeros(size, 1, dtype=torch.long), drawn), 1)


def main(steps: int = 150) -> float:
    torch.manual_seed(0)
    config = HopeConfig(
        vocab_size=SYMBOLS + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mixers=["self_modifying"],
        periods=[4, 8, 16],  # tokens between two updates of a level; the first learns in the context most often
        chunk=4,
    )
    model = HopeForCausalLM(config)
    print(circadia.levels(model))
    optimizer = build(model, "adamw", lr=5e-3)
    for step in range(1, steps + 1):
        rows = batch(32)
        # Outer gradients flow through the inner updates: how to write, how fast, and from where are learned.
        logits = model(rows[:, :-1]).logits[:, LENGTH:]
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, LENGTH + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            right = logits.argmax(-1).eq(rows[:, LENGTH + 1 :]).float().mean().item()
            print(f"step {step}: loss {loss.item():.2f}, {right:.0%} copied (chance {1 / SYMBOLS:.0%})")
    return right


if __name__ == "__main__":
    main()
