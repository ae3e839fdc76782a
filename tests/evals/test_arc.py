"""ARC's grids, self-edits on them, and the arms of the suite on a few tiny tasks."""

import gzip
import json
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from circadia.evals import arc, edits, grids, runner
from circadia.evals.edits import Edit, Policy
from circadia.evals.grids import END, IN, OUT, ROW, TASK, Puzzle, View
from circadia.evals.suite import Options
from circadia.models.retrofit import retrofit
from circadia.sleep.dream import Dreaming
from circadia.sleep.fit import Meter
from circadia.sleep.sample import sample
from circadia.sleep.student import Teacher

ODD = ((0, 1, 2), (3, 4, 5))  # no view of it is another one
SMALL = {"side": 3, "tokens": 120, "tested": 3, "practice": 2, "width": 16, "layers": 1, "mlp": 16, "steps": 3,
         "rank": 2, "examples": 4, "edits": 2, "candidates": 3, "tries": 4, "views": 2}  # fmt: skip


def grid(chance, side=3):
    return tuple(tuple(chance.randrange(6) for _ in range(side)) for _ in range(side))


def puzzle(name, shown=3, asked=1):
    """Everything is turned by half."""
    chance = random.Random(name)
    pairs = [(one, grids.turned(one, 2)) for one in (grid(chance) for _ in range(shown + asked))]
    return Puzzle(name, tuple(pairs[:shown]), tuple(pairs[shown:]))


def raw(task):
    return {"id": task.name} | {
        part: [{"input": a, "output": b} for a, b in own] for part, own in (("train", task.shown), ("test", task.asked))
    }


@pytest.fixture
def data(tmp_path):
    arc._read.cache_clear()
    arc._lab.cache_clear()
    folder = tmp_path / "arc_agi"
    folder.mkdir()
    tasks = [puzzle(f"t{i}", asked=1 + i % 2) for i in range(9)] + [puzzle("last")]
    with gzip.open(folder / grids.FILES[0], "wt") as file:
        file.write("\n".join(json.dumps(raw(task)) for task in tasks))
    with gzip.open(folder / grids.FILES[1], "wt") as file:
        json.dump({"t5": {}, "t3": {}, "elsewhere": {}}, file)
    yield tmp_path
    arc._lab.cache_clear()
    arc._read.cache_clear()


@pytest.fixture
def net():
    return edits_net()


def edits_net(layers=1):
    shape = arc.networks.Shape(grids.VOCABULARY, width=16, layers=layers, mlp=16, own={"chunk": 64})
    net = arc.networks.build("transformer++", shape)
    with torch.no_grad():  # as if trained: what it says depends on what it has read
        for p in net.parameters():
            p.mul_(3.0 if p.ndim == 2 else 1.0)
    return net.requires_grad_(False)


def test_views_are_all_of_the_square_and_undo_themselves() -> None:
    assert grids.turned(ODD, 1) == ((3, 0), (4, 1), (5, 2)) and grids.turned(ODD, 2) == ((5, 4, 3), (2, 1, 0))
    assert grids.turned(ODD, 4) == ((0, 3), (1, 4), (2, 5)) and grids.turned(ODD, 5) == ((2, 1, 0), (5, 4, 3))
    assert len({grids.turned(ODD, turn) for turn in range(8)}) == 8
    chance = random.Random(0)
    seen = [grids.view(chance) for _ in range(200)]
    assert {one.turn for one in seen} == set(range(8)) and all(one.colours[0] == 0 for one in seen)
    assert len({one.colours for one in seen}) > 190 and all(sorted(one.colours) == list(range(10)) for one in seen)
    for turn in range(8):
        one = View(turn, (0, 2, 3, 1, 5, 4, 6, 7, 8, 9))
        assert one.back(one.seen(ODD)) == ODD
    assert View(0, (0, 2, 3, 1, 5, 4, 6, 7, 8, 9)).seen(ODD) == ((0, 2, 3), (1, 5, 4))
    pair = (((1, 1, 2), (0, 3, 1)), ((2, 1), (1, 1), (4, 0)))  # reflections have other names than turns
    assert {grids.canonical((one.seen(pair[0]), one.seen(pair[1]))) for one in seen} == {grids.canonical(pair)}
    assert grids.canonical((ODD, ODD)) != grids.canonical(pair)


def test_what_is_written_is_read_back_and_nothing_else() -> None:
    pairs = [(ODD, ((7,),)), (((8,),), ODD)]
    first = [TASK, IN, 0, 1, 2, ROW, 3, 4, 5, ROW, OUT, 7, ROW, END]
    tokens = grids.written(pairs)
    assert tokens == [*first, IN, 8, ROW, OUT, 0, 1, 2, ROW, 3, 4, 5, ROW, END]
    assert tokens == [*grids.question(pairs[:1], ((8,),)), *grids.answer(ODD)]
    assert [i for i, yes in enumerate(grids.outputs(tokens)) if yes] == [11, 12, 13, *range(18, 27)]
    assert grids.decode(grids.answer(ODD)) == ODD and grids.decode([*grids.answer(((7,),)), 3, IN]) == ((7,),)
    for wrong in ([0, 1, ROW], [0, 1, END], [END], [ROW, END], [0, 1, ROW, 2, ROW, END], [0, IN, ROW, END], [],
                  [0, ROW, ROW, END], [0, grids.VOCABULARY - 1, ROW, END]):  # fmt: skip
        assert grids.decode(wrong) is None, wrong
    assert grids.cells(((1, 2),), ((1, 3),)) == 0.5
    assert grids.cells(((1,), (2,)), ((1, 2),)) is None and grids.cells(None, ((1,),)) is None


def test_floors_by_hand() -> None:
    shown = ((ODD, ((1, 1), (2, 0))), (((1,),), ((1, 2), (1, 0))))
    task = Puzzle("x", shown, ((((4,),), ((1, 1), (1, 3))), (((1, 1), (1, 1)), ((1, 1), (1, 1)))))
    assert grids.majority(task, ((4,),)) == ((1, 1), (1, 1))
    said = arc.floor(task, grids.majority)
    assert (said["exact"], said["sized"], said["cells"]) == (0.0, 1.0, (3 / 4 + 1) / 2)  # one of two is not the task
    copied = arc.floor(task, lambda task, grid: grid)
    assert (copied["exact"], copied["sized"], copied["cells"]) == (0.0, 0.5, 1.0)
    # Every output has another size: then as large as the input.
    assert grids.majority(Puzzle("y", ((ODD, ((6,),)), (ODD, ((6, 6),))), ()), ODD) == ((6,) * 3,) * 2


def test_nothing_of_the_test_is_trained_on_not_even_turned_and_recoloured(data) -> None:
    tasks, listed = grids.read(data / "arc_agi")
    assert listed == ["elsewhere", "t3", "t5"]
    plain = grids.split(tasks, listed, 3, 120, 3, 2)
    assert plain["test"][:2] == ["t3", "t5"] and [len(plain[part]) for part in ("test", "practice", "base")] == [
        3,
        2,
        5,
    ]
    assert grids.split(tasks, listed, 3, 120, 1, 2)["test"] == ["t3", "t5"]  # SEAL's are tested however few are
    # Copies of one task of each part under other names: turned, recoloured, in another order, one pair only.
    other = View(5, (9, 2, 3, 1, 5, 4, 6, 7, 8, 0))
    copies = {}
    for part in ("test", "practice"):
        one = tasks[plain[part][0]]
        mixed = [*other.pairs(one.shown[1:]), *puzzle("new").shown]
        copies[f"copy of {part}"] = Puzzle(f"copy of {part}", tuple(mixed), puzzle("newer").asked)
    found = grids.split({**tasks, **copies}, listed, 3, 200, 3, 2)
    assert not {*found["base"]} & {*found["test"], *found["practice"]} and not {*found["practice"]} & {*found["test"]}
    pairs = {part: {grids.canonical(pair) for name in names for task in [({**tasks, **copies})[name]]
                    for pair in (*task.shown, *task.asked)} for part, names in found.items()}  # fmt: skip
    assert not pairs["test"] & (pairs["base"] | pairs["practice"]) and not pairs["base"] & pairs["practice"]
    assert found["test"][:2] == ["t3", "t5"] and "copy of test" not in found["base"]
    assert len(found["base"]) < len(tasks) + 2 - 5  # something was left out
    for side, tokens in ((2, 120), (3, 80)):
        assert not grids.fits(tasks["t0"], side, tokens)
    assert len(grids.written([*tasks["t0"].shown, tasks["t0"].asked[0]])) == 109 and grids.fits(tasks["t0"], 3, 109)
    with pytest.raises(ValueError, match="10 tasks have grids of 3 x 3 at most and 120 tokens, and 9 to test, 1 for"):
        grids.split(tasks, listed, 3, 120, 9, 1)


def test_an_edit_says_what_is_learned() -> None:
    task = puzzle("t0")
    still = Edit(False, False, False, "output", 0.01, 2)
    assert still.steps(4) == 2 and still.steps(5) == 4
    found = edits.examples(task.shown, still, 4, random.Random(0))
    lasts = [(*task.shown[1:], task.shown[0]), (task.shown[0], task.shown[2], task.shown[1]), task.shown]
    assert [x.tolist() for x, _ in found] == [grids.written(own) for own in (*lasts, lasts[0])]
    tokens, labels = found[0]
    assert (labels >= 0).tolist() == grids.outputs(tokens.tolist()) and bool((labels == tokens)[labels >= 0].all())
    whole = edits.examples(task.shown, Edit(False, False, False, "all", 0.01, 1), 1, random.Random(0))
    assert torch.equal(*whole[0])
    turned = edits.examples(task.shown, Edit(True, False, False, "all", 0.01, 1), 300, random.Random(0))
    views = {tuple(grids.written(View(turn).pairs(own))) for turn in range(8) for own in lasts}
    assert {tuple(x.tolist()) for x, _ in turned} == views
    mixed = edits.examples(task.shown, Edit(False, False, True, "all", 0.01, 1), 60, random.Random(0))
    assert len({tuple(x.tolist()) for x, _ in mixed}) == 6
    coloured = edits.examples(task.shown, Edit(False, True, False, "all", 0.01, 1), 9, random.Random(0))
    assert len({tuple(x.tolist()) for x, _ in coloured}) == 9
    probe = edits.asked(task)[0]
    assert probe.tokens.tolist() == grids.written([*task.shown, *task.asked])
    assert probe.tokens[probe.cue :].tolist() == grids.answer(task.asked[0][1])


def test_a_policy_repeats_what_helped() -> None:
    helped = [Edit(True, False, True, "all", 0.01, 4), Edit(True, True, True, "all", 0.01, 1)]
    made = Policy.cloned(helped)
    assert made.table["turns"] == (0.25, 0.75) and made.table["colours"] == (0.5, 0.5)
    assert made.table["rate"] == (0.2, 0.6, 0.2) and made.table["epochs"] == (0.4, 0.2, 0.4)
    assert Policy.cloned([]) == Policy.uniform()
    sure = Policy({**made.table, "tokens": (1.0, 0.0), "epochs": (0.0, 0.0, 1.0)})
    drawn = [sure.draw(random.Random(i)) for i in range(40)]
    assert {(one.tokens, one.epochs) for one in drawn} == {("all", 4)} and len({one.rate for one in drawn}) == 3


def test_a_task_is_learned_in_a_memory_that_is_thrown_away(net) -> None:
    before = {name: p.clone() for name, p in net.named_parameters()}
    task, edit = puzzle("t0"), Edit(False, False, False, "output", 0.03, 6)
    low = retrofit(net, [64], capacity="lowrank", rank=4, slots=1, gate="always")
    whole = retrofit(net, [64], target="all")
    base, meter = edits.mean_nats(Teacher(low, None), task), Meter()
    for model in (low, whole):
        assert edits.mean_nats(edits.untrained(model), task) == pytest.approx(base, abs=1e-5)
        student = edits.trained(model, task.shown, edit, 8, "a", meter)
        again = edits.trained(model, task.shown, edit, 8, "a", meter)
        probes = [edits.left_out(task.shown, i) for i in range(3)]
        old, new = (sum(edits.scores(who, probes)) for who in (Teacher(low, None), student))
        assert new < old - 0.3 and edits.scores(again, probes) == edits.scores(student, probes)
        longer = edits.trained(model, task.shown, edit, 8, "a", meter, steps=40)
        assert sum(edits.scores(longer, probes)) < new
        assert edits.mean_nats(Teacher(low, None), task) == base
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_candidates_are_judged_by_their_gradients(net) -> None:
    model = retrofit(net, [64], capacity="lowrank", rank=4, slots=1, gate="always")
    task = puzzle("t0")
    offered = [Edit(False, False, False, "output", 0.003, 1), Edit(False, False, False, "output", 0.03, 4),
               Edit(False, False, False, "all", 0.01, 2), Edit(True, True, True, "all", 0.01, 1)]  # fmt: skip
    how = Dreaming(select="greats", keep=2, random=1, candidates=4, eta=1.0)
    picked, values = edits.selected(model, task.shown, offered, 4, how, "s", Meter())

    student = edits.untrained(model)

    def by_hand(rows):
        loss = sum(nats_by_hand(student, row) for row in rows) / len(rows)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, student.leaves)])

    rows = [grids.written(own) for own in ((*task.shown[1:], task.shown[0]), (task.shown[0], *task.shown[:0:-1]),
                                           task.shown)]  # fmt: skip
    where = [[i for i, yes in enumerate(grids.outputs(row)) if yes] for row in rows]
    own = by_hand([(rows[i], where[i]) for i in (0, 1, 2, 0)])
    last = len(grids.answer(task.shown[0][1]))
    wanted = by_hand([(row, range(len(row) - last, len(row))) for row in rows])
    expected = float(own @ wanted / own.norm())
    assert values[0] == pytest.approx(0.003 * 1 * expected, rel=1e-3)
    assert values[1] == pytest.approx(0.03 * 4 * expected, rel=1e-3)
    assert picked[0] == 1 and len(set(picked)) == 3
    assert edits.selected(model, task.shown, offered, 4, how, "s", Meter()) == (picked, values)


def nats_by_hand(who, row):
    tokens, where = row
    said = who.logits(torch.tensor(tokens)[None])[0].log_softmax(-1)
    return -torch.stack([said[i - 1, tokens[i]] for i in where]).mean()


def test_answers_are_counted_and_malformed_ones_are_wrong(net, monkeypatch) -> None:
    model = retrofit(net, [64], capacity="lowrank", rank=2, slots=1, gate="always")
    task = puzzle("t0", asked=2)
    who, truth = Teacher(model, None), [after for _, after in task.asked]
    seen = []

    def says(made):
        def greedy(who, prompts, longest):
            own = truth[len(seen) % 2]
            seen.append(prompts)
            chance = random.Random("7 views")
            views = [View(), *(grids.view(chance) for _ in range(3))]
            return [made(i, view, own) for i, view in enumerate(views)]

        monkeypatch.setattr(edits, "greedy", greedy)
        return edits.judged(who, task, 4, 13, "7")

    right = says(lambda i, view, own: grids.answer(view.seen(own)))
    assert (right["exact"], right["two"], right["sized"], right["cells"]) == (1.0, 1.0, 1.0, 1.0)
    assert seen[0][0] == grids.question(task.shown, task.asked[0][0]) and len(seen[0]) == 4
    broken = says(lambda i, view, own: [[], [END], [0, 1, ROW, 2, END], [IN] * 13][i])
    assert (broken["exact"], broken["two"], broken["sized"], broken["cells"]) == (0.0, 0.0, 0.0, None)
    assert broken["nats"] == right["nats"] == pytest.approx(edits.mean_nats(who, task), abs=1e-5)
    # The plain view is malformed, two others agree on something wrong, the last one is right: second of the votes.
    wrong = ((9,) * 3,) * 3
    second = says(lambda i, view, own: [[], *[grids.answer(view.seen(wrong))] * 2, grids.answer(view.seen(own))][i])
    assert (second["exact"], second["two"]) == (0.0, 1.0)
    third = says(lambda i, view, own: grids.answer(view.seen([own, *[((i,),)] * 3][i]) if i else view.seen(own)))
    assert third["exact"] == third["two"] == 1.0
    half = says(lambda i, view, own: grids.answer(view.seen(own if own == truth[0] else wrong)))
    assert half["exact"] == 0.0 and half["sized"] == 1.0 and 0.5 <= half["cells"] < 1.0
    probe = edits.asked(task)
    share = []
    for one in probe:
        said = who.logits(one.tokens[None])[0].argmax(-1)
        flat = [i for i in range(one.cue, one.tokens.numel()) if one.tokens[i] < 10]
        share.append(sum(bool(said[i - 1] == one.tokens[i]) for i in flat) / len(flat))
    assert half["forced"] == pytest.approx(sum(share) / 2)


def test_an_answer_ends_where_it_says_so() -> None:
    """Rows of two lengths, decoded together and to their END, are what each says alone."""

    def counts(ids, past_key_values=None, use_cache=True):
        return SimpleNamespace(logits=torch.nn.functional.one_hot((ids + 1) % 16, 16).float())

    counts.config = SimpleNamespace(get_text_config=SimpleNamespace)
    counting = SimpleNamespace(model=SimpleNamespace(base=counts, device=torch.device("cpu")))
    counting.wearing = lambda: nullcontext(counts)
    say = lambda starts, **given: sample(counting, torch.tensor(starts)[:, None], 4, None, 0.0, **given).tolist()  # noqa: E731
    assert say([5, 9], end=7) == [[5, 6, 7, 7, 7], [9, 10, 11, 12, 13]]
    assert say([5, 9, 6], batch=1, end=7) == [[5, 6, 7, 7, 7], [9, 10, 11, 12, 13], [6, 7, 7, 7, 7]]
    assert say([5, 6], end=7) == [[5, 6, 7], [6, 7, 7]]  # nothing more is asked
    assert say([5]) == [[5, 6, 7, 8, 9]]
    model = retrofit(edits_net(2), [64], capacity="lowrank", rank=2, slots=1, gate="always")
    who = Teacher(model, None)
    prompts = [grids.question(puzzle(f"t{i}").shown[: 1 + i % 2], puzzle(f"t{i}").asked[0][0]) for i in range(8)]
    alone = [sample(who, torch.tensor([x]), 12, torch.Generator(), 0.0)[0, len(x) :].tolist() for x in prompts]
    cut = [own[: own.index(END) + 1] if END in own else own for own in alone]
    found = edits.greedy(who, prompts, 12)
    assert [own[: own.index(END) + 1] if END in own else own for own in found] == cut


def test_arms_from_end_to_end(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arc, "SIZES", (SMALL,) * 3)
    counted = []

    class Counting(edits.Fit):
        def run(self, *given):
            super().run(*given)
            counted.append(self.at)

    monkeypatch.setattr(edits, "Fit", Counting)
    options = Options(depth="quick", seeds=2, steps=2, data=data)
    outcome = runner.evaluate(arc.SUITE, options, tmp_path / "out", console=Console(quiet=True))
    arms = [one.run["arm"] for one in outcome.records if one.run["seed"] == 0]
    assert set(arms) == set(arc.ARMS) and outcome.left == 0 and len(outcome.records) == 2 * len(arc.ARMS) - 2
    by_arm = {one.run["arm"]: one for one in outcome.records if one.run["seed"] == 0}
    assert by_arm["TTT"].scores["base"]["steps"] == 2
    found = json.loads((tmp_path / "out" / "arc.json").read_text())
    names = found["runs"][0]["scores"]["split"]
    assert names["test"][:2] == ["t3", "t5"] and sum(map(len, names.values())) == 10
    context, dreamt, long = (by_arm[arm].scores["tasks"] for arm in ("in context", arc.DREAMING, arc.LONG))
    assert all(one["steps"] == 0 for one in context.values())
    assert by_arm["TTT"].scores["tasks"]["t3"]["nats"] != context["t3"]["nats"]
    mean = sum(one["steps"] for one in dreamt.values()) / 3
    assert by_arm[arc.LONG].run["updates"] == max(1, round(mean)) == long["t5"]["steps"]
    assert {trial["by"] for one in dreamt.values() for trial in one["tried"][0]["trials"]} == {"importance", "chance"}
    # Steps that are told are steps that were made; a run by itself gives the same.
    for arm in (arc.DREAMING, "trials", arc.RANDOM):
        arc._lab.cache_clear()
        counted.clear()
        again = arc.run(by_arm[arm].run, options)
        several = SMALL["edits"] if arm == arc.RANDOM else 1
        assert sum(counted) == sum(one["steps"] for one in again["tasks"].values()) * several
        assert strip(again) == strip(by_arm[arm].scores)
    for one in arc.oracle(outcome.records):
        own = next(r for r in outcome.records if r.run == {**one.run, "arm": arc.RANDOM}).scores["tasks"]
        for name, best in one.scores["tasks"].items():
            assert best["exact"] >= own[name]["exact"] and best["nats"] <= own[name]["nats"] + 1e-9
    titles = [table.title for table in arc.table(outcome.records)]
    assert titles == ["ARC, few-shot", "ARC, by task", "Trials of dreaming, on the demonstration that was left out",
                      "What ReST-EM learned"]  # fmt: skip
    rows = {row[0]: row for row in arc.table(outcome.records)[0].rows}
    assert rows[arc.CLONED][-1] == "72.5; 72.5" and rows[arc.ORACLE][1] == "2" and rows["copy"][1] == "1"
    assert (tmp_path / "out" / "arc.png").stat().st_size > 5_000


def strip(scores):
    """Without what a clock says."""
    same = json.loads(json.dumps(scores))
    same["base"].pop("train_seconds")
    for one in same["tasks"].values():
        one.pop("seconds")
    return same


def test_what_helped_most_in_practice_is_cloned(net, monkeypatch) -> None:
    model = retrofit(net, [64], capacity="lowrank", rank=2, slots=1, gate="always")
    tasks, tried = [puzzle("t0"), puzzle("t1")], []

    def trained(model, pairs, edit, count, seed, meter, steps=0):
        tried.append(edit)
        return edit

    # An edit helps by its rate; without colours it harms.
    monkeypatch.setattr(edits, "trained", trained)
    gain = lambda who: who.rate * (2 * who.colours - 1) if isinstance(who, Edit) else 0.0  # noqa: E731
    monkeypatch.setattr(edits, "mean_nats", lambda who, task: 2.0 - gain(who))
    policy, steps = edits.practised(model, tasks, 8, 4, None, "0", Meter())
    assert len(tried) == 16 and steps == sum(edit.steps(4) for edit in tried)
    best = [edit for part in (tried[:8], tried[8:]) for edit in sorted(part, key=lambda e: -e.rate * e.colours)[:2]]
    assert policy.table["colours"] == (1 / 6, 5 / 6) and all(edit.colours for edit in best)
    assert policy.table["rate"] == Policy.cloned(best).table["rate"]
    tried.clear()
    offered = []
    select = edits.selected
    monkeypatch.setattr(edits, "selected", lambda *given: offered.append(given[2]) or select(*given))
    how = Dreaming(select="greats", keep=3, random=1, candidates=16, eta=1.0)
    edits.practised(model, tasks, 4, 4, how, "0", Meter())
    assert [len(own) for own in offered] == [16, 16] and len(tried) == 8
    assert all(edit in own for own, part in zip(offered, (tried[:4], tried[4:])) for edit in part)


def test_data_that_are_missing_are_refused(data) -> None:
    with pytest.raises(ValueError, match="give --data DIR"):
        arc.runs(Options(), [])
    with pytest.raises(ValueError, match="there is no folder arc_agi in it"):
        arc.runs(Options(data=data / "arc_agi"), [])
    with pytest.raises(ValueError, match="--models ICL: this suite offers copy, "):
        arc.runs(Options(data=data, models=("ICL",), depth="quick"), [])
    with pytest.raises(ValueError, match="10 tasks have grids of 6 x 6 at most"):
        arc.runs(Options(data=data, depth="quick"), [])
    (data / "arc_agi" / grids.FILES[1]).unlink()
    arc._read.cache_clear()
    with pytest.raises(ValueError, match="no such file; it comes from") as error:
        arc.runs(Options(data=data), [])
    assert "\n" not in str(error.value)
