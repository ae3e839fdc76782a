"""What a student learns from a teacher: divergences, the reward for imitation, and how the two are put together.

P and Q are the teacher's and the student's distributions of the next token. The paper (arXiv 2606.03979) prints reward
minus divergence and calls it a loss; that is an objective to be maximised, so that the loss here has the other sign. It
leaves the divergence, alpha, gamma and z_0 open: they are arguments.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("forward", "reverse", "jsd")


def divergence(
    teacher: Tensor, student: Tensor, kind: str = "forward", beta: float = 0.5, temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """F(P||Q)(y|x) = 1/|y| sum_t D(P_t||Q_t), the mean over sequences; logits [n, t, V], mask [n, t] of what counts.

    forward   KL(P||Q): the student must give room to all that the teacher knows
    reverse   KL(Q||P): the student must not say what the teacher would not
    jsd       beta KL(P||M) + (1 - beta) KL(Q||M), M = beta P + (1 - beta) Q. Beta 0 and 1, where this is zero for any
              Q, mean its limits per beta and per 1 - beta: forward and reverse
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is no divergence: use one of {', '.join(KINDS)}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta!r} is outside [0, 1]: give the teacher's share of the mixture, such as 0.5")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be above 0")
    p, q = (F.log_softmax(x / temperature, -1) for x in (teacher, student))
    if kind == "forward" or (kind == "jsd" and beta == 0):
        each = _kl(p, q)
    elif kind == "reverse" or beta == 1:
        each = _kl(q, p)
    else:
        # In logarithms: the mixture of probabilities is no mixture of their logarithms.
        m = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        each = beta * _kl(p, m) + (1 - beta) * _kl(q, m)
    return over_sequences(each, mask)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum P (log P - log Q); a P of zero counts nothing, also where Q is zero."""
    return torch.where(p > -math.inf, p.exp() * (p - q), torch.zeros_like(p)).sum(-1)


def over_sequences(each: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens of each sequence, then over the sequences that have any."""
    if mask is None:
        return each.mean(-1).mean()
    counts = mask.sum(-1)
    means = (each * mask).sum(-1) / counts.clamp_min(1)
    return means.sum() / (counts > 0).sum().clamp_min(1)


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of every token [n, t]; 0 where the label is -100."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none").view_as(labels)


def levenshtein(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens must be put in, left out or replaced to make one of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
    return row[-1]


def similarity(made: Sequence[int], meant: Sequence[int], z_0: float) -> float:
    """r_abs = 1 - z / max(|made|, |meant|) if z <= z_0, else 0; z is the Levenshtein distance in tokens."""
    longest = max(len(made), len(meant))
    z = levenshtein(made, meant)
    if z > z_0:
        return 0.0
    return 1 - z / longest if longest else 1.0


def reward(made: Sequence[int], meant: Sequence[int], same: bool, gamma: float, z_0: float) -> float:
    """R = gamma r_sem + (1 - gamma) r_abs; `same` is the judge's word on the meaning."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma!r} is outside [0, 1]: give the share of meaning in the reward")
    return gamma * float(same) + (1 - gamma) * similarity(made, meant, z_0)


def advantages(rewards: Tensor, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) inside each group [groups, size]; std is that of the group, not an estimate."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, correction=0, keepdim=True) + eps)


def policy_gradient(log_p: Tensor, advantage: Tensor) -> Tensor:
    """-mean of A log p(y): its gradient raises what was better than its group. log_p is summed over y's tokens."""
    return -(advantage.detach() * log_p).mean()


def objective(distance: Tensor, imitation: Tensor | None, alpha: float) -> Tensor:
    """Alpha F + (1 - alpha) L_imitate, to be minimised: minus the paper's J, whose reward term L_imitate estimates."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r} is outside [0, 1]: give the share of the divergence")
    return distance if imitation is None else alpha * distance + (1 - alpha) * imitation
