"""Log-likelihoods of texts under a language model, by the conventions of lm-evaluation-harness."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Pair = tuple[list[int], list[int]]  # tokens of a context, and of what is scored after it
LONGEST = 2048  # tokens that a model without a limit of its own reads at once, as there


class Scorer:
    """A causal model with its tokenizer; every request starts from an empty state."""

    def __init__(
        self, model: Any, encode: Callable[[str], list[int]], prefix: int, window: int, device: str = "cpu"
    ) -> None:
        self.model, self.encode, self.prefix, self.window, self.device = model, encode, prefix, window, device

    def pair(self, context: str, continuation: str) -> Pair:
        """Spaces at the end of the context belong to what is scored; both are encoded together, then split."""
        if not context:
            tokens = self.encode(continuation)
            return ([self.prefix], tokens) if tokens[:1] != [self.prefix] else (tokens[:1], tokens[1:])
        stripped = context.rstrip()
        whole, before = self.encode(context + continuation), self.encode(stripped)
        return before, whole[len(before) :]

    def scores(self, pairs: Sequence[Pair], batch: int = 8) -> list[tuple[float, bool]]:
        """Sum of log-probabilities, and whether greedy decoding would give it. Rows of one length go together."""
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        # Too long: the end counts. The last token of what is scored is never read.
        rows = [((before + after)[-(self.window + 1) :], len(after)) for before, after in pairs]
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
        while order:
            length = len(rows[order[0]][0])
            # Padding would be read by a memory that is not told: only rows of one length share a batch.
            part = [i for i in order[:batch] if len(rows[i][0]) == length]
            order = order[len(part) :]
            longest = max(rows[i][1] for i in part)
            logits = self._logits(torch.tensor([rows[i][0][:-1] for i in part]), min(longest, length - 1))
            for row, i in zip(logits.log_softmax(-1), part):
                tokens, count = rows[i]
                count = min(count, length - 1)
                wanted = torch.tensor(tokens[len(tokens) - count :])
                said = row[len(row) - count :]
                found[i] = said.gather(1, wanted[:, None]).sum().item(), bool((said.argmax(-1) == wanted).all())
        return found

    @torch.no_grad()
    def _logits(self, tokens: Tensor, last: int) -> Tensor:
        out = self.model(tokens.to(self.device), use_cache=False, logits_to_keep=last)
        return out.logits.float().cpu()

    def rolling(self, text: str) -> float:
        """Of a whole text: windows side by side, each after one token of the one before."""
        tokens = self.encode(text)
        before = [self.prefix, *tokens[:-1]]
        pieces = range(0, len(tokens), self.window)
        pairs = [([before[i]], tokens[i : i + self.window]) for i in pieces]
        # The last window is filled up with what came before, so that its tokens have a context.
        if len(tokens) > self.window and len(pairs[-1][1]) < self.window:
            short = len(pairs[-1][1])
            pairs[-1] = (before[len(tokens) - self.window : len(tokens) - short + 1], pairs[-1][1])
        return sum(nats for nats, _ in self.scores(pairs, 1))


@lru_cache(maxsize=1)
def load(name: str, device: str) -> Scorer:
    """A model's folder or Hub id. A model of bytes has no tokenizer; its texts begin after a newline."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    import circadia.models  # noqa: F401  # the Auto classes know ours from here on

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
    except Exception as error:  # unknown, offline, broken files: each has its own class
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"--models {name}: no causal language model can be loaded from there ({said})") from error
    own = getattr(model.config, "max_position_embeddings", None)
    if model.config.vocab_size == 256 and not (Path(name) / "tokenizer_config.json").exists():
        return Scorer(model, lambda text: list(text.encode()), ord("\n"), own or LONGEST, device)
    tokenizer = AutoTokenizer.from_pretrained(name)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise ValueError(f"--models {name}: its tokenizer has neither a bos nor an eos token; set one of them")
    return Scorer(model, tokenizer.encode, prefix, own or LONGEST, device)


def fingerprint(name: str) -> str:
    """Of the weights in a folder, so that a result stays with what it was obtained from; of a Hub id its name."""
    digest = hashlib.sha256(b"" if Path(name).is_dir() else name.encode())
    for path in sorted(Path(name).glob("*.safetensors")):
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()[:12]
