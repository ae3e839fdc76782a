"""Our likelihoods and scores against lm-eval's own, on the same model and the same local documents."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circadia.evals import likelihood, lm, lm_tasks
from circadia.evals.likelihood import Scorer
from circadia.evals.suite import Options, Record
from circadia.models import HopeConfig, HopeForCausalLM

TEXT = "the cat sat on a mat and saw one dog run to Oslo or Rome . = Title Question Answer : yes no ?"
WORDS = TEXT.split()
WINDOW = 24


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "<unk>", *WORDS])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    own = HopeForCausalLM(HopeConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, chunk=8)).eval()  # fmt: skip
    with torch.no_grad():  # as if trained: what it says depends on what it has read
        for p in own.parameters():
            p.mul_(6.0 if p.ndim == 2 else 1.0)
    return own


def sentence(rng, n):
    return " ".join(rng.choices(WORDS, k=n))


def test_equal_to_lm_eval(model, tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rng = random.Random(0)
    rows = [{"goal": sentence(rng, 3 + i % 40), "sol1": sentence(rng, 1 + i % 4), "sol2": sentence(rng, 3),
             "label": i % 2, "text": " ".join(rng.choices(WORDS[:15], k=5 + 7 * i))} for i in range(12)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
              "test_split": "test"}  # fmt: skip
    mean = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]
    tasks = {
        "piqa_here": {"output_type": "multiple_choice", "doc_to_text": "Question: {{goal}}\nAnswer:",
                      "doc_to_target": "label", "doc_to_choice": "{{[sol1, sol2]}}", "metric_list": mean},
        "last_here": {"output_type": "loglikelihood", "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
                      "doc_to_target": "{{' '+text.split(' ')[-1]}}",
                      "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                                      mean[0]]},
        "wiki_here": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                      "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")]},
    }  # fmt: skip
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"task": name, **shared, **task}))
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=WINDOW),
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]

    scorer = Scorer(model, tokenizer.encode, tokenizer.bos_token_id, WINDOW)
    ours = lm.choices(scorer, [lm_tasks.choice("piqa", row) for row in rows])
    for kind in ("acc", "acc_norm"):
        assert ours[kind] == pytest.approx(theirs["piqa_here"][f"{kind},none"])
    ours = lm.lambada(scorer, [row["text"] for row in rows])
    assert ours["perplexity"] == pytest.approx(theirs["last_here"]["perplexity,none"], rel=1e-4)
    assert ours["acc"] == pytest.approx(theirs["last_here"]["acc,none"])
    assert all(lm_tasks.detokenized(row["text"]) == row["text"] for row in rows)
    ours = lm.wikitext(scorer, [row["text"] for row in rows])
    for kind in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert ours[kind] == pytest.approx(theirs["wiki_here"][f"{kind},none"], rel=1e-4)


def test_detokenizer_is_theirs() -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    text = ' \n = Head = \n \n He said " so it is , 3 @.@ 5 @-@ fold ( or not ) : the boys \' 1 @,@ 000 " ; N 40 '
    text += "\u00b0 C 's \n = = Sub = = \n It 's [ here ] ! { no } ? \n"
    assert lm_tasks.detokenized(text) == wikitext_detokenizer({"page": text}) != text
    assert [page.split("\n")[0] for page in lm_tasks.pages(text + " = Other = \n x\n")] == [" = Head = ", " = Other = "]


def test_documents_become_requests() -> None:
    cases = {
        "winogrande": ({"context_options": ["so A", "so B"], "continuation": "won.", "gold": 1},
                       [("so A", " won."), ("so B", " won.")], 1),
        "hellaswag": ({"activity_label": "Sew", "ctx_a": "A man. [title] Go", "ctx_b": "then he", "label": 0,
                       "endings": ["[step] runs.", "sits."]},
                      [("Sew: A man.. Go Then he", "  runs."), ("Sew: A man.. Go Then he", " sits.")], 0),
        "siqa": ({"context": "C.", "question": "Why?", "options": ["a", "b", "c"], "answer": "c"},
                 [("Q: C. Why?\nA:", f" {x}") for x in "abc"], 2),
        "boolq": ({"passage": "P.", "question": "is it", "answer": True},
                  [("P.\nQuestion: is it?\nAnswer:", f" {x}") for x in ("no", "yes")], 1),
        "arc_easy": ({"question": "Q?", "choices": ["x", "y"], "labels": ["1", "2"], "answer": "2"},
                     [("Question: Q?\nAnswer:", " x"), ("Question: Q?\nAnswer:", " y")], 1),
    }  # fmt: skip
    for task, (doc, requests, gold) in cases.items():
        found = lm_tasks.choice(task, doc)
        assert (found.requests, found.gold) == (requests, gold), task
    assert lm_tasks.last_word("a b c") == ("a b", " c")


@pytest.fixture
def data(tmp_path):
    (tmp_path / "lm").mkdir()
    (tmp_path / "commonsense").mkdir()
    (tmp_path / "lm" / "wikitext2_valid.txt").write_text(" = One = \n \n the cat . \n = Two = \n \n a dog . \n")
    (tmp_path / "lm" / "lambada_dev.txt").write_text("the cat sat\nthe dog sat\na dog ran\n")
    docs = {
        "piqa_valid": {"goal": "g", "sol1": "a", "sol2": "b", "label": 1},
        "hellaswag_val_2": {"activity_label": "x", "ctx_a": "a", "ctx_b": "b", "endings": ["c", "d"], "label": 0},
        "winogrande_dev": {"context_options": ["a", "b"], "continuation": "c", "gold": 0},
        "arc_easy_test": {"question": "q", "choices": ["a", "b"], "labels": ["A", "B"], "answer": "A"},
        "arc_challenge_test": {"question": "q", "choices": ["a", "b"], "labels": ["A", "B"], "answer": "A"},
        "siqa_dev": {"context": "c", "question": "q", "options": ["a", "b"], "answer": "a"},
        "boolq_dev": {"question": "q", "answer": True, "passage": "p"},
    }
    for name, doc in docs.items():
        (tmp_path / "commonsense" / f"{name}.jsonl").write_text(json.dumps(doc) + "\n")
    return tmp_path


def test_a_folder_from_end_to_end(data, tmp_path) -> None:
    """A model of bytes has no tokenizer. Bits per byte by hand."""
    torch.manual_seed(0)
    own = HopeForCausalLM(HopeConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).eval()
    own.save_pretrained(tmp_path / "model")
    options = Options(models=(str(tmp_path / "model"),), data=data)
    likelihood.load.cache_clear()
    plan = lm.runs(options, [])
    records = [Record(run, lm.run(run, options), 1.0) for run in plan]
    scores = {one.run["task"]: one.scores for one in records}
    assert scores["lambada"]["majority"] == pytest.approx(2 / 3) and scores["boolq"]["chance"] == 0.5
    nats = 0.0
    texts = [" = One = \n \n the cat . \n", " = Two = \n \n a dog . "]
    for text in texts:
        tokens = torch.tensor([[10, *lm_tasks.detokenized(text).encode()]])
        with torch.no_grad():
            logits = own(tokens[:, :-1]).logits.log_softmax(-1)
        nats -= logits[0].gather(1, tokens[0, 1:, None]).sum().item()
    assert scores["wikitext"]["nats"] == pytest.approx(nats, rel=1e-5)
    assert scores["wikitext"]["bits_per_byte"] == pytest.approx(nats / 0.6931472 / sum(map(len, texts)), rel=1e-5)
    (table,) = lm.table(records)
    row = dict(zip(table.columns, table.rows[0]))
    assert row["model"] == "model" and row["boolq acc"] == f"{100 * scores['boolq']['acc']:.1f}"
    assert len({len(row) for row in (table.columns, *table.rows)}) == 1
    lm.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
    own.model.norm.weight.data.mul_(2.0)
    own.save_pretrained(tmp_path / "model")
    assert lm.runs(options, []) != plan, "other weights are another run"


def test_mistakes(data, tmp_path) -> None:
    with pytest.raises(ValueError, match="--models FOLDER"):
        lm.runs(Options(data=data), [])
    with pytest.raises(ValueError, match="no causal language model"):
        likelihood.load(str(tmp_path), "cpu")
    (data / "commonsense" / "piqa_valid.jsonl").unlink()
    with pytest.raises(ValueError, match="piqa_valid"):
        lm_tasks.documents(data / "commonsense", "piqa")
