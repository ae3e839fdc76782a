"""Hugging Face's Trainer on a model whose memories learn while they read: the loss, and what each level does."""

import tempfile
from pathlib import Path

from circadia.train.hf import hf_trainer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "periods": [16, 32], "chunk": 16}

with tempfile.TemporaryDirectory() as folder:
    text = Path(folder, "text.txt")
    text.write_text("the sea was calm and the ship went on, and the night was long. " * 200)
    trainer = hf_trainer(
        "hope/tiny",
        str(text),
        length=64,
        changes=SMALL,
        output_dir=f"{folder}/run",
        max_steps=20,
        logging_steps=10,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
    )
    trainer.train()
    print("held out:", round(trainer.evaluate()["eval_loss"], 3), "nats a byte")
    for line in trainer.state.log_history:
        if "loss" in line:
            levels = {name: round(value, 4) for name, value in line.items() if "/" in name}
            print(f"step {line['step']}: {line['bits_per_byte']:.2f} bits per byte, {levels}")
