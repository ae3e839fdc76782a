"""The model you have reads a folder of text: it predicts every chunk, then learns it, and its base stays as it was."""

import sys
import tempfile
from pathlib import Path

import torch

import circadia

NOTES = {
    "people.txt": "Mira lives in Oslo. She teaches maths, and she plays the cello on Sundays.\n",
    "places.txt": "The harbour of Lindesay freezes in November. The key lies under the blue stone.\n",
}


def tokens(text: str) -> torch.Tensor:
    """The bundled base reads bytes; with yours, use its tokenizer."""
    return torch.tensor(list(text.encode()))


def main(folder: Path, base: str = "bundled", times: int = 8) -> tuple[float, float]:
    model = circadia.retrofit(base, periods=[64, 256], rate=0.3)
    state = model.start()  # a flat dict of tensors: nothing learned, the logits are the base's
    for round_ in range(times):
        for file in sorted(folder.glob("*.txt")):
            report, state = model.learn(tokens(file.read_text(encoding="utf-8")), state)
        if report.chunks:
            print(f"round {round_ + 1}: surprise {report.surprise:.2f} nats a byte")
    text = tokens("".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))))
    before, after = model.score(text).surprise, model.score(text, model.fresh(state)).surprise
    print(f"this text costs the base {before:.2f} nats a byte, and {after:.2f} with what was learned")
    asked = tokens("The key lies under the")[None]
    said = model.generate(asked, state=state, max_new_tokens=11, do_sample=False)
    print(bytes(said[0].tolist()).decode())
    model.save_state(state, folder / "learned.safetensors")  # with a fingerprint: no other base takes it up
    return before, after


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), *sys.argv[2:3])
    else:
        with tempfile.TemporaryDirectory() as name:
            for file, line in NOTES.items():
                Path(name, file).write_text(line * 3, encoding="utf-8")
            main(Path(name))
