"""Two processes, one model, by FSDP2: `torchrun --nproc-per-node 2 examples/fsdp2.py` (gloo on a CPU, NCCL on GPUs).

Slow weights are sharded; fast weights belong to a sequence and stay whole, so inner updates are on everywhere.
"""

import torch
from torch.distributed.tensor import DTensor

from circadia.models import HopeConfig, HopeForCausalLM
from circadia.optim import build
from circadia.train.distributed import shard, started

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "periods": [8, 16], "chunk": 8}
TEXT = torch.tensor(list(b"the sea was calm and the ship went on, and the night was long. " * 40))


def main(steps: int = 15) -> float:
    with started("auto") as world:
        torch.manual_seed(0)  # the same start everywhere; the rows differ
        net = HopeForCausalLM(HopeConfig(vocab_size=256, mixers=["gated_deltanet"], **SMALL)).to(world.device)
        model = shard(net, "fsdp", world)
        optimizer = build(net, "m3", lr=0.02)  # each matrix is made orthogonal whole, by one owner
        draw = torch.Generator().manual_seed(world.rank)
        for step in range(1, steps + 1):
            starts = torch.randint(len(TEXT) - 33, (4,), generator=draw)
            rows = torch.stack([TEXT[i : i + 33] for i in starts]).to(world.device)
            loss = model(rows[:, :-1], labels=rows[:, :-1]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = world.sum(loss.item())[0] / world.size
            if world.first and step % 5 == 0:
                print(f"step {step}: {mean:.2f} nats a byte", flush=True)
        held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in net.parameters())
        total = sum(p.numel() for p in net.parameters())
        print(f"process {world.rank} of {world.size} holds {held:,} of {total:,} parameters", flush=True)
        return mean


if __name__ == "__main__":
    main()
