"""Each arm does what its name says: what it reads, how often, and what it holds on to."""

import math

import pytest
import torch

from circadia.evals import arms
from circadia.evals.arms import Example
from circadia.evals.arms.context import Retrieved, Sliding
from circadia.evals.arms.features import ClassMeans, Gaussians, InCA
from circadia.evals.arms.streamed import EWC, Joint, Replay, Streamed
from circadia.evals.bases import Base, answers

SETTINGS = {"periods": [256], "anchor": None, "rate": 0.1}
WHOLE = {**SETTINGS, "target": "all"}
A = [Example(f"number {i} is", f" {i * i}\n") for i in range(80)]
B = [Example(f"letter {i} is", f" {chr(97 + i % 26)}\n") for i in range(80)]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize(
    "name", ["frozen", "full by AdamW", "LoRA", "first 2 MLPs", "MLPs every 1024", "4 levels", "OSF"]
)
def test_an_arm_from_the_list_answers_with_what_it_learned(name, folder):
    base = Base.load(folder)
    arm = arms.make(name, base, arms.rates(name)[-1], 0)
    asked = [(one.before, one.after) for one in A[:8]]
    before = sum(one.nats for one in answers(base, base.model, asked))
    arm.learn(A)
    arm.finish()
    with arm.reading() as module:
        after = sum(one.nats for one in answers(base, module, asked))
    assert sum(one.nats for one in answers(base, base.model, asked)) == before, "the base was written"
    if name == "frozen":
        assert after == before and arm.cost() == {"tokens": 0, "flops": 0, "bytes": 0}
    else:
        assert after < before - 1 and arm.cost()["tokens"] == sum(len(one.text) for one in A)
        assert arm.cost()["flops"] == 6 * base.parameters * arm.learned and arm.bytes > 0


def test_all_grids_are_equally_long():
    assert {name: len(arms.rates(name)) for name in arms.ARMS if arms.rates(name) != (0.0,)}.keys() >= {"full", "LoRA"}
    assert {len(arms.rates(name)) for name in arms.ARMS} == {1, 3}
    assert set(arms.QUICK) <= set(arms.ARMS) and set(arms.DEFAULT) <= set(arms.ARMS)
    with pytest.raises(ValueError, match="unknown"):
        arms.make("none", None, 0.1, 0)


def test_a_window_holds_the_last_examples_that_fit(base):
    arm = Sliding(base, window=25)
    arm.learn([Example("", "one two three\n"), Example("", "four five\n")])
    assert arm.prompt("?") == "one two three\nfour five\n?" and arm.bytes == 24
    arm.learn([Example("", "six\n")])
    assert arm.prompt("?") == "four five\nsix\n?"
    arm.learn([Example("", "x" * 30)])
    assert arm.prompt("?") == "?"


def test_retrieval_puts_the_most_alike_last(base):
    arm = Retrieved(base, count=2)
    texts = ["the cat sat on a mat", "the cat ate", "rain in Oslo", "the sun and the sea"]
    for _ in range(2):  # a second reading changes nothing
        arm.learn([Example("", text + "\n") for text in texts])
    assert arm.texts == [text + "\n" for text in texts]
    assert arm.prompt("cat on a mat?") == "the cat ate\nthe cat sat on a mat\ncat on a mat?"
    assert arm.prompt("Oslo") == "rain in Oslo\nOslo" and arm.prompt("nothing") == "nothing"
    # A word by hand: cosine of the weighted counts, whose length of the question is the same for all.
    weights = {"rain": math.log(4), "in": math.log(4), "oslo": math.log(4)}
    assert arm._weight("rain") == weights["rain"] and arm._weight("the") == math.log(4 / 3)
    assert Retrieved(base, window=10).prompt("x") == "x"
    arm.window = 15
    assert arm.prompt("cat on a mat?") == "cat on a mat?", "the most alike does not fit"


def taken(arm, monkeypatch):
    """What the stream reads."""
    found = []
    monkeypatch.setattr(arm, "read", lambda tokens: found.append(bytes(tokens)))
    return found


def test_replay_on_top_and_at_equal_compute(base, monkeypatch):
    news = [Example("", f"{i % 10}" * 256) for i in range(40)]
    olds = [Example("", "x" * 256)]
    arm = Replay(base, 0, WHOLE, share=0.2, instead=False)
    found = taken(arm, monkeypatch)
    arm.learn(olds)
    arm.learn(olds)
    assert found == [b"x" * 256] * 2, "nothing is replayed within a task"
    arm.finish()
    arm.learn(news)
    assert found[2].count(b"x") == 10 * 256 and len(found[2]) == 50 * 256, "a fifth of the whole"
    assert found[2].replace(b"x", b"") == b"".join(one.text.encode() for one in news)
    assert arm.bytes > 4 * 42 * 256
    equal_ = Replay(base, 0, WHOLE, share=0.5, instead=True)
    found = taken(equal_, monkeypatch)
    equal_.learn(olds)
    equal_.finish()
    equal_.learn(news)
    assert found[1].count(b"x") == 20 * 256 and len(found[1]) == 40 * 256
    with pytest.raises(ValueError, match="share"):
        Replay(base, 0, WHOLE, share=1.0, instead=True)


def test_joint_mixes_all_tasks(base, monkeypatch):
    arm = Joint(base, 0, WHOLE)
    found = taken(arm, monkeypatch)
    arm.learn(A + B)
    assert arm.at_once and sorted(found[0].splitlines()) == sorted("".join(x.text for x in A + B).encode().splitlines())
    assert found[0][:200].count(b"letter") > 2 and found[0][:200].count(b"number") > 2


def test_ewc_of_no_strength_is_fine_tuning(folder):
    from circadia.evals.bases import Base

    plain, ewc = Streamed(Base.load(folder), 0, WHOLE), EWC(Base.load(folder), 0, SETTINGS, 0.0)
    for arm in (plain, ewc):
        for task in (A, B):
            arm.learn(task)
            arm.finish()
    assert equal(plain.state, ewc.state) and any(x.any() for x in ewc.fisher.values())


def test_ewc_holds_what_its_fisher_information_says(base):
    arm = EWC(base, 0, SETTINGS, 1e12)
    arm.learn(A)
    arm.finish()
    loose = "level0/delta/model.layers.0.mixer.out.weight"
    arm.fisher[loose], arm.pull[loose] = torch.zeros_like(arm.fisher[loose]), torch.zeros_like(arm.pull[loose])
    held = {name: x.clone() for name, x in arm.state.items() if "/delta/" in name}
    arm.learn(B)
    moved = {name: (arm.state[name] - x).abs().masked_fill(arm.fisher[name] < 1e-6, 0) for name, x in held.items()}
    assert max(float(x.max()) for x in moved.values()) < 1e-4 and float((arm.state[loose] - held[loose]).norm()) > 0.01
    with pytest.raises(ValueError, match="strength"):
        EWC(base, 0, SETTINGS, -1.0)


def test_the_step_of_ewc_by_hand(folder):
    """Two tasks before: the parabola of their sum, implicitly after the step of the gradient."""
    from circadia.evals.bases import Base

    arm = EWC(Base.load(folder), 0, SETTINGS, 7.0)
    tokens = list(range(256))
    free = Streamed(Base.load(folder), 0, WHOLE)
    free.read(tokens)
    name = "level0/delta/model.norm.weight"
    f, at = [torch.rand(16), torch.rand(16)], [torch.rand(16), torch.rand(16)]
    arm.fisher, arm.pull = {name: f[0] + f[1]}, {name: f[0] * at[0] + f[1] * at[1]}
    arm.read(tokens)
    s = 0.1 * 7.0
    # theta' = theta_free - s sum_k F_k (theta' - theta*_k)
    new = arm.state[name]
    assert torch.allclose(new, free.state[name] - s * (f[0] * (new - at[0]) + f[1] * (new - at[1])), atol=1e-6)


def test_fisher_information_is_of_a_token(base):
    arm = EWC(base, 0, SETTINGS, 1.0)
    arm.learn(A)
    pieces = list(arm.pieces)
    arm.finish()
    name = "level0/delta/model.norm.weight"
    each = [arm.slopes(piece)[name] for piece in pieces]
    assert len(pieces) > 2
    assert torch.allclose(arm.fisher[name], sum(256 * g**2 for g in each) / len(each), rtol=1e-4)
    assert torch.allclose(arm.pull[name], arm.fisher[name] * arm.state[name])


def featured(kind, base, monkeypatch, points):
    monkeypatch.setattr(kind, "feature", lambda self, text: points[text])
    return kind(base)


def test_gaussians_are_those_of_the_whole_data(base, monkeypatch):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    g = torch.Generator().manual_seed(0)
    mix = torch.randn(5, 5, generator=g, dtype=torch.float64)
    points = {f"{c}{i}": 2 * torch.eye(5, dtype=torch.float64)[c] + torch.randn(5, generator=g).double() @ mix
              for c in range(3) for i in range(40)}  # fmt: skip
    arm = featured(Gaussians, base, monkeypatch, points)
    for c in range(3):
        arm.learn([Example(f"{c}{i}", f" {c}\n") for i in range(40)])
    x, y = torch.stack(list(points.values())).numpy(), [f" {name[0]}\n" for name in points]
    within = sum((x[40 * c : 40 * c + 40] - x[40 * c : 40 * c + 40].mean(0)).T
                 @ (x[40 * c : 40 * c + 40] - x[40 * c : 40 * c + 40].mean(0)) for c in range(3)) / 120  # fmt: skip
    size = within.trace() / 5

    class Same:
        def fit(self, x):
            self.covariance_ = within + 0.01 * size * torch.eye(5).numpy()
            return self

    theirs = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=Same()).fit(x, y)
    found = arm.classify(list(points), [" 0\n", " 1\n", " 2\n", " not seen\n"])
    assert found == theirs.predict(x).tolist()
    assert sum(a == b for a, b in zip(found, y)) > 80


def test_class_means_choose_by_angle_and_inca_asks_the_base(base, monkeypatch):
    points = {"a": [4.0, 0.1], "b": [0.1, 3.0], "c": [-2.0, -2.0], "far a": [50.0, 9.0], "near b": [-0.1, 1.0]}
    points = {name: torch.tensor(x, dtype=torch.float64) + 300 for name, x in points.items()}  # far from the origin
    arm = featured(ClassMeans, base, monkeypatch, points)
    assert arm.classify(["far a"], [" a\n"]) == [""]
    arm.learn([Example(name, f" {name}\n") for name in "abc"])
    assert arm.classify(["far a", "near b"], [" a\n", " b\n", " c\n"]) == [" a\n", " b\n"]
    arm = featured(InCA, base, monkeypatch, {**points, "d": torch.tensor([-50.0, -50.0], dtype=torch.float64)})
    arm.learn([Example(name, f" {name}\n") for name in "abcd"])
    asked = []
    monkeypatch.setattr("circadia.evals.arms.features.chosen", lambda b, m, p, o: asked.append((p, o)) or [1])
    (said,) = arm.classify(["far a"], [" a\n", " b\n", " c\n", " d\n"])
    ((prompt,), names) = asked[0]
    assert len(names) == 3 and " d\n" not in names and said == names[1]
    assert prompt == "".join(f"{n.strip()}{n}" for n in reversed(names)) + "far a"


def test_osf_leaves_the_directions_that_matter(folder):
    base = Base.load(folder)
    arm = arms.make("OSF", base, 0.01, 0)
    first = arm.optimizer
    weights = {name: w.detach().clone() for name, w in base.model.named_parameters() if "down_proj" in name}
    arm.learn(A)
    arm.finish()
    new = {name.removeprefix("base_model.model."): w for name, w in arm.model.named_parameters()}
    for name, old in weights.items():
        u, s, v = torch.linalg.svd(old, full_matrices=False)
        half = len(s) // 2
        # Split anew: the sum of both halves is the learned matrix, and the old upper half is still in it.
        part = arm.model.get_submodule("base_model.model." + name.removesuffix(".weight"))
        learned = part.base_layer.weight.detach()
        assert not torch.equal(learned, old)
        kept = u[:, :half].T @ (learned - old) @ v[:half].T
        assert float(kept.norm()) < 1e-3 * float((learned - old).norm()), name
    assert new and all(p.requires_grad for p in arm.own)
    assert first.state and arm.optimizer is not first and not arm.optimizer.state


def test_a_cartridge_begins_with_what_it_reads_and_spares_our_own_models(folder):
    from circadia.train.tokens import Tokenizer
    from tests.models.retrofit.conftest import base_of

    base = Base(base_of("llama", vocab_size=256), Tokenizer("bytes"))
    arm = arms.make("Cartridge", base, 0.01, 0)
    with arm.reading() as module:
        assert module is base.model
    text = "".join(one.text for one in A[:40])
    before = [p.detach().clone() for p in base.model.parameters()]
    pairs = [(text[:40], text[40:200])]
    asked = lambda module: answers(base, module, pairs)[0].nats  # noqa: E731
    untouched = asked(base.model)
    arm.learn([Example("", text)])
    with arm.reading() as module:
        assert asked(module) < untouched - 1
    assert all(torch.equal(a, b) for a, b in zip(before, base.model.parameters()))
    with pytest.raises(ValueError, match=r"Cartridge. puts keys and values before the text"):
        arms.make("Cartridge", Base.load(folder), 0.01, 0)
