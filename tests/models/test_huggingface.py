"""The tools of the Hugging Face world on tiny models: each tried for real."""

import json
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers import pipeline as make_pipeline

from circadia.memory import Rule
from circadia.models import HopeCache, HopeConfig, HopeForCausalLM, HopeModel
from circadia.models.mixers.table import MIXERS

HYBRID = ["gated_deltanet", "sliding_attention", "self_modifying", "attention"]
every_kind = pytest.mark.parametrize("mixers", [*([name] for name in MIXERS), HYBRID], ids="-".join)
# What these packages say of each other, not of us.
foreign_warnings = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and three special tokens."""
    letters = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def make(**settings) -> HopeForCausalLM:
    torch.manual_seed(0)
    given = dict(mixers=["gated_deltanet", "attention"], hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    given |= dict(chunk=8, vocab_size=259, sliding_window=12, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    if (mixers := settings.get("mixers")) is not None:
        given["num_hidden_layers"] = max(2, len(mixers))
    return HopeForCausalLM(HopeConfig(**(given | settings)))


def texts(tokenizer, rows: int) -> list[dict]:
    lines = ["Mira lives in Oslo.", "Ana reads by the sea.", "Bo sings.", "Cy was in Rome last week."]
    ids = [tokenizer(lines[i % 4]).input_ids for i in range(rows)]
    return [{"input_ids": row, "labels": row} for row in ids]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    pads = [width - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([[0] * p + row["input_ids"] for p, row in zip(pads, rows)]),
        "labels": torch.tensor([[-100] * p + row["labels"] for p, row in zip(pads, rows)]),
        "attention_mask": torch.tensor([[0] * p + [1] * (width - p) for p in pads]),
    }


def trainer(model, folder: Path, data: list[dict], **settings) -> Trainer:
    given = dict(per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True)
    given |= dict(
        logging_steps=1, max_steps=8, save_strategy="no", lr_scheduler_type="constant", logging_strategy="steps"
    )
    arguments = TrainingArguments(output_dir=str(folder), **(given | settings))
    return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate)


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@foreign_warnings
@pytest.mark.parametrize("mixers", [["gated_deltanet", "attention"], ["self_modifying"], ["titans"]], ids="-".join)
def test_trainer_and_resuming(mixers, tmp_path: Path, tokenizer) -> None:
    """The loss falls; four steps, a checkpoint and four more are the eight steps in one go."""
    data = texts(tokenizer, 16)
    whole = trainer(make(mixers=mixers), tmp_path / "whole", data)
    whole.train()
    seen = losses(whole)
    assert len(seen) == 8 and seen[-1] < 0.8 * seen[0]
    half = trainer(make(mixers=mixers), tmp_path / "half", data, max_steps=4, save_strategy="steps", save_steps=4)
    half.train()
    rest = trainer(make(mixers=mixers), tmp_path / "half", data)
    rest.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-4"))
    assert losses(rest) == pytest.approx(seen, rel=1e-6)
    for (name, a), b in zip(whole.model.named_parameters(), rest.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@foreign_warnings
def test_gradient_accumulation_is_one_large_batch(tmp_path: Path, tokenizer) -> None:
    """Rows of different length: the loss is over tokens, so ``num_items_in_batch`` must reach it."""
    data = texts(tokenizer, 8)
    large = trainer(make(), tmp_path, data, max_steps=2)
    large.train()
    small = trainer(make(), tmp_path, data, max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    small.train()
    assert losses(small) == pytest.approx(losses(large), rel=1e-4)


@foreign_warnings
@pytest.mark.parametrize(
    "settings", [dict(mixers=HYBRID), dict(mixers=["titans"]), dict(mixers=["linear"], periods=[8, 0])], ids=str
)
def test_lora(settings: dict, tmp_path: Path) -> None:
    """Only adapters learn; merged, and saved and loaded, the logits stay; generation goes through them."""
    model, x = make(**settings), torch.randint(3, 259, (2, 20))
    model.save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["into", "q", "kv", "out", "up"])
    wrapped = peft.get_peft_model(model, lora)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=3e-2)
    seen = []
    for _ in range(8):
        loss = wrapped(input_ids=x, labels=x).loss
        loss.backward()
        for name, p in wrapped.named_parameters():
            assert (p.grad is not None) == ("lora_" in name), name
        assert all(p.grad.abs().max() > 0 for n, p in wrapped.named_parameters() if "lora_B" in n)
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    assert seen[-1] < seen[0] - 0.05  # embeddings and head are frozen at random
    wrapped.eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        before, wanted = base(x).logits, wrapped(input_ids=x).logits
        again = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert (before - wanted).abs().max() > 1e-2
        torch.testing.assert_close(again(input_ids=x).logits, wanted, rtol=1e-5, atol=1e-5)
        turned = wrapped.generate(input_ids=x, max_new_tokens=5, do_sample=False)
        # A memory belongs to the adapters too: the base without them has not written it.
        cache = HopeCache(model.config.num_hidden_layers)
        wrapped(input_ids=x, past_key_values=cache, use_cache=True)
        wrapped.save_memory(tmp_path / "memory", cache)
        assert wrapped.load_memory(tmp_path / "memory").get_seq_length() == 20
        merged = wrapped.merge_and_unload()
        with pytest.raises(ValueError, match="written by base weights"):
            merged.load_memory(tmp_path / "memory")
        torch.testing.assert_close(merged(x).logits, wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(merged.generate(x, max_new_tokens=5, do_sample=False), turned)
    assert type(merged) is HopeForCausalLM


@foreign_warnings
@pytest.mark.parametrize("packing", [None, "bfd", "wrapped"])
def test_sft_trainer(packing: str | None, tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With packing, documents arrive as positions that start anew; the model must read their borders from them."""
    import datasets
    import trl

    rows = {"text": ["Mira lives in Oslo.", "Ana reads by the sea."] * 8}
    asked: list[dict] = []
    forward = HopeModel.forward

    def listen(self, *args, **kwargs):
        asked.append(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(HopeModel, "forward", listen)
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        max_length=64,
        packing=packing is not None,
        packing_strategy=packing or "bfd",
    )
    run = trl.SFTTrainer(
        model=make(), args=arguments, train_dataset=datasets.Dataset.from_dict(rows), processing_class=tokenizer
    )
    run.train()
    seen = losses(run)
    assert len(seen) == 4 and seen[-1] < 0.95 * seen[0]
    with_positions = [k["position_ids"] for k in asked if k.get("position_ids") is not None]
    assert bool(with_positions) == (packing == "bfd")
    if with_positions:
        assert all(k.get("attention_mask") is None for k in asked)
        assert any((p[:, 1:] == 0).any() for p in with_positions)


@every_kind
def test_positions_that_start_anew_are_documents(mixers) -> None:
    model, x = make(mixers=mixers).double().eval(), torch.randint(3, 259, (1, 30))
    ends = (0, 7, 18, 30)
    positions = torch.cat([torch.arange(b - a) for a, b in pairwise(ends)])[None]
    with torch.no_grad():
        packed = model(x, position_ids=positions).logits
        alone = torch.cat([model(x[:, a:b]).logits for a, b in pairwise(ends)], 1)
        assert (packed - alone).abs().max() < 1e-10
        rows = model(x.expand(2, -1), position_ids=positions).logits  # one row of positions for all
        assert (rows - packed).abs().max() < 1e-10
        assert (packed - model(x).logits).abs().max() > 1e-6
        assert torch.equal(model(x, position_ids=torch.arange(30)[None]).logits, model(x).logits)


@foreign_warnings
def test_lm_eval(tmp_path: Path, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ordinary model: every request starts from the same state, so answers do not depend on batches or order."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["Mira", "Ana", "Bo", "Cy", "Di"]
    asked = [" ".join([f"Where does {name} live?"] * k) for k, name in enumerate(names, 1)]
    rows = [json.dumps({"q": q, "a": ["Oslo", "Rome, a city"]}) for q in asked]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    shared |= {"test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "{{a[0]}}"}
    tasks = {
        "choose": {"output_type": "multiple_choice", "doc_to_choice": "{{a}}", "doc_to_target": 0}
        | {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]},
        "say": {"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 6, "until": ["\n"]}}
        | {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]},
    }
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **task}))
    model = make().eval()
    with torch.no_grad():  # as if it had been trained: its answers depend on what it has read
        for name, p in model.named_parameters():
            p.mul_(4.0 if p.ndim == 2 and "start" not in name else 1.0)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    answers = {}
    for size in (1, 3):
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=size, max_length=256)
        found = lm_eval.simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0)
        samples = {t: sorted(found["samples"][t], key=lambda s: s["doc_id"]) for t in tasks}
        answers[size] = {t: [s["filtered_resps"] for s in rows] for t, rows in samples.items()}
    likelihoods = [[[one[0] for one in row] for row in answers[size]["choose"]] for size in (1, 3)]
    torch.testing.assert_close(torch.tensor(likelihoods[0]), torch.tensor(likelihoods[1]), rtol=1e-5, atol=1e-4)
    assert answers[1]["say"] == answers[3]["say"]
    # And they are what the model says itself, from an empty state.
    for row, q in zip(likelihoods[0], asked):
        ids = tokenizer(q + " Oslo", return_tensors="pt").input_ids
        with torch.no_grad():
            scores = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        assert row[0] == pytest.approx(scores[-5:].sum().item(), rel=1e-4)


@foreign_warnings
def test_pipeline(tokenizer) -> None:
    """Texts one by one and as a left-padded batch, greedy and sampled."""
    generate = make_pipeline("text-generation", model=make().eval(), tokenizer=tokenizer, device="cpu")
    prompts = ["Mira lives in", "Bo", "Where was Cy last week?"]
    options = dict(max_new_tokens=6, do_sample=False, return_full_text=False)
    alone = [generate(p, **options)[0]["generated_text"] for p in prompts]
    assert [row[0]["generated_text"] for row in generate(prompts, batch_size=3, **options)] == alone
    several = generate(prompts[0], max_new_tokens=6, do_sample=True, num_return_sequences=3)
    assert len(several) == 3 and all(one["generated_text"].startswith(prompts[0]) for one in several)


@every_kind
@pytest.mark.parametrize("how", ["loaded", "autocast"])
def test_half_precision(mixers, how: str, tmp_path: Path) -> None:
    """Weights or products in bfloat16, memories in float32; every way through the model runs and stays near."""
    model, x = make(mixers=mixers).eval(), torch.randint(3, 259, (2, 21))
    mask, reset = torch.ones_like(x), torch.zeros_like(x, dtype=torch.bool)
    mask[1, :5], reset[:, 7] = 0, True
    with torch.no_grad():
        wanted = model(x, attention_mask=mask).logits[:, -1]
    if how == "loaded":
        model.save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        for name, p in model.named_parameters():  # the starts of memories are memories
            assert p.dtype == (torch.float32 if ".start" in name else torch.bfloat16), name
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out = model(x, attention_mask=mask, labels=x)
        out.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        cache, near = out.past_key_values, out.logits[:, -1].float()
        with torch.no_grad():
            for size in (1, 9):
                model(x[:, :size], past_key_values=cache, use_cache=True)
            model(x, reset=reset)
            model.generate(x, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert (near - wanted).abs().max() < 0.1 * wanted.abs().max()
    kinds = {name.split(".")[0]: w.dtype for s in cache.states for name, w in s.items() if w.is_floating_point()}
    memories = {"memory", "before", "h", "c", "W"}
    assert all(kind == (torch.float32 if name in memories else torch.bfloat16) for name, kind in kinds.items()), kinds


@pytest.mark.parametrize("how", ["loaded", "autocast"])
@pytest.mark.parametrize("name", [name for name in MIXERS if "attention" not in name and name not in ("lstm", "srwm")])
def test_rules_run_in_float32(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Automatic casts would round the memory's own products, and a retention of 0.9997 would be 1 in bfloat16."""
    seen: set = set()
    run = Rule.__call__

    def listen(self, q, k, v, gates, state, **more):
        seen.add(torch.is_autocast_enabled("cpu"))
        seen.update(x.dtype for x in (q, k, v, *gates.values(), *state.values()) if x.is_floating_point())
        return run(self, q, k, v, gates, state, **more)

    monkeypatch.setattr(Rule, "__call__", listen)
    model, x = make(mixers=[name]), torch.randint(3, 259, (2, 9))
    if how == "loaded":
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        model(x, labels=x).loss.backward()
    assert seen == {False, torch.float32}


def test_auto_classes_and_a_device_map(tmp_path: Path) -> None:
    model, x = make(mixers=HYBRID).eval(), torch.randint(3, 259, (2, 15))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.to_diff_dict() == model.config.to_diff_dict() and type(config) is HopeConfig
    assert AutoConfig.for_model("hope", chunk=5).chunk == 5
    assert type(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)) is HopeForCausalLM
    with torch.no_grad():
        wanted = model(x).logits
        for options in ({}, {"device_map": "cpu"}, {"device_map": {"": "cpu"}}):
            again = AutoModelForCausalLM.from_pretrained(tmp_path, **options).eval()
            assert not any(p.is_meta for p in [*again.parameters(), *again.buffers()])
            assert torch.equal(again(x).logits, wanted)
            again.save_pretrained(tmp_path / "again")
            stored = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "again")]
            assert stored[0] == stored[1]
        stack = AutoModel.from_pretrained(tmp_path).eval()
        assert type(stack) is HopeModel and torch.equal(stack(x)[0], model.model(x)[0])
        with torch.device("meta"):  # built without memory, then filled
            empty = HopeForCausalLM(config)
        empty.load_state_dict(model.state_dict(), assign=True)
        assert {p.device.type for p in empty.parameters()} == {"cpu"}


def test_a_turn_without_a_new_token_is_refused() -> None:
    """Transformers would cut the text from the wrong end, and the memory would read it twice."""
    model, x = make().eval(), torch.randint(3, 259, (1, 12))
    with torch.no_grad():
        cache = model(x, use_cache=True).past_key_values
    for ids in (x, x[:, :4]):
        with pytest.raises(
            ValueError, match=f"cover {ids.shape[1]} tokens, but past_key_values has read 12: pass the whole"
        ):
            model.generate(ids, past_key_values=cache, max_new_tokens=2)
