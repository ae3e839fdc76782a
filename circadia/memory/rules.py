"""The table of rules. A new rule is one file (or one row, where an existing form fits) and one line here."""

from circadia.memory.deep import Deep
from circadia.memory.linear import DGD, Delta, Hebbian, Oja
from circadia.memory.rule import Rule
from circadia.memory.selfmod import SelfModifying

_ROWS: list[Rule] = [
    Hebbian(
        name="linear",
        family="Hebbian",
        equation="M_t = M_{t-1} + v k^T  (eq. 15)",
        summary="linear attention: adds every pair, forgets nothing",
    ),
    Hebbian(
        name="retnet",
        family="Hebbian",
        decay="fixed",
        equation="M_t = gamma M_{t-1} + v k^T",
        summary="RetNet: a fixed decay per head",
    ),
    Hebbian(
        name="mamba2",
        family="Hebbian",
        decay="gated",
        equation="M_t = alpha_t M_{t-1} + eta_t v k^T  (eq. 64)",
        summary="Mamba-2: a scalar decay and rate from the data",
    ),
    Delta(
        name="deltanet",
        family="delta",
        equation="M_t = M_{t-1} - eta_t (M_{t-1} k - v) k^T  (eq. 65)",
        summary="DeltaNet: replaces what was stored under the key",
    ),
    Delta(
        name="gated_deltanet",
        family="delta",
        gated=True,
        equation="M_t = alpha_t M_{t-1} (I - eta_t k k^T) + eta_t v k^T",
        summary="Gated DeltaNet: delta rule with data-dependent decay",
    ),
    Oja(
        name="oja",
        family="delta",
        equation="M_t = alpha_t M_{t-1} + eta_t v (k - M_{t-1}^T v)^T  (eq. 66, 67)",
        summary="Oja: the delta rule from the side of the values",
    ),
    DGD(
        name="dgd",
        family="DGD",
        equation="M_t = M_{t-1} (alpha_t I - eta_t k k^T) + eta_t v k^T  (eq. 88, dot product)",
        summary="delta gradient descent, dot-product objective with the sign of descent",
    ),
    DGD(
        name="dgd_dot_literal",
        family="DGD",
        literal_sign=True,
        equation="M_t = M_{t-1} (alpha_t I - eta_t k k^T) - eta_t v k^T  (eq. 92 as printed)",
        summary="eq. 92 with its printed sign: stores the negated value",
    ),
    DGD(
        name="dgd_l2",
        family="DGD",
        objective="l2",
        equation="M_t = M_{t-1} (alpha_t I - eta_t k k^T) - eta_t (M_0 k - v) k^T  (eq. 93)",
        summary="eq. 93: L2 gradient at the chunk start on top of the decay; erases twice",
    ),
    DGD(
        name="dgd_l2_online",
        family="DGD",
        objective="l2",
        gradient="online",
        equation="M_t = M_{t-1} (alpha_t I - 2 eta_t k k^T) + eta_t v k^T  (eq. 88, chunk 1)",
        summary="eq. 88 with the gradient at the running state; its fixed point is v / 2",
    ),
    Deep(
        name="gd",
        family="deep",
        equation="W_t = W_{t-1} - eta_t grad 1/2 |M(k) - v|^2",
        summary="MLP memory, gradient descent at the chunk start",
    ),
    Deep(
        name="ttt",
        family="deep",
        norm=True,
        equation="W_t = W_{t-1} - eta_t grad 1/2 |k + LN(f(k)) - v|^2",
        summary="TTT-MLP: mini-batch gradient descent through a layer norm",
    ),
    Deep(
        name="dla",
        family="deep",
        objective="dot",
        decays=True,
        equation="W_t = alpha_t W_{t-1} + eta_t grad <M(k), v>",
        summary="deep linear attention: dot-product objective",
    ),
    Deep(
        name="titans",
        family="deep",
        decays=True,
        inertia=True,
        equation="S_t = beta_t S_{t-1} - eta_t grad, W_t = alpha_t W_{t-1} + S_t",
        summary="Titans LMM: momentum, forget gate and data-dependent rates",
    ),
    Deep(
        name="dgd_mlp",
        family="deep",
        objective="dot",
        erase="key",
        decays=True,
        output_scale=None,
        max_target=1.0,
        equation="W_1 <- W_1 (alpha_t I - eta_t k k^T) - eta_t grad, W_l <- alpha_t W_l - eta_t grad  (eq. 88, A4 a)",
        summary="DGD on an MLP memory, its factor on the matrix whose input is k",
    ),
    Deep(
        name="dgd_mlp_layer",
        family="deep",
        objective="dot",
        erase="layer",
        decays=True,
        output_scale=None,
        max_target=1.0,
        equation="W_l <- W_l (alpha_t I - eta_l x_l x_l^T) - eta_l grad  (eq. 57, 88, A4 b)",
        summary="DGD on an MLP memory, every layer with its own input",
    ),
    Deep(
        name="dgd_mlp_decay",
        family="deep",
        objective="dot",
        decays=True,
        output_scale=None,
        max_target=1.0,
        equation="W_l <- alpha_t W_l - eta_t grad  (eq. 88 without its factor, A4 c)",
        summary="DGD on an MLP memory reduced to weight decay",
    ),
    SelfModifying(
        name="self_modifying",
        family="self-modifying",
        equation="M_i <- M_i (alpha_t I - eta_t k k^T) + eta_t grad <M_i(k), M_i(v)>  (eq. 83-91)",
        summary="self-modifying Titans: k, v, eta, alpha are made by memories M_i that rewrite themselves",
    ),
    SelfModifying(
        name="self_modifying_literal",
        family="self-modifying",
        objective="l2",
        projection_rate=1.0,
        output_scale=1.0,
        equation="M_i <- M_i (alpha_t I - eta_t k k^T) - eta_t grad 1/2 |M_i(k) - M_i(v)|^2  (eq. 83-91)",
        summary="the same with the printed L2 objective, all memories at one rate; bounded",
    ),
]

RULES: dict[str, Rule] = {rule.name: rule for rule in _ROWS}


def get(name: str) -> Rule:
    """A rule by name."""
    if name not in RULES:
        raise ValueError(f"rule {name!r} is unknown: use one of {', '.join(RULES)}")
    return RULES[name]
