"""Equations as MathML, made while the site is built: no script, no font, nothing from the network.

Two ways of writing give the same result. Pages have the TeX that code forges render between dollars,
`$M_t = \\alpha_t M_{t-1} + \\eta_t v k^\\top$`; code has no backslashes, ``M_t = alpha_t M_{t-1} + eta_t v k^T``.
Only what is used is known, and what is not known is a ValueError: an equation is rendered as it is meant or not at all.
"""

import re
from html import escape

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "lambda": "λ", "mu": "μ", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ", "psi": "ψ",
}  # fmt: skip
LETTERS = {name: f"<mi>{letter}</mi>" for name, letter in GREEK.items()} | {
    "Delta": "<mi>Δ</mi>", "Theta": "<mi>Θ</mi>", "ell": "<mi>ℓ</mi>", "infty": "<mi>∞</mi>", "top": "<mo>⊤</mo>",
    "ldots": "<mo>…</mo>", "eps": "<mi>ε</mi>",
}  # fmt: skip
SIGNS = {
    "nabla": "∇", "grad": "∇", "sum": "∑", "prod": "∏", "cdot": "·", "odot": "⊙", "times": "×", "circ": "∘",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "approx": "≈", "in": "∈", "gets": "←",
    "leftarrow": "←", "to": "→", "pm": "±", "mid": "∣",
}  # fmt: skip
BRACKETS = {
    "langle": "⟨", "rangle": "⟩", "lvert": "|", "rvert": "|", "lVert": "‖", "rVert": "‖", "lfloor": "⌊", "rfloor": "⌋",
    "lceil": "⌈", "rceil": "⌉",
}  # fmt: skip
ACCENTS = {"\\hat": "^", "\\tilde": "~", "\\bar": "¯"}
# Names of more than one letter, which stand upright.
WORDS = {
    "argmin", "cos", "exp", "gelu", "log", "lr", "max", "mean", "min", "norm", "sigmoid", "sign", "silu", "softmax",
    "LN", "MLP", "NS",
}  # fmt: skip
# Before the single signs of code: `<-` and `<=`; any other `<` opens the angle brackets of an inner product.
CODE = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "-=": "−=", "+=": "+=", "-": "−", "*": "·", "<": "⟨", ">": "⟩"}
SPACES = {",": "0.17em", ";": "0.28em", " ": "0.28em", "quad": "1em", "qquad": "2em", "!": "0"}
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[A-Za-z]+|\d+(?:\.\d+)?|\.\d+|<-|->|<=|>=|-=|\+=|\S")
RELATION = re.compile(r"[^=<>!]=[^=]|<-|[-+]=")


def mathml(source: str, display: bool = False) -> str:
    """One equation. Raises ValueError, naming the piece, where it has something that is not known here."""
    row = _Reader(TOKEN.findall(source), source, display).row(None)
    return f'<math display="block">{row}</math>' if display else f"<math>{row}</math>"


def equation(source: str) -> str | None:
    """The MathML of a piece of code that is an equation: it has a relation and nothing that is not known."""
    if not RELATION.search(source):
        return None
    try:
        return mathml(source)
    except ValueError:
        return None


class _Reader:
    def __init__(self, tokens: list[str], source: str, display: bool) -> None:
        self.tokens, self.source, self.display, self.at = tokens, source, display, 0

    def row(self, end: str | None) -> str:
        """Everything up to `end`, which is taken."""
        parts = []
        while self.peek() != end:
            parts.append(self.scripted())
        self.at += end is not None
        return f"<mrow>{''.join(parts)}</mrow>" if len(parts) != 1 else parts[0]

    def scripted(self) -> str:
        """A piece with what stands below, above and behind it."""
        piece, low, high = self.piece(), "", []
        while (mark := self.peek()) in ("_", "^", "'"):
            self.take()
            if mark == "_":
                low = self.piece()
            elif mark == "'":
                high.append("<mo>′</mo>")
            elif self.peek() == "T":  # transposed; a power of T nowhere occurs
                self.take()
                high.append(LETTERS["top"])
            elif self.peek() == "-":  # ``P^-1`` of code
                self.take()
                high.append(f"<mrow><mo>−</mo>{self.piece()}</mrow>")
            else:
                high.append(self.piece())
        above = f"<mrow>{''.join(high)}</mrow>" if len(high) > 1 else "".join(high)
        if self.display and low and above and piece in ("<mo>∑</mo>", "<mo>∏</mo>"):
            return f"<munderover>{piece}{low}{above}</munderover>"
        if low and above:
            return f"<msubsup>{piece}{low}{above}</msubsup>"
        return f"<msub>{piece}{low}</msub>" if low else f"<msup>{piece}{above}</msup>" if above else piece

    def piece(self) -> str:
        token = self.take()
        name = token.removeprefix("\\")
        if token == "{":
            return self.row("}")
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return f"<mn>{token}</mn>"
        if token.startswith("\\") and name in SPACES:
            return f'<mspace width="{SPACES[name]}"/>'
        if token == "\\frac":
            return f"<mfrac>{self.piece()}{self.piece()}</mfrac>"
        if name == "sqrt":
            return f"<msqrt>{self.bracketed() if self.peek() == '(' else self.piece()}</msqrt>"
        if token in ("\\text", "\\mathrm"):
            return f"<mi>{escape(self.raw())}</mi>"
        if token in ACCENTS:
            return f'<mover accent="true">{self.piece()}<mo>{ACCENTS[token]}</mo></mover>'
        if name in LETTERS:
            return LETTERS[name]
        if name in SIGNS:
            return f"<mo>{SIGNS[name]}</mo>"
        if name in BRACKETS or token in ("(", ")", "[", "]", "|", "<", ">", "\\{", "\\}"):
            return f'<mo stretchy="false" lspace="0" rspace="0">{BRACKETS.get(name, CODE.get(token, name))}</mo>'
        if token[0].isalpha():
            return self.word(token)
        if token in CODE or token in tuple("=+/,;:.%!~"):
            return f"<mo>{CODE.get(token, token)}</mo>"
        raise ValueError(f"the equation {self.source!r} has {token!r}, which docs/maths.py does not know")

    def word(self, token: str) -> str:
        if len(token) == 1 or token in WORDS:
            return f"<mi>{token}</mi>"
        if len(token) == 4 and token.endswith("hat"):
            return f'<mover accent="true"><mi>{token[0]}</mi><mo>^</mo></mover>'
        raise ValueError(f"the equation {self.source!r} has the word {token!r}: see WORDS in docs/maths.py")

    def bracketed(self) -> str:
        """`sqrt(V + eps)` of code: the root stands for the brackets."""
        self.take()
        return self.row(")")

    def raw(self) -> str:
        """The words between braces."""
        words = []
        if self.take() != "{":
            raise ValueError(f"the equation {self.source!r} lacks a brace")
        while self.peek() != "}":
            words.append(self.take())
        self.at += 1
        return " ".join(words)

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        token = self.peek()
        if token is None:
            raise ValueError(f"the equation {self.source!r} ends too early")
        self.at += 1
        return token
