"""The Trainer of Hugging Face reads the same rows, and its logs say what the levels did."""

import math

import pytest
import torch
import torch.nn.functional as F

from circadia.models import watch
from circadia.train import make
from circadia.train.data import IGNORED, Order, Rows
from circadia.train.hf import hf_trainer
from tests.train.conftest import MODEL

CHANGES = {**MODEL, "periods": [8, 16]}


def trainer(text, tmp_path, **arguments):
    return hf_trainer(
        "hope/tiny", str(text), length=32, changes=CHANGES, heldout=["1.txt"], output_dir=str(tmp_path / "run"),
        report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True, per_device_train_batch_size=4, **arguments,
    )  # fmt: skip


def test_rows_and_weights_are_those_of_our_own_loop(text, tmp_path, config):
    made = trainer(text, tmp_path, max_steps=1)
    own = config(model={"preset": "hope/tiny", "config": CHANGES})
    net = make.model(own.model, make.Tokenizer("bytes"), own.seed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), made.model.parameters()))
    reader = Rows(make.Data(own.data, 0, 0).train, Order(1, 1, 0, False), 32, True)
    rows = [reader.row(i) for i in range(len(made.train_dataset))]
    marked = [i for i, row in enumerate(rows) if row[2].any()]
    assert marked  # a document begins inside one of them
    for i in (0, marked[0]):
        item = {name: x[None] for name, x in made.train_dataset[i].items()}
        tokens, labels, inside, _ = (torch.from_numpy(x)[None] for x in rows[i])
        logits = net(tokens, reset=inside).logits
        # All but the last label of a row, which the Trainer's shift leaves out.
        loss = F.cross_entropy(logits[0, :-1], labels[0, :-1], ignore_index=IGNORED)
        assert made.model(**item).loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_trainer_hands_on_where_documents_begin(text, tmp_path):
    """Out of a row it drops what is not named in the model's `forward`."""
    made = trainer(text, tmp_path, max_steps=1)
    for loader, rows in (
        (made.get_train_dataloader(), made.train_dataset),
        (made.get_eval_dataloader(), made.eval_dataset),
    ):
        marks = sum(int(rows[i]["reset"].sum()) for i in range(len(rows)))
        assert sum(int(batch["reset"].sum()) for batch in loader) == marks
        assert marks == (3 if rows is made.train_dataset else 0)


def test_nothing_held_out(text, tmp_path):
    made = hf_trainer("hope/tiny", str(text), length=32, changes=CHANGES, heldout=0.0, output_dir=str(tmp_path))
    assert made.eval_dataset is None and len(made.train_dataset) > 3


def test_logs_have_levels_and_bits_per_byte(text, tmp_path):
    made = trainer(text, tmp_path, max_steps=4, logging_steps=4, eval_strategy="steps", eval_steps=4, seed=1)
    made.train()
    (line,) = (one for one in made.state.log_history if "loss" in one)
    row = made.eval_dataset[0]["input_ids"][None]
    found = watch.flat(watch.watch(made.model, row))
    assert {name: line[name] for name in found} == pytest.approx(found, rel=1e-5) and "cms-8/update" in found
    assert line["bits_per_byte"] == pytest.approx(line["loss"] / math.log(2))
    held = next(one for one in made.state.log_history if "eval_loss" in one)
    assert held["eval_bits_per_byte"] == pytest.approx(held["eval_loss"] / math.log(2))


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(ValueError, match="too few for a row of length=32"):
        hf_trainer("hope/tiny", str(tmp_path), length=32, heldout=0.0, output_dir=str(tmp_path))
