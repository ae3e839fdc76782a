"""What a model says is the same alone and among others, and by the conventions of the likelihoods of lm-eval."""

import math
from types import SimpleNamespace

import pytest
import torch

from circadia.evals import bases
from circadia.evals.bases import answers, chosen, split, written
from circadia.evals.likelihood import Scorer

PAIRS = [("the sea is", " wide\n"), ("who", " is it? no one at all\n"), ("a b c d e f g:", " x"), ("x ", "y")]


def test_answers_are_those_of_the_scorer(base, monkeypatch):
    monkeypatch.setattr(bases, "BATCH", 2)  # rows of several lengths together
    scorer = Scorer(base.model, base.encode, 10, 2048)
    for pair, one in zip(PAIRS, answers(base, base.model, PAIRS)):
        ((nats, greedy),) = scorer.scores([scorer.pair(*pair)])
        assert one.nats == pytest.approx(-nats, rel=1e-5) and (one.right == one.tokens) == greedy
    assert [one.tokens for one in answers(base, base.model, PAIRS)] == [6, 22, 2, 2]


class Alphabet(torch.nn.Linear):
    """Expects after each byte the next one, as much as a logit of 2 says."""

    def forward(self, ids, use_cache, logits_to_keep):
        logits = 2.0 * torch.nn.functional.one_hot((ids + 1) % 256, 256)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_right_tokens_are_those_of_greedy_decoding(base):
    (one, other) = answers(base, Alphabet(1, 1), [("abc", "defzABCz"), ("x", "yz")])
    assert (one.right, one.tokens, other.right, other.tokens) == (5, 8, 2, 2)  # d e f, B C
    whole = math.log(255 + math.exp(2))
    assert one.nats == pytest.approx(5 * (whole - 2) + 3 * whole) and other.nats == pytest.approx(2 * (whole - 2))


def test_a_choice_is_the_greedy_way_among_the_options(base):
    options = [" red\n", " rose\n", " blue\n", " black\n"]
    prompts = ["the sky is", "a:", "what colour has it, after all?"]
    for prompt, found in zip(prompts, chosen(base, base.model, prompts, options)):
        left, text = list(options), prompt
        while len(left) > 1:
            at = len(text) - len(prompt)
            with torch.no_grad():
                scores = base.model(torch.tensor([list(text.encode())])).logits[0, -1]
            best = max({option[at] for option in left}, key=lambda c: scores[ord(c)])
            left = [option for option in left if option[at] == best]
            text += best
        assert options[found] == left[0]
    with pytest.raises(ValueError, match="options"):
        chosen(base, base.model, prompts, ["a", "a"])
    assert chosen(base, base.model, prompts, [" only\n"]) == [0, 0, 0]


def test_too_long_a_prompt_loses_its_beginning(base, monkeypatch):
    monkeypatch.setattr(type(base), "window", 10)
    assert split(base, "0123456789", " ab") == (list(b"3456789"), list(b" ab"))


def test_writing_ends_with_the_line(base, monkeypatch):
    asked = {}

    def generate(ids, stopping_criteria, max_new_tokens, **given):
        said = b" Oslo, yes\nmore"
        for i in range(1, len(said) + 1):
            row = torch.cat([ids, torch.tensor([list(said[:i])])], 1)
            if stopping_criteria(row, None).all():
                break
        asked["length"], asked["limit"] = i, max_new_tokens
        return row

    monkeypatch.setattr(base.model, "generate", generate)
    assert written(base, base.model, "Where?", 20) == "Oslo, yes" and asked == {"length": 11, "limit": 20}
