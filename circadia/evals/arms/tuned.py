"""Adapters of PEFT that people use against forgetting, trained by AdamW on the same chunks as the other arms."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from circadia.evals.arms.arm import Arm, Example, size
from circadia.evals.arms.streamed import CHUNK, CONTEXT
from circadia.evals.bases import Base
from circadia.models import HopeForCausalLM


class Tuned(Arm):
    """An adapter that a subclass puts on a copy of the base; a step for each chunk."""

    def __init__(self, base: Base, seed: int, settings: dict[str, Any]) -> None:
        super().__init__(base, seed)
        self.rate = float(settings["rate"])
        torch.manual_seed(seed)
        self.begin(copy.deepcopy(base.model))
        self.context: list[int] = []
        self.pending: list[int] = []

    def wrap(self, model: Any) -> Any:
        raise NotImplementedError

    def begin(self, model: Any) -> None:
        """A fresh adapter, and a fresh optimizer for it."""
        with warnings.catch_warnings():
            # PEFT asks transformers for a property by its old name.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
            self.model = self.wrap(model)
        self.own = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.own, lr=self.rate, betas=(0.9, 0.95), weight_decay=0.0)

    def learn(self, examples: Sequence[Example]) -> None:
        tokens = self.base.encode("".join(one.text for one in examples))
        self.learned += len(tokens)
        self.pending += tokens
        while len(self.pending) >= CHUNK:
            chunk, self.pending = self.pending[:CHUNK], self.pending[CHUNK:]
            self.step(self.context + chunk, len(chunk) if self.context else len(chunk) - 1)
            self.context = chunk[-CONTEXT:]

    @torch.enable_grad()
    def step(self, tokens: list[int], scored: int) -> None:
        ids = torch.tensor([tokens], device=self.own[0].device)
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits[0, -scored:].float()
        loss = F.cross_entropy(logits, ids[0, -scored:])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.own, 1.0)
        self.optimizer.step()

    @contextmanager
    def reading(self) -> Iterator[torch.nn.Module]:
        yield self.model

    @property
    def bytes(self) -> int:
        return size([p.detach() for p in self.own])


class OSF(Tuned):
    """Orthogonal subspace fine-tuning (Nayak et al. 2025) by PEFT: the upper half of each matrix's singular directions
    is frozen, and the rest learned at right angles to it. At a border of tasks the matrices are split anew.
    """

    def wrap(self, model: Any) -> Any:
        from peft import OSFConfig, get_peft_model

        # "all-linear" would take in the head of a model whose embeddings are not tied.
        names = sorted(
            {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
            - {name for name, part in model.named_modules() if part is model.get_output_embeddings()}
        )
        return get_peft_model(model, OSFConfig(task_type="CAUSAL_LM", target_modules=names))

    def finish(self) -> None:
        self.begin(self.model.merge_and_unload())


class Cartridge(Tuned):
    """A prefix of keys and values in every layer (Eyuboglu et al. 2025) by PEFT, begun with those of the first tokens
    that are learned, and trained on the text itself; the paper distils answers to questions that the model asks itself.
    """

    TOKENS = 32
    begun = False

    def step(self, tokens: list[int], scored: int) -> None:
        if not self.begun:
            from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values as initialize

            ids = torch.tensor([tokens[: self.TOKENS]], device=self.own[0].device)
            with torch.no_grad():
                cache = self.base.model(input_ids=ids, use_cache=True).past_key_values
            initialize(self.model, past_key_values=cache)
            self.begun = True
        super().step(tokens, scored)

    @contextmanager
    def reading(self) -> Iterator[torch.nn.Module]:
        """A prefix of noise, before anything is learned, is no part of the arm."""
        yield self.model if self.begun else self.base.model

    def wrap(self, model: Any) -> Any:
        from peft import CartridgeConfig, get_peft_model

        if isinstance(model, HopeForCausalLM):
            raise ValueError(
                f"arm 'Cartridge' puts keys and values before the text, and a {model.config.model_type} keeps its "
                "memory in another form: leave the arm out, or use a base of transformers"
            )
        return get_peft_model(model, CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=self.TOKENS))
