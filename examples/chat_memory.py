"""A memory that outlives its process: read, save, start again, and go on bit for bit."""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from circadia.models import HopeConfig, HopeForCausalLM

STORY = b"Mira moved from Rome to Oslo in May. She teaches maths, and she plays the cello on Sundays. "
QUESTION = b"Where does Mira live?"


def ids(text: bytes) -> torch.Tensor:
    return torch.tensor([list(text)])


def build(folder: Path) -> None:
    """Base weights, here random; yours come from training, or from a checkpoint."""
    torch.manual_seed(0)
    config = HopeConfig(mixers=["self_modifying", "gated_deltanet"], hidden_size=64, num_hidden_layers=2)
    HopeForCausalLM(config).save_pretrained(folder)


def answer(model: HopeForCausalLM, cache) -> tuple[list[int], float]:
    """The new tokens alone, under a mask over everything the cache has read and them."""
    question = ids(QUESTION)
    mask = torch.ones(1, cache.get_seq_length() + question.shape[1], dtype=torch.long)
    options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    out = model.generate(question, attention_mask=mask, past_key_values=cache, pad_token_id=0, **options)
    return out.sequences[0, question.shape[1] :].tolist(), torch.stack(out.logits).double().sum().item()


def wake(folder: Path) -> tuple[list[int], float]:
    """What a new process does: base weights, memory, question."""
    model = HopeForCausalLM.from_pretrained(folder).eval()
    return answer(model, model.load_memory(folder / "mira.safetensors"))


def main() -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder)
        model = HopeForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            cache = model(ids(STORY), use_cache=True).past_key_values
        model.save_memory(folder / "mira.safetensors", cache)
        here, size = answer(model, cache), (folder / "mira.safetensors").stat().st_size
        command = [sys.executable, __file__, name]
        there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        print(f"{len(STORY)} bytes read, {size:,} bytes of memory\nhere  {here}\nthere {there}")
        return there == str(here)


if __name__ == "__main__":
    print(wake(Path(sys.argv[1])) if len(sys.argv) > 1 else f"equal: {main()}")
