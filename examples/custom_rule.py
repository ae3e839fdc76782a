"""A memory rule of your own from two plain functions: what it answers, and what it should have answered."""

import torch
import torch.nn.functional as F

from circadia.memory import custom, get


def memory(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The answer for one key."""
    return w["m"] @ x


def robust(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The objective: far errors count by their length only, so that a wild value does little harm."""
    return F.huber_loss(y, v, reduction="sum", delta=0.5)


RULE = custom("robust", memory=memory, objective=robust, start=lambda d_k, d_v: {"m": torch.zeros(d_v, d_k)})


def recall(rule, rate: float, wild: float, passes: int = 4) -> float:
    """Learn 8 pairs several times over, one of them with a wild value now and then; cosine of what comes back."""
    torch.manual_seed(0)
    keys, values = (F.normalize(torch.randn(1, 1, 8, 32), dim=-1) for _ in range(2))
    k, v = keys.repeat(1, 1, passes, 1), values.repeat(1, 1, passes, 1)
    v = torch.cat((v[:, :, :-3], wild * torch.randn_like(v[:, :, -3:])), 2)
    rates = {"eta": torch.full((1, 1, k.shape[2]), rate)}
    state = rule.init(batch=1, heads=1, d_k=32)
    _, whole = rule(k, k, v, rates, state, chunk=1)
    for t in range(k.shape[2]):  # token by token is the same function
        _, state = rule.step(k[:, :, t], k[:, :, t], v[:, :, t], {"eta": rates["eta"][:, :, t]}, state, chunk=1)
    assert all(torch.allclose(state[name], x, atol=1e-5) for name, x in whole.items())
    none = {"eta": torch.zeros(1, 1)}
    back = [rule.step(q, 0 * q, 0 * q, none, state, chunk=1)[0] for q in keys.unbind(2)]
    return F.cosine_similarity(torch.stack(back, 2), values, dim=-1).mean().item()


def main() -> dict[str, tuple[float, float]]:
    found = {}
    for rule in (RULE, get("deltanet")):
        found[rule.name] = recall(rule, 0.9, 1.0), recall(rule, 0.9, 30.0)
        print(f"{rule.name}: {found[rule.name][0]:.2f} recalled, {found[rule.name][1]:.2f} after three wild values")
    return found


if __name__ == "__main__":
    main()
