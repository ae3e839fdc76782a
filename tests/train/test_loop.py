"""The loop: it learns, every setting does what it says, and bad steps are skipped."""

import importlib.util
import json
import math

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from circadia.models import HopeForCausalLM
from circadia.optim import OPTIMIZERS
from circadia.train import Diverged, load, report, train
from circadia.train import loop as loop_file
from circadia.train.config import dump
from circadia.train.log import read
from circadia.train.plan import plan
from tests.train.conftest import MODEL, curve


def steps(run):
    return [line for line in read(run) if line["kind"] == "step"]


def losses(result):
    return [line["loss"] for line in steps(result.folder)]


@pytest.fixture(scope="module")
def learned(text, tmp_path_factory):
    """A run that has learned something, with tensorboard."""
    out = tmp_path_factory.mktemp("learned") / "run"
    config = load(
        {
            "model": {"preset": "gated-deltanet/tiny", "config": MODEL},
            "data": {"path": str(text), "length": 32, "heldout": ["1.txt"]},
            "optim": {"lr": 2e-2, "settings": {"weight_decay": 0.0}},
            "train": {
                "tokens": 60 * 16 * 32,
                "eval_every": 30,
                "eval_tokens": 0,
                "device": "cpu",
                "track": "tensorboard",
            },
            "out": str(out),
        }
    )
    return config, train(config)


def test_it_learns_and_measures_in_bits_per_byte(learned, text):
    _, result = learned
    evals = [line for line in read(result.folder) if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [30, 60]
    assert losses(result)[0] > 5.4 and evals[-1]["bits_per_byte"] < 3.0  # of 8 at the start
    assert result.held_out["bits_per_byte"] == pytest.approx(result.held_out["loss"] / math.log(2))  # bytes
    assert result.held_out["perplexity"] == pytest.approx(math.exp(result.held_out["loss"]))
    # The same by hand: rows of 32, each from its own start.
    model = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    data = torch.tensor(list((text / "1.txt").read_bytes()))
    total = 0.0
    for begin in range(0, len(data) - 1, 32):
        row = data[begin : begin + 33]
        logits = model(row[None, :-1]).logits[0]
        total += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
    assert result.held_out["loss"] == pytest.approx(total / (len(data) - 1), rel=1e-5)


def test_the_report_says_what_was_done(learned):
    config, result = learned
    report = (result.folder / "report.md").read_text()
    for said in (f"{result.held_out['bits_per_byte']:.4f}", "gated-deltanet/tiny", "30,720", "![Loss", "60, 0 of them"):
        assert said in report
    assert (result.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert f"circadia train {result.folder}/config.yaml out={result.folder}-again" in report
    assert load(result.folder / "config.yaml") == config


def test_the_report_of_a_run_whose_evaluation_was_not_finite(learned, tmp_path):
    """The log says null for it."""
    config, result = learned
    nothing = dict.fromkeys(("loss", "bits_per_byte", "perplexity"))
    lines = [line | (nothing if (line["kind"], line["step"]) == ("eval", 60) else {}) for line in read(result.folder)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {"parameters": 1, "processes": 1, "device": "cpu", "versions": ""}
    text = report.write(tmp_path, config, facts).read_text()
    assert "| 30 | " in text and "| 60 | nan | nan | nan |" in text and "after 30." in text


def test_every_level_has_its_curves(config, tmp_path):
    """In the log at the steps asked for, as the model of that step has them; on the bar and in the report too."""
    import io

    shown = io.StringIO()
    model = {"preset": "hope/tiny", "config": {**MODEL, "periods": [8, 16]}}
    made = config("train.levels_every=4", "train.track=tensorboard", model=model)
    result = train(made, console=Console(file=shown, width=200))
    looks = [line for line in read(result.folder) if line["kind"] == "levels"]
    assert [line["step"] for line in looks] == [4, 8]
    final = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    batches = loop_file.make.Data(made.data, made.seed, 0).batches(4, (0, 1), None)
    row = [next(batches) for _ in range(8)][-1].part(0, 1)
    found = loop_file.watch.flat(loop_file.watch.watch(final, row.tokens, row.reset))
    assert {name: x for name, x in looks[-1].items() if "/" in name} == pytest.approx(found, rel=1e-5)
    assert set(found) == {f"{n}/{w}" for n in ("self_modifying", "cms-8", "cms-16") for w in ("update", "surprise")}
    report = (result.folder / "report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| cms-8 |"))
    for look, places in ((looks[0], (2, 4)), (looks[1], (3, 5))):
        for place, what in zip(places, ("update", "surprise")):
            assert row.split(" | ")[place - 1].strip(" |") == f"{look[f'cms-8/{what}']:.4g}"
    assert (result.folder / "levels.png").read_bytes().startswith(b"\x89PNG")
    assert f"cms-8 Δ{looks[0]['cms-8/update']:.3g} ?{looks[0]['cms-8/surprise']:.3g}" in shown.getvalue()
    # It only looks: without it the run is the same.
    assert curve(read(again(config, tmp_path, "blind", "train.levels_every=0", model=model).folder)) == curve(
        read(result.folder)
    )


def test_the_best_model_is_kept_for_from_pretrained(learned):
    _, result = learned
    best = AutoModelForCausalLM.from_pretrained(result.folder / "checkpoints" / f"best-{result.place.best_step:08d}")
    last = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    assert result.place.best_step == 60 and isinstance(best, HopeForCausalLM)
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), last.parameters()))


def test_tensorboard_has_the_log(learned):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result = learned
    events = EventAccumulator(str(result.folder / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("step/loss")]
    assert shown == [(line["step"], pytest.approx(line["loss"])) for line in steps(result.folder)]


def test_trackio_has_the_log(config, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    result = train(config("train.track=trackio", "train.tokens=256"))
    import sqlite3

    (path,) = (tmp_path / "trackio").rglob("circadia*.db")
    with sqlite3.connect(path) as db:
        rows = [(step, json.loads(metrics)) for step, metrics in db.execute("select step, metrics from metrics")]
    shown = [(step, row["step/loss"]) for step, row in rows if "step/loss" in row]
    assert shown == [(line["step"], line["loss"]) for line in steps(result.folder)]


def again(config, tmp_path, name, *overrides, **parts):
    return train(config(*overrides, f"out={tmp_path / name}", **parts))


def close(a, b, rel=1e-4):
    return losses(a) == pytest.approx(losses(b), rel=rel)


def test_accumulation_and_recomputation_do_not_change_the_run(config, tmp_path):
    whole = again(config, tmp_path, "whole")
    assert losses(whole)[-1] < losses(whole)[0] - 0.1
    for name, override in (("micro", "train.micro=1"), ("again", "train.checkpointing=true")):
        assert close(again(config, tmp_path, name, override), whole)


def test_bf16_is_near_and_not_the_same(config, tmp_path):
    full, half = again(config, tmp_path, "a"), again(config, tmp_path, "b", "train.precision=bf16")
    assert close(half, full, rel=2e-2) and losses(half) != losses(full)


def test_compiled_blocks_are_the_ones_that_run(config, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    assert close(again(config, tmp_path, "a", "train.compile=true"), again(config, tmp_path, "b"))
    assert compiled == ["HopeBlock"] * 2


def test_the_seed_decides(config, tmp_path):
    a, b, c = (again(config, tmp_path, name, f"seed={seed}") for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert curve(read(a.folder)) == curve(read(b.folder))
    assert losses(a)[0] != losses(c)[0]


def test_schedule_clip_and_learning_rate_reach_the_optimizer(config, tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self: moved.append(
            (self.param_groups[0]["lr"], math.hypot(*(float(p.grad.norm()) for p in held(self))))
        ),
    )

    def held(optimizer):
        return [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]

    asked = ["optim.name=torch.SGD", "optim.lr=2.0", "optim.schedule=wsd", "optim.warmup=0.25", "optim.decay=0.5"]
    result = train(config(*asked, "optim.floor=0.5", "optim.clip=0.01"))
    assert [lr for lr, _ in moved] == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.75, 1.5, 1.25, 1.0])
    assert [norm for _, norm in moved] == pytest.approx([0.01] * 8, rel=1e-3)
    assert all(line["norm"] > 0.1 for line in steps(result.folder))  # as it was before
    assert [line["lr"] for line in steps(result.folder)] == [lr for lr, _ in moved]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "torch.Adafactor"])
def test_every_optimizer_trains(config, name):
    result = train(config(f"optim.name={name}", "optim.lr=1e-3", "train.tokens=512"))
    assert result.place.skipped == 0 and len(set(losses(result))) == 4


def test_cms_writes_each_part_at_its_period(config, tmp_path):
    periods = {"model.layers.0.*": 128, "model.layers.1.*": 256, "*": 512}  # a step has 128 tokens
    parts = {"optim": {"lr": 1e-2, "periods": periods}}
    before = None
    changed = []
    for count in range(1, 5):
        # The learning rate stands still, so that a shorter run is the beginning of a longer one.
        out = again(config, tmp_path, str(count), f"train.tokens={count * 128}", "optim.schedule=constant",
                    "optim.warmup=0", **parts)  # fmt: skip
        weights = AutoModelForCausalLM.from_pretrained(out.folder / "model").state_dict()
        if before is not None:
            moved = {
                name.split(".mixer")[0].split(".mlp")[0] for name in weights if not weights[name].equal(before[name])
            }
            changed.append([any(part in name for name in moved) for part in ("layers.0", "layers.1", "embed")])
        before = weights
    assert changed == [[True, True, False], [True, False, False], [True, True, True]]


def test_memory_is_carried_over_rows_when_asked(config, tmp_path, monkeypatch):
    seen = []
    plain = loop_file.HopeCache.__init__
    monkeypatch.setattr(loop_file.HopeCache, "__init__", lambda self, n: seen.append(n) or plain(self, n))
    carried = again(config, tmp_path, "a", "data.carry=true", "train.eval_every=100")
    assert len(seen) == 2  # at the start, and for the evaluation
    monkeypatch.undo()
    fresh = again(config, tmp_path, "b", "data.carry=true", "train.tokens=128")
    assert losses(carried)[0] == losses(fresh)[0]
    # What the first row wrote is there in the second: by hand, one pass over both gives its loss.
    model = _initial(config("data.carry=true", "train.tokens=128"))
    order = loop_file.make.Data(config().data, 0, 0).batches(4, (0, 1), None)
    assert order.position == 0
    from circadia.train.config import DataPart

    data = loop_file.make.Data(DataPart(**{**config().data.model_dump(), "carry": True}), 0, 0)
    batches = data.batches(4, (0, 1), None)
    first, second = next(batches), next(batches)
    tokens, labels = (torch.cat([getattr(b, name) for b in (first, second)], 1) for name in ("tokens", "labels"))
    reset = torch.cat([torch.zeros_like(first.tokens) if b.reset is None else b.reset for b in (first, second)], 1)
    logits = model(tokens, reset=reset.bool() if reset.any() else None).logits
    whole = torch.nn.functional.cross_entropy(logits[:, 32:].flatten(0, 1), labels[:, 32:].flatten()).item()
    still = again(config, tmp_path, "c", "data.carry=true", "train.tokens=256", "optim.lr=1e-12")
    assert losses(still)[1] == pytest.approx(whole, rel=1e-5)


def _initial(config):
    return loop_file.make.model(config.model, loop_file.make.Tokenizer("bytes"), config.seed)


def test_stages_go_on_with_the_weights_and_change_the_rest(config, tmp_path):
    stages = [
        {"name": "first", "train": {"tokens": 512}},
        {"name": "second", "model": {"chunk": 4}, "optim": {"name": "muon", "lr": 1e-12}, "train": {"tokens": 256}},
    ]
    result = train(config(stages=stages))
    lines = [line for line in read(result.folder) if line["kind"] in ("stage", "step")]
    assert [line.get("name", line["step"]) for line in lines] == ["first", 1, 2, 3, 4, "second", 5, 6]
    made = AutoModelForCausalLM.from_pretrained(result.folder / "model")
    first = AutoModelForCausalLM.from_pretrained(again(config, tmp_path, "a", "train.tokens=512").folder / "model")
    assert (made.config.chunk, first.config.chunk) == (4, 8)
    for a, b in zip(made.parameters(), first.parameters()):
        assert torch.allclose(a, b, atol=1e-9)
    with pytest.raises(
        ValueError, match=r"changes the parameter .*conv\.weight from \(4, 48\) to \(2, 48\): a stage may"
    ):
        train(config(f"out={tmp_path / 'x'}", stages=[{"name": "a"}, {"name": "b", "model": {"conv_window": 2}}]))


def test_a_stage_reads_on_in_the_same_text(config, tmp_path):
    def cut(tokens, optim):
        return {"train": {"tokens": tokens}, "optim": optim}

    stages = [{"name": "a", **cut(512, {"lr": 1e-12})}, {"name": "b", **cut(512, {"lr": 1e-12})}]
    whole = again(config, tmp_path, "whole", "optim.lr=1e-12")
    assert losses(train(config(stages=stages))) == pytest.approx(losses(whole), rel=1e-6)


def broken(monkeypatch, bad, value=math.nan):
    """A loss that is spoiled at some steps of the run."""
    plain = loop_file.Run.loss

    def loss(self, part, index, net=None):
        factor = value if net is None and self.place.step in bad else 1.0
        return plain(self, part, index, net) * factor

    monkeypatch.setattr(loop_file.Run, "loss", loss)


@pytest.mark.parametrize("value", [math.nan, math.inf, 100.0])
def test_bad_steps_are_skipped_and_counted(config, monkeypatch, value):
    tokens = 24 * 4 * 32
    broken(monkeypatch, {17, 18, 20}, value)
    written = []
    plain = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: written.append(1) or plain(self))
    result = train(config(f"train.tokens={tokens}"))
    skipped = [line["step"] for line in steps(result.folder) if line["skipped"]]
    assert (skipped, result.place.skipped, len(written)) == ([18, 19, 21], 3, 21)
    assert losses(result)[-1] < 5.5
    if not math.isfinite(value):
        assert losses(result)[17] is None


def test_a_spike_is_what_the_configuration_says(config, tmp_path, monkeypatch):
    broken(monkeypatch, {17}, 1.5)
    overrides = [f"train.tokens={20 * 4 * 32}", "optim.lr=1e-12"]
    assert again(config, tmp_path, "a", *overrides).place.skipped == 1  # 5.5 -> 8.3
    assert again(config, tmp_path, "b", *overrides, "train.spike=4").place.skipped == 0


def test_ten_bad_steps_in_a_row_are_an_end(config, monkeypatch):
    broken(monkeypatch, range(7, 100))
    made = config(f"train.tokens={40 * 4 * 32}")
    with pytest.raises(Diverged, match=r"stopped after step 17: .* the last good checkpoint is .*step-000000\d\d; try"):
        train(made)
    assert [line["skipped"] for line in steps(loop_file.Path(made.out))].count(True) == 10


def test_patience_ends_a_run_that_gets_no_better(config, monkeypatch):
    found = iter([3.0, 2.0, 2.5, 2.0, 1.0, 0.5])
    better = {"bits_per_byte": 0.0, "perplexity": 1.0}
    monkeypatch.setattr(loop_file.Run, "evaluate", lambda self: {"loss": next(found), **better})
    result = train(config("train.patience=2", "train.eval_every=1"))
    assert (result.stopped, result.place.step, result.place.best_step) == ("early", 4, 2)
    assert result.held_out["loss"] == 2.0


def test_patience_is_each_stage_s_own_and_outlives_a_resume(config, monkeypatch):
    found = iter([1.0, 2.0, 0.5, 3.0])
    better = {"bits_per_byte": 0.0, "perplexity": 1.0}
    monkeypatch.setattr(loop_file.Run, "evaluate", lambda self: {"loss": next(found), **better})
    stages = [{"name": "a"}, {"name": "b", "model": {"chunk": 4}}]
    made = config("train.patience=1", "train.eval_every=1", stages=stages)
    assert train(made).place.step == 4
    monkeypatch.setattr(loop_file.Run, "evaluate", lambda self: {"loss": 9.0, **better})
    again = train(made, resume=True)
    assert (again.stopped, again.place.step, again.place.stage) == ("early", 4, 1)
    lines = [(line["kind"], line["step"]) for line in read(again.folder) if line["kind"] in ("stage", "step")]
    assert lines == [("stage", 0), ("step", 1), ("step", 2), ("stage", 2), ("step", 3), ("step", 4)]


def test_streams_and_other_tokenizers(config, tmp_path, text):
    from circadia.train.sources import Source
    from circadia.train.tokens import train_tokenizer

    train_tokenizer(Source((str(text),)).documents(), 280, tmp_path / "bpe")
    result = train(
        config("data.streaming=true", "data.buffer=4", "train.eval_tokens=100", f"data.tokenizer={tmp_path / 'bpe'}")
    )
    assert losses(result)[-1] < losses(result)[0] - 0.1
    bits = result.held_out["loss"] / math.log(2)
    assert result.held_out["bits_per_byte"] < 0.7 * bits  # a token has more than one byte
    assert (result.folder / "model" / "tokenizer.json").exists()


def test_going_on_from_a_folder_and_from_another_library(config, tmp_path, learned):
    _, before = learned
    result = train(config("model={path: %s}" % (before.folder / "model"), "optim.lr=1e-12"))
    assert losses(result)[0] < 2.5
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    theirs = ["model={path: %s}" % (tmp_path / "llama"), f"out={tmp_path / 'b'}"]
    with pytest.raises(ValueError, match=r"data\.reset=true: LlamaForCausalLM takes no marks"):
        train(config(*theirs))
    assert losses(train(config(*theirs, "data.reset=false")))[-1] < 5.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.batch=6", "train.micro=4"], r"train\.batch=6 cannot be divided into 1 processes with parts of"),
        (["model.preset=gated-deltanet"], "write architecture/size"),
        (["model.config.hiden_size=3"], r"model\.config\.hiden_size is unknown: did you mean hidden_size\?"),
        (["model.config.hidden_size=15"], "hidden_size=15 is not divisible"),
        (["optim.name=adam"], "optimizer 'adam' is unknown: use one of adamw"),
        (["optim.name=torch.Adamm"], "is no optimizer of torch"),
        (["optim.settings.beta=3"], "do not fit AdamW"),
        (["optim.periods={'x.*': 3, '*': 9}"], r"optim\.periods: 'x\.\*' fits no parameter"),
        (
            ["optim.periods={'model.*': 3}", "model.config.tie_word_embeddings=false"],
            "no pattern fits 'lm_head.weight'",
        ),
        (["model.config.periods=[8]", "model.config.cms_signal=loss"], r"data\.reset=true: cms_signal='loss'"),
        (["train.device=gpu7"], r"train\.device='gpu7' cannot be used here"),
        (["data.carry=true", "model.config.mixers=[attention]"], "attention to everything would grow for ever"),
        (["model={path: ./nowhere}"], r"model\.path: \./nowhere: no such folder"),
    ],
)
def test_mistakes_leave_no_run_behind(config, overrides, message):
    made = config(*overrides)
    with pytest.raises(ValueError, match=message):
        train(made)
    assert not (loop_file.Path(made.out) / "config.yaml").exists()


def test_a_dry_run_shows_the_cost_and_writes_nothing(config, capsys):
    stages = [{"name": "a"}, {"name": "b", "train": {"tokens": 512}, "optim": {"periods": {"*": 512}}}]
    made = config(stages=stages)
    numbers = plan(made, Console(width=200))
    shown = capsys.readouterr().out
    for said in (
        "gated_deltanet",
        "AdamW moments",
        "estimated time",
        "tokens/s",
        "512 tokens",
        "bytes" if 0 else "KiB",
    ):
        assert said in shown, said
    count = sum(p.numel() for p in _initial(made).parameters())
    assert numbers["parameters"] == f"{count:,}" and numbers["tokens"].startswith("512 in 4 steps")
    assert numbers["seconds"] > 0 and not loop_file.Path(made.out).exists()


def test_a_part_of_a_step_fits(config, tmp_path, monkeypatch):
    """Rows are divided evenly, by what they hold; told how many, it does as told."""
    row = loop_file.make.activation_bytes(loop_file.make.configured(config().model), 32)
    for room, micro in ((100.0, 4), (3.9, 2), (1.5, 1), (0.1, 1)):
        monkeypatch.setattr(loop_file.make, "ROOM", room * row * loop_file.make.MORE)
        run = loop_file.Run(config(), None, loop_file.World(0, 1, torch.device("cpu")), None)
        run.open(0)
        assert (run.micro, run.parts) == (micro, 4 // micro)
    run = loop_file.Run(config("train.micro=2"), None, loop_file.World(0, 1, torch.device("cpu")), None)
    run.open(0)
    assert run.micro == 2


def test_the_time_of_a_step_is_that_of_its_parts(config, monkeypatch):
    """Eight rows in parts of four: one warms up, four are timed; or one again, where four would take long."""
    plain, sizes = loop_file.Run.step, []
    monkeypatch.setattr(loop_file.Run, "step", lambda self: sizes.append(len(self.batch)) or plain(self))
    monkeypatch.setattr("circadia.train.plan._part", _clocked())
    made = config("train.batch=8", "train.micro=4")
    quick = plan(made, Console(quiet=True))
    assert quick["seconds"] == 4 * 2 * (0.25 * 4) and sizes == [1, 4]
    sizes.clear()
    monkeypatch.setattr("circadia.train.plan.PATIENCE", 0.5)
    slow = plan(made, Console(quiet=True))
    assert slow["seconds"] == quick["seconds"] and sizes == [1, 1]


def _clocked():
    """A part of a step that takes a quarter of a second for each row, by this clock."""
    from circadia.train.plan import _part

    def part(run, batch):
        _part(run, batch)
        return 0.25 * len(batch)

    return part


def test_the_bar_is_for_terminals_and_lines_for_files(config, tmp_path):
    import io

    for terminal in (True, False):
        out = io.StringIO()
        train(config(f"out={tmp_path / str(terminal)}"), console=Console(file=out, force_terminal=terminal, width=200))
        assert ("step 4/8  loss" in out.getvalue()) is not terminal
        assert "held-out bits per byte" in out.getvalue() and "tokens/s" in out.getvalue()


def test_configs_in_the_repository_are_right():
    folder = loop_file.Path(__file__).parents[2] / "configs"
    files = sorted(folder.glob("*.yaml"))
    names = [
        "adapt-novels",
        "base-novels",
        "cms-stream",
        "hope-1.3b",
        "hope-novels",
        "novels-tiny",
        "smoke",
        "stages-tiny",
    ]
    assert [file.stem for file in files] == names
    for file in files:
        config = load(file)
        for i in range(len(config.names)):
            if config.stage(i).model.path is None:  # else a folder that is not here decides
                loop_file.make.configured(config.stage(i).model)
        assert yaml.safe_load(dump(config))
    assert importlib.util.find_spec("yaml") is not None
