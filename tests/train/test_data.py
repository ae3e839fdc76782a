"""Rows: what is in them, their order, resumption, workers, shares, and the tokenizers behind them."""

import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer
from typer.testing import CliRunner

from circadia.cli import app
from circadia.train import corpus as corpora
from circadia.train.config import DataPart
from circadia.train.corpus import Corpus, prepare
from circadia.train.data import IGNORED, Batches, Order, Stream, cut, held_out_batches
from circadia.train.schedule import scale
from circadia.train.sources import Source
from circadia.train.tokens import Tokenizer

# More workers than cores is what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BYTES = Tokenizer("bytes")


def part(text, **settings):
    return DataPart(**{"path": str(text), "length": 16, "heldout": ["1.txt"], "buffer": 8, **settings})


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip((a.tokens, a.labels), (b.tokens, b.labels))) and a.fresh == b.fresh


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_a_row_marks_its_documents_and_predicts_no_first_token():
    tokens, marks = np.arange(10, 16), np.array([True, False, False, True, False, True])
    inputs, labels, inside, widths = cut(tokens, marks, np.array([1, 2, 3, 4, 5, 6]), 5, reset=True)
    assert inputs.tolist() == [10, 11, 12, 13, 14]
    assert labels.tolist() == [11, 12, IGNORED, 14, IGNORED]
    assert inside.tolist() == [False, False, False, True, False]  # the row's own start needs no mark
    assert widths.tolist() == [2, 3, 0, 5, 0]
    _, labels, inside, widths = cut(tokens, marks, None, 5, reset=False)
    assert (labels.tolist(), inside.any(), widths.tolist()) == ([11, 12, 13, 14, 15], False, [1] * 5)
    inputs, labels, _, widths = cut(tokens[:3], marks[:3], None, 5, reset=True)
    assert (inputs.tolist(), labels.tolist()) == ([10, 11, 12, 0, 0], [11, 12, *[IGNORED] * 3])
    assert widths.tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("carry", [False, True])
def test_an_epoch_has_every_row_once(carry):
    order = Order(rows=24, batch=4, seed=1, carry=carry)
    epochs = [[i for p in range(begin, begin + 24, 4) for i in order.batch_at(p)[0]] for begin in (0, 24)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    if carry:
        assert order.batch_at(4)[0] == [1, 7, 13, 19] and epochs[0] == epochs[1]
        assert [order.batch_at(p)[1] for p in (0, 4, 20, 24)] == [True, False, False, True]
    else:
        assert epochs[0] != epochs[1] and epochs[0] != Order(24, 4, 2, False).batch_at(0)[0]
        assert Order(24, 5, 1, False).batch_at(20)[0] == [*epochs[0][20:], epochs[1][0]]


def make(kind, text, workers=0, share=(0, 1), state=None, seed=3, carry=False):
    source = Source((str(text),))
    data = part(text, workers=workers, streaming=kind == "stream", carry=carry)
    if kind == "stream":
        return Stream(source, BYTES, data, 4, seed, share, state)
    train, _ = prepare(source, BYTES, data.heldout)
    return Batches(train, data, 4, seed, share, 0 if state is None else state[0]["position"])


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_the_order_is_the_seed_s_and_not_the_workers(text, kind):
    count = 60  # more than an epoch
    want = take(make(kind, text), count)
    assert all(map(same, want, take(make(kind, text, workers=3), count)))
    assert not all(map(same, want, take(make(kind, text, seed=4), count)))
    assert len({batch.tokens.numpy().tobytes() for batch in want}) > 40


@pytest.mark.parametrize("kind", ["rows", "carry", "stream"])
@pytest.mark.parametrize("at", [1, 13, 37])
def test_it_goes_on_anywhere_with_other_workers(text, kind, at):
    carry = kind == "carry"
    begun = make(kind, text, workers=2, carry=carry)
    take(begun, at)
    state = begun.state()
    want = take(begun, 20)
    assert all(map(same, want, take(make(kind, text, workers=1, state=state, carry=carry), 20)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_reading_takes_no_random_numbers_from_the_model(text, kind, workers):
    """Else a run that is resumed, and so makes its readers anew, would draw other ones for dropout."""
    before = torch.get_rng_state()
    take(make(kind, text, workers=workers), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_document_that_begins_with_a_row_does_not_go_on_in_the_carried_memory():
    corpus = Corpus(np.arange(65, dtype=np.uint8), np.array([0, 16, 40, 48]), np.ones(65, np.uint8))
    data = DataPart(path="x", length=16, carry=True)
    held = list(held_out_batches(corpus, data, 1, 0))
    batches = Batches(corpus, data, 1, 0)
    for found in (held, take(batches, 4)):
        marks = [[] if b.reset is None else b.reset[0].nonzero().flatten().tolist() for b in found]
        assert marks == [[], [0], [8], [0]] and [b.fresh for b in found] == [True, False, False, False]
    plain = Batches(corpus, DataPart(path="x", length=16), 4, 0)
    assert next(plain).reset.nonzero()[:, 1].tolist() == [8]  # every row starts fresh


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_processes_share_the_batches_of_one(text, kind):
    whole = take(make(kind, text), 5)
    shares = [take(make(kind, text, share=(rank, 2)), 5) for rank in (0, 1)]
    for i, batch in enumerate(whole):
        assert torch.equal(batch.tokens, torch.cat([share[i].tokens for share in shares]))
        assert torch.equal(batch.labels, torch.cat([share[i].labels for share in shares]))


def test_a_stream_reads_the_documents_and_leaves_out_the_held_out_one(text):
    stream = Stream(Source((str(text),)), BYTES, part(text, length=64, streaming=True), 4, 0)
    rows = torch.cat([batch.tokens for batch in take(stream, 60)])
    inside = "".join((text / f"{i}.txt").read_text() for i in (0, 2, 3, 4)) * 3
    assert all(bytes(row.tolist()).decode() in inside for row in rows)
    held = (text / "1.txt").read_text()
    assert not any(bytes(row.tolist()).decode() in held for row in rows)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_held_out_token_is_predicted_once(text, carry, size):
    _, held = prepare(Source((str(text),)), BYTES, ["2.txt", "3.txt"])
    data = part(text, carry=carry)
    found, count = [], set()
    for rank in range(size):
        batches = list(held_out_batches(held, data, 2, 0, (rank, size)))
        count.add(len(batches))
        found += [batch.labels[batch.labels != IGNORED] for batch in batches]
        assert sum(int(b.widths.sum()) for b in batches) == sum(int((b.labels != IGNORED).sum()) for b in batches)
    want = "".join((text / name).read_text()[1:] for name in ("2.txt", "3.txt"))
    assert sorted(torch.cat(found).tolist()) == sorted(want.encode())
    assert len(count) == 1  # as many forward passes in every process


def test_part_of_the_held_out_text_is_spread_over_it(text):
    _, held = prepare(Source((str(text),)), BYTES, ["2.txt"])
    rows = torch.cat([b.tokens for b in held_out_batches(held, part(text), 2, 64)])
    found = (text / "2.txt").read_text()
    places = [found.index(bytes(row.tolist()).decode()) / len(found) for row in rows]
    assert len(rows) == 4 and places[0] == 0 and places[-1] > 0.5


def test_tokens_are_kept_between_runs_and_made_again_when_a_file_changes(text, tmp_path, monkeypatch):
    monkeypatch.setenv("CIRCADIA_HOME", str(tmp_path / "home"))
    (tmp_path / "a.txt").write_text("first text")
    source = Source((str(tmp_path / "a.txt"),))
    assert bytes(prepare(source, BYTES, 0.0)[0].tokens) == b"first text"
    with monkeypatch.context() as patch:
        patch.setattr(corpora, "encoded", None)  # not called again
        assert bytes(prepare(source, BYTES, 0.0)[0].tokens) == b"first text"
    (tmp_path / "a.txt").write_text("another, longer text")
    assert bytes(prepare(source, BYTES, 0.0)[0].tokens) == b"another, longer text"
    assert sorted(path.name[0] for path in (tmp_path / "home" / "tokens").iterdir()).count(".") == 0


def test_a_fraction_of_a_single_document_is_its_end(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 90 + "y" * 10)
    train, held = prepare(Source((str(tmp_path / "a.txt"),)), BYTES, 0.1)
    assert (bytes(train.tokens), bytes(held.tokens)) == (b"x" * 90, b"y" * 10)
    for pattern, message in (("b*", "fits no document"), ("a*", "fits every document")):
        with pytest.raises(ValueError, match=message):
            prepare(Source((str(tmp_path / "a.txt"),)), BYTES, [pattern])


def test_too_little_text_is_refused():
    corpus = Corpus(np.zeros(40, np.uint8), np.array([0]))
    with pytest.raises(ValueError, match=r"40 tokens for training, too few for 4 rows of data\.length=16"):
        Batches(corpus, DataPart(path="x", length=16, carry=True), 4, 0)
    with pytest.raises(ValueError, match=r"too few for 1 rows of data\.length=64"):
        Batches(corpus, DataPart(path="x", length=64), 4, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_worker_s_mistake_arrives_as_one_message(tmp_path, workers):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"no": 1}\n')
    with pytest.raises(ValueError, match=r"^data\.text='text': a\.jsonl#1 has no such text; its fields are: no$"):
        list(corpora.encoded(Source((str(tmp_path),)), BYTES, lambda *_: False, workers))


@pytest.fixture(scope="module")
def vocabulary(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokenizer") / "bpe"
    done = CliRunner().invoke(app, ["tokenizer", "train", str(text), "--out", str(out), "--size", "290"])
    assert done.exit_code == 0, done.output
    assert "290 tokens" in done.output
    return out


def test_a_trained_tokenizer_is_an_ordinary_one(vocabulary, text):
    theirs, ours = AutoTokenizer.from_pretrained(vocabulary), Tokenizer(str(vocabulary))
    sample = (text / "0.txt").read_text()
    tokens, _ = ours.encode(sample)
    assert theirs.decode(tokens[:-1]) == sample and tokens[-1] == ours.end == theirs.eos_token_id
    assert len(tokens) < len(sample) / 2 and ours.size == 290
    assert Tokenizer(str(vocabulary / "tokenizer.json")).encode(sample)[0].tolist() == tokens.tolist()


@pytest.mark.parametrize("sample", ["be la", "", "Ünïcödé: 世界 🙂🙂", " two  spaces ", "a\n\nb"])
def test_the_bytes_of_tokens_add_up_to_the_text(vocabulary, sample):
    for tokenizer in (BYTES, Tokenizer(str(vocabulary))):
        tokens, widths = tokenizer.encode(sample)
        assert len(tokens) == len(widths) and widths.sum() == len(sample.encode())
    assert bytes(BYTES.encode(sample)[0]) == sample.encode()


def test_bytes_that_a_tokenizer_drops_count_with_its_next_token(tmp_path):
    backend = Backend(models.WordLevel({"two": 0, "words": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "words.json"))
    tokens, widths = Tokenizer(str(tmp_path / "words.json")).encode("  two   wörds \n")
    assert (tokens.tolist(), widths.tolist()) == ([0, 2], [5, 11])


def test_tokens_of_any_size_come_back_from_the_cache(vocabulary, text):
    tokenizer = Tokenizer(str(vocabulary))
    train, held = prepare(Source((str(text),)), tokenizer, ["1.txt"], workers=2)
    want = [tokenizer.encode((text / f"{i}.txt").read_text())[0] for i in (0, 2, 3, 4)]
    assert np.array_equal(train.tokens, np.concatenate(want)) and train.tokens.dtype == np.uint16
    assert train.starts.tolist() == [0, *itertools.accumulate(len(one) for one in want[:-1])]
    assert held.widths.sum() == (text / "1.txt").stat().st_size


def test_another_end_of_documents_is_another_cache(vocabulary, text, tmp_path):
    """As a base model and its instructed one have it: one vocabulary, two ends."""
    theirs = AutoTokenizer.from_pretrained(vocabulary)
    theirs.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    last = []
    for end in (theirs.eos_token, "<|turn|>"):
        theirs.eos_token = end
        theirs.save_pretrained(tmp_path / end.strip("<|>"))
        tokenizer = Tokenizer(str(tmp_path / end.strip("<|>")))
        last.append(prepare(Source((str(text),)), tokenizer, 0.0)[0].tokens[-1])
    assert last == [theirs.get_vocab()[name] for name in ("<|end|>", "<|turn|>")]


def test_tokenizer_mistakes(tmp_path, text):
    with pytest.raises(ValueError, match=r"data\.tokenizer='.*nothing' cannot be loaded"):
        _ = Tokenizer(str(tmp_path / "nothing")).size
    for arguments, message in ((["--size", "100"], "at least 257"), (["--size", "300"], "exists: choose")):
        done = CliRunner().invoke(app, ["tokenizer", "train", str(text), "--out", str(tmp_path), *arguments])
        assert done.exit_code == 2 and message in done.stderr


def test_schedules():
    def rates(kind, steps=11, warmup=0.0, decay=0.0, floor=0.0):
        return [scale(i, steps, kind, warmup, decay, floor) for i in range(steps)]

    assert rates("constant", warmup=0.3) == pytest.approx([1 / 3, 2 / 3, *[1] * 9])
    assert rates("cosine")[::5] == pytest.approx([1, 0.5, 0])
    assert rates("cosine", floor=0.2)[::5] == pytest.approx([1, 0.6, 0.2])
    assert rates("wsd", steps=10, decay=0.4) == pytest.approx([*[1] * 6, 0.75, 0.5, 0.25, 0])
    assert rates("wsd", steps=10, decay=0.4, floor=0.2)[-2:] == pytest.approx([0.4, 0.2])
    assert rates("wsd", steps=4) == [1] * 4
