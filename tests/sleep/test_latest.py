"""What was said otherwise later is found, and nothing else; and it is cut out of the windows."""

import torch

from circadia.sleep import Entry, Replay, Window, preset, sleep
from circadia.sleep.latest import Latest, statements
from circadia.sleep.student import Teacher
from circadia.sleep.windows import surprising
from tests.models.retrofit.conftest import same

OLD, NEW = "Mira lives in the city of Oslo.\n", "Mira lives in the city of Rome.\n"
TOM = "Tom lives in the city of Lima.\n"


def text_of(tokens):
    return bytes(tokens).decode("utf-8", "replace")


def ids(text):
    return torch.tensor(list(text.encode()))


def day(*texts, **more):
    return [Entry(ids(text), number=i, **more) for i, text in enumerate(texts, 1)]


def whole(entry):
    """An entry as one window."""
    return Window(entry.tokens, entry.source, entry.trust, entry.number, 0, 1.0, entry.correction)


def left(entries, windows=None, earlier=False):
    """Texts of the windows that are gone over, and what is told."""
    latest = Latest(entries, text_of)
    found = latest.windows([whole(e) for e in entries] if windows is None else windows, earlier)
    return [text_of(w.tokens.tolist()) for w in found], list(latest.told.values())


def test_the_later_of_two_ends_stays():
    texts, told = left(day(OLD, TOM, OLD, NEW, NEW))
    assert texts == [TOM, NEW, NEW]
    assert told == [{"entry": 1, "by": 5, "beginning": "Mira lives in the city of ", "was": "Oslo", "now": "Rome",
                     "windows": 2}]  # fmt: skip


def test_so_does_what_is_no_change():
    for texts in (
        (OLD, TOM, OLD),  # somebody else
        (OLD, NEW, OLD, NEW),  # both are said again and again
        (OLD, NEW, OLD.replace("Oslo", "Lima")),  # a list
        (OLD, "Mira lives in the city of Oslo, in a house.\n"),  # it goes on
        ("So he said no.\n", "So he said it.\n"),  # no beginning of its own
        ("The best friend of Mira Blum is Tom.\n", "The best friend of Minna Veit is Eve.\n"),
        ("米拉住。", "米拉去。"),
    ):
        assert left(day(*texts)) == (list(texts), []), texts
    # Said again, it is what is true now.
    assert left(day(OLD, NEW, NEW, OLD))[0] == [OLD, OLD]
    assert left(day("米拉住在城市罗马。", "米拉住在城市巴黎。"))[0] == ["米拉住在城市巴黎。"]


def test_reading_is_no_word_against_a_correction_nor_a_rumour_against_what_is_trusted():
    old, new = day(OLD, NEW)
    for rank in ({"correction": True}, {"trust": 1.5}):
        high, low = (Entry(**{**vars(one), **rank}) for one in (old, new))
        assert left([high, new])[0] == [OLD, NEW] and left([old, low])[0] == [NEW] == left([high, low])[0]


def test_earlier_nights_are_before_all_of_the_day():
    assert left(day(TOM, NEW), [whole(day(OLD)[0])], earlier=True)[0] == []
    assert left(day(TOM, OLD), [whole(day(OLD)[0])], earlier=True) == ([OLD], [])
    assert left(day(NEW, OLD), [whole(day(OLD)[0])], earlier=True)[0] == [OLD]
    # A window of the day is not before what is not said after it.
    assert left(day(NEW, OLD), [whole(day(OLD)[0])])[0] == [OLD]


def test_only_the_statement_is_cut_out_of_a_window():
    long = f"It rained all day. {OLD}A dog barked at the moon.\n"
    entry, later = day(long, NEW)
    texts, told = left([entry, later])
    assert texts == ["It rained all day. ", ".\nA dog barked at the moon.\n", NEW] and told[0]["windows"] == 1
    row, place = entry.tokens, long.index("city")
    for start, end, before, want in (
        (place, 70, 64, [long[place + 12 : 70]]),  # it begins before the window
        (place, 70, 3, [long[place:70]]),  # nobody knows how it begins
        (place + 12, 70, 64, [long[place + 12 : 70]]),  # it ends before the window
        (0, place + 10, 64, [long[:19]]),  # and behind it
    ):
        window = Window(row[start:end], "", 1.0, 1, start, 1.0, False, row[max(0, start - before) : start])
        found = Latest([entry, later], text_of).windows([window])
        assert [text_of(w.tokens.tolist()) for w in found] == want
        for one in found:
            assert torch.equal(row[one.start : one.start + one.tokens.numel()], one.tokens)
            assert torch.equal(row[one.start - one.before.numel() : one.start], one.before)


def test_statements_are_lines_and_sentences():
    assert list(statements(" One. Two!\n\n  Three")) == [(1, "One"), (6, "Two"), (14, "Three")]


def test_a_night_goes_over_what_is_true_now(tiny):
    """In one night and over two; the same bits twice; and with latest=False over both."""
    model = tiny(periods=(64,), config={"vocab_size": 256}, rate=0.5)
    how = Replay(length=40, presentations=4, rows=4, dreams=0, every=99)
    settings = preset().but(dreams=4, dream_length=8, replay=vars(how))
    changed, plain = day(OLD, TOM, NEW), day(OLD, TOM, NEW)[1:]
    new, report = sleep(model, model.start(), changed, settings)
    same(new, sleep(model, model.start(), changed, settings)[0])
    same(new, sleep(model, model.start(), plain, settings)[0])
    assert (report.windows, report.superseded[0]["was"]) == (2, "Oslo") and "Oslo" in report.markdown()
    both, told = sleep(model, model.start(), changed, settings.but(latest=False))
    assert (told.windows, told.superseded) == (3, []) and any(not torch.equal(new[n], x) for n, x in both.items())
    first, before = sleep(model, model.start(), changed[:2], settings)
    later = {"slept": first, "earlier": before.kept, "seed": 1}
    assert len(before.kept[0]) == 2
    second, after = sleep(model, first, changed[2:], settings, **later)
    assert [len(night) for night in after.kept] == [1, 1] and after.superseded[0] == {**report.superseded[0], "by": 3}
    same(second, sleep(model, first, changed[2:], settings, **{**later, "earlier": [before.kept[0][1:]]})[0])


def test_tokens_that_nobody_can_read_are_left_alone(tiny):
    model = tiny()
    settings = preset().but(dreams=4, dream_length=8, replay={"presentations": 1, "length": 8})
    a = torch.arange(3, 30)
    entries = [Entry(a, number=1), Entry(torch.cat((a[:-1], a[:1])), number=2)]
    assert sleep(model, model.start(), entries, settings)[1].superseded == []
    words = ["Mira", "lives", "in", "the", "city", "of", "old", "Lima", ".", "new"]
    read = {"decode": lambda row: " ".join(words[t % 10] for t in row)}
    texts = [torch.tensor([0, 1, 2, 3, 4, 5, end, 7, 8]) for end in (6, 9)]
    entries = [Entry(row, number=i) for i, row in enumerate(texts)]
    found = sleep(model, model.start(), entries, settings.but(replay={"answer": 2}), **read)[1]
    assert [one["was"] for one in found.superseded] == ["old Lima"] and found.windows == 1


def test_a_window_knows_what_stands_before_it(tiny):
    entry = Entry(torch.arange(3, 40) % 45 + 3, number=1)
    for window in surprising(Teacher(tiny(), None), [entry], 6, span=18):
        row = entry.tokens[: window.start + window.tokens.numel()]
        assert torch.equal(torch.cat((window.before, window.tokens)), row)
        assert Window.from_dict(window.to_dict()).to_dict() == window.to_dict()
