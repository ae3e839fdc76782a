"""What was learned as a LoRA: read with circadia, then loaded by plain PEFT, which knows nothing of it."""

import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import circadia

TEXT = torch.tensor(list(b"The harbour of Lindesay freezes in November. " * 30))


def main() -> float:
    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        LlamaForCausalLM(LlamaConfig(vocab_size=256, **small)).save_pretrained(base)

        model = circadia.retrofit(base, periods=[64, 256], capacity="lowrank", rank=4, rate=1.0)
        report, state = model.learn(TEXT, model.start())
        print(f"read: surprise {report.chunks[0].surprise:.2f} to {report.chunks[-1].surprise:.2f} nats a byte")
        model.export_peft(state, f"{folder}/lora")
        with torch.no_grad():
            ours = model(TEXT[None, :64], state=state).logits

        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), f"{folder}/lora").eval()
        with torch.no_grad():
            theirs = plain(TEXT[None, :64]).logits
            without = plain.get_base_model()
            with plain.disable_adapter():
                moved = (theirs - without(TEXT[None, :64]).logits).abs().max().item()
    far = (ours - theirs).abs().max().item()
    print(f"PEFT's logits differ from ours by {far:.1e}; the adapter moves them by {moved:.2f}")
    return far / moved


if __name__ == "__main__":
    main()
