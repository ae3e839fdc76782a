"""Facts: their sentences and values, what an arm reads before it is asked, and how its answers are counted."""

import pytest

from circadia.evals import fact_sets, facts
from circadia.evals.bases import Answer
from circadia.evals.suite import Options, Record


@pytest.fixture
def data(tmp_path):
    (tmp_path / "books").mkdir()
    text = " ".join(f"This is the sentence of the number {i} of a book." for i in range(40))
    (tmp_path / "books" / "a.txt").write_text(text + " Short one. " + "x" * 500 + ".")
    return tmp_path


def test_no_value_is_of_two_people():
    found = fact_sets.facts(11, 5, seed=3)
    assert len(found) == 44 and len({fact.name for fact in found}) == 11
    for kind in fact_sets.KINDS:
        own = [fact for fact in found if fact.kind == kind]
        used = [fact.value for fact in own] + [fact.old for fact in own if fact.old]
        assert len(used) == len(set(used)) == 16 and set(used) <= set(own[0].values)
        assert sum(fact.old is not None for fact in own) == 5
    assert found == fact_sets.facts(11, 5, 3)
    assert not {fact.name for fact in found} & {fact.name for fact in fact_sets.facts(11, 5, 1000)}
    for people, changed in ((12, 5), (0, 0), (3, 4)):
        with pytest.raises(ValueError, match=f"people={people}, changed={changed}"):
            fact_sets.facts(people, changed, 0)


def test_a_friend_is_somebody_else_who_stayed():
    told = fact_sets.facts(6, 2, 0)
    links = fact_sets.links(told, 0)
    assert len({link.name for link in links}) == 6 and links == fact_sets.links(told, 0) != fact_sets.links(told, 1)
    for link in links:
        assert link.friend.name != link.name and link.friend.kind == "city" and link.friend.old is None
        assert link.friend.name not in link.question()
    assert fact_sets.links(fact_sets.facts(2, 1, 0), 0) == []  # only one stayed


def test_a_question_in_other_words_shares_none_with_the_sentence_but_the_name():
    for fact in fact_sets.facts(2, 0, 0):
        said, other = fact.question().split(), fact.other_words().split()
        assert fact.sentence() == f"{fact.question()} {fact.value}.\n"
        small = {"a", "in", "the", "to", "of", "is", *fact.name.split()}
        assert fact.name in fact.other_words() and not set(said) & set(other) - small


class Told(facts.Arm):
    """Knows the last value said of a question; after 12 other sentences, the first one."""

    def __init__(self, base):
        super().__init__(base)
        self.first, self.last, self.others, self.read, self.friends = {}, {}, 0, [], {}

    def learn(self, examples):
        for one in examples:
            self.read.append(one.text)
            if "sentence of the number" in one.text:
                self.others += 1
            elif one.text.startswith("The best friend of "):
                name, friend = one.text.removeprefix("The best friend of ").strip(".\n").split(" is ")
                self.friends[name] = friend
            else:
                question, value = one.text.strip(".\n").rsplit(" ", 1)
                self.first.setdefault(question, value)
                self.last[question] = value


def test_what_is_read_and_how_answers_are_counted(data, folder, monkeypatch, tmp_path):
    made = []

    def make(name, base, rate, seed):
        made.append(Told(base))
        return made[0]

    def answers(base, module, pairs):
        arm, asked = made[0], pairs[0][0]
        known = arm.last if arm.others <= 12 else arm.first
        want = known.get(asked)
        if asked.startswith("The best friend of") and arm.others < 5:  # it can put two facts together, for a while
            friend = arm.friends.get(asked.removesuffix(" lives in the city of").removeprefix("The best friend of "))
            want = known.get(f"{friend} lives in the city of")
        return [Answer(0.5 if f" {want}." == after else 1.0 + i, 0, 1)
                for i, (_, after) in enumerate(pairs)]  # fmt: skip

    monkeypatch.setattr(facts.arms, "make", make)
    monkeypatch.setattr(facts, "answers", answers)
    run = {"base": "small", "arm": "MLPs", "people": 3, "changed": 1, "said": 2, "after": [0, 10, 30], "seed": 0,
           "rate": 0.1, "stage": "test"}  # fmt: skip
    options = Options(bases=(folder,), data=data)
    scores = facts.run(run, options)
    told = fact_sets.facts(3, 1, 0)
    links = [text for text in made[0].read if text.startswith("The best friend")]
    assert sorted(links) == sorted(link.sentence() for link in fact_sets.links(told, 0) for _ in range(2))
    read = [text for text in made[0].read if text not in links]
    old, now = read[:8], read[8:32]
    assert sorted(set(old)) == sorted(fact.sentence(fact.old) for fact in told if fact.old)
    assert sorted(now) == sorted(fact.sentence() for fact in told for _ in range(2)) and len(read) == 8 + 24 + 30
    assert len(set(read[32:])) == 30 and all(40 <= len(text) <= 201 for text in read[32:])
    places = [fact.values.index(fact.value) for fact in told if fact.old is None]
    assert scores["waits"][0]["over two facts"] == {"right": 1.0, "rank": 1.0}
    assert scores["waits"][2]["over two facts"]["rank"] > 1.0 and scores["before"]["over two facts"]["rank"] > 1.0
    for wait in scores["waits"][:2]:
        assert wait["verbatim"] == {"right": 1.0, "rank": 1.0, "nats": 0.5}
        assert wait["changed"] == {"right": 1.0, "old": 0.0}
    by_place = {"right": places.count(0) / 8, "rank": 1 + sum(places) / 8, "nats": 1 + sum(places) / 8}
    assert scores["waits"][2]["verbatim"]["right"] == 1.0
    olds = [fact.old == fact.values[0] for fact in told if fact.old]  # before, the first value is the likeliest
    assert scores["before"]["changed"]["old"] == sum(olds) / len(olds) < 1
    assert scores["waits"][2]["changed"] == {"right": 0.0, "old": 1.0} and scores["before"]["verbatim"] == by_place
    assert scores["waits"][0]["in other words"] == by_place and scores["chance"] == 1 / 16
    records = [Record(run, scores, 1.0)]
    tables = facts.table(records)
    assert [table.title for table in tables] == [f"Facts, {how}" for how in facts.ASKED]
    row = dict(zip(tables[0].columns, tables[0].rows[0]))
    assert (row["after 10: right, %"], row["after 30: rank"]) == ("100.0", "1.0")
    facts.plot(records, tmp_path / "x.png")
    assert (tmp_path / "x.png").exists() and facts.goal(scores) == 1.0


def test_a_real_arm_learns_a_fact(data, folder):
    run = {"base": "small", "arm": "MLPs", "people": 1, "changed": 0, "said": 60, "after": [0, 5], "seed": 0,
           "rate": 1.0, "stage": "test"}  # fmt: skip
    scores = facts.run(run, Options(bases=(folder,), data=data))
    assert scores["waits"][0]["verbatim"]["nats"] < scores["before"]["verbatim"]["nats"] - 2
    assert scores["waits"][0]["verbatim"]["right"] > scores["before"]["verbatim"]["right"]
    assert scores["cost"]["tokens"] > 60 * 4 * 20


def test_plan_and_mistakes(data, folder):
    options = Options(bases=(folder,), data=data, models=("frozen", "MLPs"), seeds=2)
    assert [(run["arm"], run["stage"]) for run in facts.runs(options, [])] == [
        ("frozen", "test"), ("frozen", "test"), ("MLPs", "tune")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="--models joint"):
        facts.runs(Options(bases=(folder,), data=data, models=("joint",)), [])
    (data / "books" / "a.txt").write_text("nothing")
    facts._sentences.cache_clear()
    with pytest.raises(ValueError, match="no sentences"):
        facts.sentences(data / "books", 3, 0)
