"""The Hugging Face `Trainer` as a second door: a factory, and a callback that logs what only our models have.

    trainer = hf_trainer("hope/tiny", "novels.jsonl.xz", output_dir="runs/hf", max_steps=100)
    trainer.train()

The Trainer's own arguments decide everything about the run; its logs, and so its trackers, also get the norm of the
inner update and the surprise of every level and, where a token is a byte, bits per byte. Rows have a fresh memory each,
as everywhere in the Trainer; to carry memories over rows, and for runs that resume bit for bit, use `circadia train`.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from circadia.models import HopeForCausalLM, watch
from circadia.train import corpus as corpora
from circadia.train import make
from circadia.train.config import TrainConfig, load
from circadia.train.corpus import Corpus
from circadia.train.data import Order, Rows
from circadia.train.tokens import Tokenizer


class PackedRows(Dataset):
    """The rows of `circadia train` for the Trainer: documents packed, the borders marked in "reset".

    Labels are the tokens themselves, which the model shifts; the first one of a document is not predicted.
    """

    def __init__(self, corpus: Corpus, length: int) -> None:
        self.rows = Rows(corpus, Order(1, 1, 0, False), length, True)
        self.count = max(0, (len(corpus) - 1) // length)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        tokens, _, inside, _ = self.rows.row(number)
        ids, reset = torch.from_numpy(tokens), torch.from_numpy(inside)
        return {"input_ids": ids, "labels": ids.masked_fill(reset, -100), "reset": reset}


class LevelsCallback(TrainerCallback):
    """Adds to the Trainer's logs: LEVEL/update and LEVEL/surprise on one row of text, and bits per byte.

    ``row`` [1, T] is read from a fresh memory whenever the Trainer logs; ``byte_tokens`` says that a token is a byte.
    """

    def __init__(self, row: Tensor, byte_tokens: bool = False) -> None:
        self.row, self.byte_tokens = row, byte_tokens

    def on_log(self, args: Any, state: Any, control: Any, model: Any = None, logs: Any = None, **given: Any) -> None:
        """Before the trackers are told: `first` puts this callback in front of them."""
        net = getattr(model, "module", model)
        if logs is None or not isinstance(net, HopeForCausalLM):
            return
        if self.byte_tokens:
            for name in ("loss", "eval_loss"):
                if name in logs:
                    logs[name.replace("loss", "bits_per_byte")] = logs[name] / math.log(2)
        if "loss" in logs and watch.learns(net):
            logs.update(watch.flat(watch.watch(net, self.row.to(net.device))))
        state.log_history[-1].update(logs)

    @staticmethod
    def first(trainer: Trainer, callback: "LevelsCallback") -> None:
        """In front of the callbacks that show logs, which would else not see what it adds."""
        trainer.callback_handler.callbacks.insert(0, callback)


def hf_trainer(preset: str, data: str, *, length: int = 256, changes: dict[str, Any] | None = None, seed: int = 0,
               tokenizer: str = "bytes", heldout: float | list[str] = 0.02, **arguments: Any) -> Trainer:  # fmt: skip
    """A Trainer of a preset on text, with the same weights and held-out text as `circadia train` would have.

    ``changes`` are fields of the model's configuration; ``arguments`` are those of TrainingArguments.
    """
    config: TrainConfig = load(
        {
            "model": {"preset": preset, "config": changes or {}},
            "data": {"path": data, "length": length, "tokenizer": tokenizer, "heldout": heldout},
            "seed": seed,
        }
    )
    text = Tokenizer(tokenizer)
    net = make.model(config.model, text, seed)
    train, held = corpora.prepare(make.source(config.data), text, heldout)
    rows, evaluated = PackedRows(train, length), PackedRows(held, length)
    if not len(rows):
        raise ValueError(f"data={data!r} has {len(train):,} tokens, too few for a row of length={length}")
    trainer = Trainer(
        model=net,
        args=TrainingArguments(seed=seed, **arguments),
        train_dataset=rows,
        eval_dataset=evaluated if len(evaluated) else None,
    )
    row = (evaluated if len(evaluated) else rows)[0]["input_ids"][None]
    LevelsCallback.first(trainer, LevelsCallback(row, text.bytes))
    return trainer
