"""M3, momentum at two frequencies, in the Hugging Face Trainer: hidden matrices by M3, the rest by AdamW."""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from circadia.optim import groups, trainer

TEXT = b"the sea was calm and the ship went on, and the night was long. " * 100


class Rows(Dataset):
    """Pieces of a text, a byte a token."""

    def __len__(self) -> int:
        return len(TEXT) // 64

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = torch.tensor(list(TEXT[64 * i : 64 * i + 64]))
        return {"input_ids": row, "labels": row}


def main(steps: int = 30) -> list[float]:
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **small))
    print(groups(model))  # who gets what
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=steps,
                logging_steps=10,
                per_device_train_batch_size=8,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                use_cpu=True,
            ),
            train_dataset=Rows(),
            optimizer_cls_and_kwargs=trainer("m3", lr=0.01, periods=(1, 10)),
        )
        run.train()
    return [line["loss"] for line in run.state.log_history if "loss" in line]


if __name__ == "__main__":
    print("nats a byte:", main())
