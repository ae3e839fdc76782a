"""Several answers in one forward pass are those that each would be by itself."""

import threading
from dataclasses import replace

import pytest
import torch

from circadia.live.text import Words
from circadia.models.retrofit import retrofit
from circadia.models.retrofit.several import several
from circadia.models.retrofit.wear import worn
from circadia.serve.bank import Memory
from circadia.serve.batch import Batch, Engine, Row, alike
from circadia.serve.decode import Call, Chooser, Ended, Wish, say
from circadia.serve.rows import Rows, fault
from tests.live.learners import model
from tests.models.retrofit.conftest import base_of

WORDS = Words("bytes")
PATIENCE = 120.0


def memories(base, learners, scale=0.3, seed=0):
    """Random ones for all its matrices; the first is the frozen base."""
    generator = torch.Generator().manual_seed(seed)
    found = [Memory(None, "main", None, "", WORDS, {}, 0)]
    for number in range(learners):
        state = base.start()
        for name, x in state.items():
            if name.split("/")[1] in ("delta", "a", "b", "gate"):
                state[name] = scale * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
        readings = {m: r for m, r in base.readings(state).items() if r.deltas or r.pairs}
        assert readings
        found.append(Memory(f"l{number}", "main", 1, f"u{number}", WORDS, readings, 0))
    return found


def wishes(many, seed=0, new=12, **given):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (many,), generator=generator).tolist()
    return [Wish(tuple(torch.randint(3, 250, (n,), generator=generator).tolist()), new + i % 3, seed=i, **given)
            for i, n in enumerate(lengths)]  # fmt: skip


KINDS = {
    "full": {},
    "lowrank": {"capacity": "lowrank", "rank": 3},
    "gated": {"capacity": "lowrank", "rank": 3, "gate": ["router", "always"]},
    "mixed": {"capacity": ["full", "lowrank"]},
    "some layers": {"layers": [0]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_reads_with_its_own_memory(kind):
    base = retrofit(base_of("llama", vocab_size=256, num_hidden_layers=2), (8, 16), context=8, **KINDS[kind])
    worn_by = memories(base, 3)
    rows = [worn_by[i] for i in (1, 0, 2, 1, 3, 0)]  # two of one learner, two frozen
    ids = torch.randint(0, 256, (6, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        with worn(several([row.readings for row in rows])):
            together = base.base(ids).logits
        for i, row in enumerate(rows):
            with row.on():
                alone = base.base(ids[i : i + 1]).logits[0]
            assert (together[i] - alone).abs().max() <= 1e-5 * alone.abs().max().clamp_min(1), i
        plain = base.base(ids).logits
    assert (together[0] - plain[0]).abs().max() > 0.01  # a memory changes something
    assert torch.allclose(together[1], plain[1], atol=1e-6)


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2"]
)
def test_rows_of_different_lengths_come_and_go(family):
    window = {"sliding_window": 6} if family in ("mistral", "gemma2", "gemma3_text", "phi3") else {}
    base = base_of(family, vocab_size=256, **window)
    assert fault(base) is None
    generator = torch.Generator().manual_seed(0)

    def some(n):
        return torch.randint(3, 250, (n,), generator=generator).tolist()

    texts = {name: some(n) for name, n in (("a", 12), ("b", 3), ("c", 20), ("d", 1))}
    more = {name: some(9) for name in texts}
    alone = {}
    for name in texts:
        rows = Rows(base)
        alone[name] = [rows.read([texts[name]])[0], *(rows.read([[token]])[0] for token in more[name])]
        whole = base(torch.tensor([texts[name] + more[name]])).logits[0, len(texts[name]) - 1 :]
        assert torch.allclose(torch.stack(alone[name]), whole, atol=1e-5)

    rows, there, at = Rows(base), [], dict.fromkeys(texts, 0)
    for step in range(14):
        new = {0: ["a", "b"], 2: ["c"], 4: ["d"]}.get(step, [])
        if new:
            own = Rows(base)
            for name, logits in zip(new, own.read([texts[n] for n in new])):
                assert torch.allclose(logits, alone[name][0], atol=1e-5), name
            rows.join(own)
            there += new
        for name, logits in zip(there, rows.read([[more[name][at[name]]] for name in there])):
            at[name] += 1
            assert torch.allclose(logits, alone[name][at[name]], atol=1e-5), (name, step)
        stay = [i for i, name in enumerate(there) if at[name] < 9 and not (name == "c" and step == 6)]
        rows.keep(stay)
        there = [there[i] for i in stay]
        if not there:
            break
        assert rows.width == max(len(texts[n]) + at[n] for n in there) == rows.cache.get_seq_length()
    assert at == {"a": 9, "b": 9, "c": 5, "d": 9}


def test_a_base_that_cannot_is_found_out():
    class Forgetful(torch.nn.Module):
        """Takes no notice of padding."""

        def __init__(self):
            super().__init__()
            self.base = base_of("llama", vocab_size=256)

        def forward(self, input_ids, past_key_values, use_cache, attention_mask):
            return self.base(input_ids, past_key_values=past_key_values, use_cache=use_cache)

    assert "away from those without" in fault(Forgetful())
    assert "HopeCache" in fault(base_of("circadia"))


@pytest.mark.parametrize("kind", ["full", "lowrank"])
@pytest.mark.parametrize("given", [{"temperature": 0.0, "logprobs": 2}, {"temperature": 1.3, "top_p": 0.9}])
def test_answers_of_a_batch_are_those_of_each_alone(kind, given):
    base = retrofit(base_of("llama", torch.float64, vocab_size=256), (8, 16), context=8, **KINDS[kind])
    known, asked = memories(base, 3), wishes(9, **given)
    asked[4] = Wish(asked[4].ids, 40, **{**given, "temperature": 0.0, "bias": {65: 90.0, 66: 90.0}, "presence": 2.0,
                                         "stop": ("AB", "BA", "AA")})  # fmt: skip
    who = [known[i % 4] for i in range(9)]
    alone = [say(base.base, memory, wish, [2], Call(60)) for memory, wish in zip(who, asked)]
    batch, told = Batch(base.base), [[] for _ in asked]
    rows = [Row(memory, Chooser(wish, WORDS, [2], Call(60), told[i].append))
            for i, (memory, wish) in enumerate(zip(who, asked))]  # fmt: skip
    most, waiting = 0, list(rows)
    while waiting or batch.rows:  # they come two at a time
        batch.join([waiting.pop(0) for _ in range(min(2, len(waiting)))])
        if batch.rows:
            most = max(most, len(batch.rows))
            batch.step()
    assert most > 4
    for i, (row, want) in enumerate(zip(rows, alone)):
        assert row.over.is_set() and row.error is None
        said = row.chooser.finish()
        assert (said.text, said.tokens, said.count, said.reason) == (want.text, want.tokens, want.count, want.reason), i
        assert "".join(piece.text for piece in told[i]) == said.text
        for mark, other in zip(said.marks, want.marks, strict=True):
            assert mark.token == other.token and mark.logprob == pytest.approx(other.logprob, abs=1e-5)
    assert alone[4].reason == "stop" and len({said.text for said in alone}) == 9


def test_an_answer_that_is_alone_has_the_bits_of_generate():
    base = model(vocab=256)
    known, (wish,) = memories(base, 1), wishes(1, logprobs=3, temperature=0.0)
    for memory in known:
        want = say(base.base, memory, wish, [], Call(60))
        batch, row = Batch(base.base), Row(memory, Chooser(wish, WORDS, [], Call(60), None))
        batch.join([row])
        while batch.rows:
            batch.step()
        assert row.chooser.finish().marks == want.marks


def test_what_goes_wrong_in_a_row_is_its_own_affair():
    base = model(vocab=256)
    known, asked = memories(base, 2), wishes(4, temperature=0.0)
    broken = Memory("x", "main", 1, "x", WORDS, memories(base, 1, scale=float("nan"))[1].readings, 0)
    want = [say(base.base, known[i], asked[i], [], Call(60)).tokens for i in (1, 2)]
    gone, late = Call(60), Call(60)
    late.cancel()
    rows = [Row(memory, Chooser(wish, WORDS, [], call, None)) for memory, wish, call in (
        (known[1], asked[1], Call(60)), (broken, asked[0], Call(60)), (known[2], asked[2], Call(60)),
        (known[0], asked[3], gone), (known[0], asked[3], late))]  # fmt: skip
    batch = Batch(base.base)
    batch.join(rows)
    assert isinstance(rows[1].error, ValueError) and "NaN" in str(rows[1].error) and len(batch.rows) == 3
    assert isinstance(rows[4].error, Ended) and not rows[4].chooser.made
    gone.cancel()
    batch.step()
    assert isinstance(rows[3].error, Ended) and len(batch.rows) == 2
    while batch.rows:
        batch.step()
    assert [rows[i].chooser.finish().tokens for i in (0, 2)] == want


def test_a_pass_that_fails_ends_its_rows_and_the_next_ones_are_answered(monkeypatch):
    base = model(vocab=256)
    (memory,), (wish,) = memories(base, 0), wishes(1, temperature=0.0)
    want = say(base.base, memory, wish, [], Call(60))
    engine = Engine(base.base, [])
    try:
        real, calls = Rows.read, []

        def read(self, tokens):
            calls.append(len(tokens))
            if len(calls) in (1, 4):  # once at the prompt, once later
                raise RuntimeError("no memory")
            return real(self, tokens)

        monkeypatch.setattr(Rows, "read", read)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no memory"):
                engine.say(memory, wish, Call(60))
        assert engine.say(memory, wish, Call(60)).tokens == want.tokens
    finally:
        engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.say(memory, wish, Call(60))


@pytest.mark.parametrize("part", ["join", "keep"])
def test_where_rows_cannot_come_or_go_all_end_and_the_next_ones_are_answered(monkeypatch, part):
    """Else the thread would be gone, and everybody would wait for ever."""
    base = model(vocab=256)
    (memory,), (wish, short, _) = memories(base, 0), wishes(3, new=9, temperature=0.0)
    short = replace(short, new=2)
    batch, want = Batch(base.base), say(base.base, memory, wish, [], Call(60)).tokens

    def fails(self, *given):
        raise RuntimeError("no memory")

    def rows():
        return [Row(memory, Chooser(one, WORDS, [], Call(60), None)) for one in (wish, short)]

    first = rows()
    batch.join(first)
    monkeypatch.setattr(Rows, part, fails)
    new = rows()
    batch.step() if part == "keep" else batch.join(new)  # the short one goes; or two more come
    ended = [row for row in first + new if row.over.is_set()]
    assert len(ended) == (2 if part == "keep" else 4) and batch.rows == []
    assert [str(row.error) for row in ended] == (["no memory", "None"] if part == "keep" else ["no memory"] * 4)
    monkeypatch.undo()
    last = rows()
    batch.join(last)
    while batch.rows:
        batch.step()
    assert last[0].chooser.finish().tokens == want


def test_the_engine_reads_for_all_who_ask_at_once():
    base = model(vocab=256)
    known, asked = memories(base, 3), wishes(8, new=40, temperature=0.0)
    engine, found = Engine(base.base, []), {}
    ready = threading.Barrier(8)

    def ask(i):
        ready.wait(PATIENCE)
        found[i] = engine.say(known[i % 4], asked[i], Call(60))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    engine.close()
    assert sorted(found) == list(range(8)) and engine.made > 2 * engine.passes
    assert all(found[i].count == asked[i].new for i in found)


def test_prompts_of_like_length_are_read_together():
    def rows(*lengths):
        return [Row(None, Chooser(Wish(tuple(range(n)), 1), WORDS, [], Call(1), None)) for n in lengths]

    found = [[len(row.wish.ids) for row in group] for group in alike(rows(100, 3, 90, 4, 5, 110))]
    assert found == [[3, 4, 5], [90, 100, 110]]
    assert [len(group) for group in alike(rows(5000, 5000, 20))] == [1, 1, 1]
