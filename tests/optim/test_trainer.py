"""Our optimizers in the Trainer of transformers: it trains, saves, and a fresh one goes on with what was saved."""

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from circadia.models import HopeConfig, HopeForCausalLM
from circadia.optim import DGD, M3, OPTIMIZERS, trainer
from tests.optim.cases import same, values

TEXT = torch.arange(64).remainder(7)
ROWS = [{"input_ids": TEXT[i : i + 12], "labels": TEXT[i : i + 12]} for i in range(32)]


def made(folder: Path, name: str, **settings) -> Trainer:
    torch.manual_seed(3)
    config = HopeConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mixers=["attention"])
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        save_steps=5,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        max_grad_norm=1.0,
    )
    return Trainer(
        HopeForCausalLM(config),
        arguments,
        train_dataset=ROWS,
        optimizer_cls_and_kwargs=trainer(name, lr=0.01, **settings),
    )


@pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data", "ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize(("name", "settings"), [("m3", {"periods": (1, 3)}), ("dgd", {"adamw": {"lr": 0.02}})])
def test_trained_saved_and_resumed(tmp_path: Path, name: str, settings: dict) -> None:
    whole = made(tmp_path / "whole", name, **settings)
    start = values(whole.model)
    with torch.no_grad():
        first = whole.model(**{key: torch.stack([row[key] for row in ROWS]) for key in ROWS[0]}).loss
    whole.train()
    last = whole.model(**{key: torch.stack([row[key] for row in ROWS]) for key in ROWS[0]}).loss
    assert last < first - 0.05
    assert not any(torch.equal(a, b) for a, b in zip(start, values(whole.model)))
    assert whole.optimizer.optimizer.param_groups[0]["lr"] == 0, "the Trainer's linear schedule reaches every part"
    parts = whole.optimizer.optimizer.parts
    assert isinstance(parts[0], {"m3": M3, "dgd": DGD}[name])
    assert parts[1].defaults["lr"] == settings.get("adamw", {"lr": 0.01})["lr"]
    other = made(tmp_path / "other", name, **settings)
    other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert other.state.global_step == 8
    assert same(values(other.model), values(whole.model))


def test_wrong_arguments_are_seen_at_once() -> None:
    with pytest.raises(ValueError, match="optimizer 'm4' is unknown: use one of adamw"):
        trainer("m4", lr=0.1)
    with pytest.raises(ValueError, match="lr=-1 is not a finite number"):
        trainer("m3", lr=-1)
    assert all(trainer(name, lr=0.1)[1] == {"name": name, "lr": 0.1} for name in OPTIMIZERS)
