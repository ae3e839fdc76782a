"""Choosing tokens and cutting text, without a model."""

import math

import pytest
import torch

from circadia.live.text import Words
from circadia.serve.decode import Call, Chooser, Ended, Wish


class Whole(Words):
    """Each token is a piece of text."""

    def __init__(self, *pieces):
        super().__init__("bytes")
        self.pieces = pieces

    def decode(self, tokens):
        return b"".join(self.pieces[t] for t in tokens).decode("utf-8", "replace")


def run(words, tokens, ends=(), **wish):
    """What is told of these tokens, piece by piece, and the chooser."""
    told = []
    wish = Wish((1,), len(tokens), **{"temperature": 0.0, **wish})
    chooser = Chooser(wish, words, ends, Call(60), lambda piece: told.append(piece.text))
    for token in tokens:
        scores = torch.zeros(len(words.pieces))
        scores[token] = 9.0
        assert chooser.next(scores) == token
        if chooser.over:
            break
    chooser.finish()
    return told, chooser


def test_half_a_character_waits_for_its_other_half():
    told, chooser = run(Whole(b"a", b"\xc3", b"\xbc", b"b"), [0, 1, 2, 3])
    assert told == ["a", "ü", "b"] and chooser.text == "aüb"
    told, chooser = run(Whole(b"a", b"\xc3"), [0, 1])
    assert "".join(told) == chooser.text == "a\ufffd"


@pytest.mark.parametrize(
    ("stops", "want", "tokens"),
    [
        (("STOP",), "ab", 2),
        (("OP!", "TOPx"), "abST", 3),  # a token that the cut goes through stays out where it would be too long
        (("zzz",), "abSTOP!c", 5),
        (("c", "b"), "a", 1),
    ],
)
def test_nothing_of_a_stop_is_told(stops, want, tokens):
    words = Whole(b"a", b"b", b"ST", b"OP!", b"c")
    told, chooser = run(words, [0, 1, 2, 3, 4], stop=stops)
    assert "".join(told) == chooser.text == want and len(chooser.tokens) == tokens
    assert chooser.reason == ("length" if want.endswith("c") else "stop")
    assert words.decode(chooser.tokens) == want


def test_an_end_token_ends_and_is_no_text():
    told, chooser = run(Whole(b"a", b"<end>", b"b"), [0, 1, 2], ends=[1])
    assert "".join(told) == "a" and chooser.reason == "stop" and chooser.tokens == [0] and chooser.made == 2


def test_white_space_around_an_answer_is_not_told():
    told, chooser = run(Whole(b" ", b"a", b"\n"), [0, 0, 1, 0, 1, 2, 0], trim=True)
    assert "".join(told) == chooser.text == "a a" and "" not in told


def test_the_tokens_of_a_trimmed_answer_reach_to_its_stop():
    """They are what feedback is about."""
    words = Whole(b" ", b"Os", b"lo", b"\n", b"User:")
    for tokens in ([0, 1, 2, 3, 4], [0, 3, 0, 1, 2, 3, 4]):
        _, chooser = run(words, tokens, stop=("\nUser:",), trim=True)
        assert chooser.text == "Oslo" and chooser.tokens == tokens[:-2]


def test_sampling_follows_the_probabilities_within_top_p():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    words = Whole(b"a", b"b", b"c", b"d")

    def counts(n=2000, **wish):
        chooser = Chooser(Wish((1,), n, seed=3, **wish), words, (), Call(60), None)
        found = torch.tensor([chooser._choose(p.log()) for _ in range(n)])
        return torch.bincount(found, minlength=4) / n

    assert torch.allclose(counts(), p, atol=0.04)
    assert torch.allclose(counts(top_p=0.7), torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.04)
    assert torch.allclose(counts(top_p=0.1), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    coldest = Chooser(Wish((1,), 1, temperature=1e-308), words, (), Call(60), None)
    assert coldest._choose(p.log() + 9) == 0
    warm = (p**0.5) / (p**0.5).sum()
    assert torch.allclose(counts(temperature=2.0), warm, atol=0.04)


def test_a_call_ends_at_the_next_token_and_no_number_is_no_token():
    words = Whole(b"a", b"b")
    call = Call(60)
    chooser = Chooser(Wish((1,), 5), words, (), call, None)
    chooser.next(torch.zeros(2))
    call.cancel()
    with pytest.raises(Ended):
        chooser.next(torch.zeros(2))
    with pytest.raises(Ended):
        Call(-1).check()
    with pytest.raises(ValueError, match="NaN"):
        Chooser(Wish((1,), 5), words, (), Call(60), None).next(torch.tensor([0.0, math.nan]))
