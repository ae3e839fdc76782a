"""A day and a night: what was said three times is not known in the evening; the learner sleeps on it, and knows it."""

import sys
import tempfile

from circadia import Learner

FACTS = {
    "notes": ("Mira lives in", " Oslo. "),
    "letters": ("The key lies under the blue", " stone. "),
}
QUICK = {"dreams": 32, "replay": {"presentations": 20, "rate": 1e-3}}  # a short night; docs/sleep.md has the settings


def asked(me: Learner) -> int:
    """How many it can say, with nothing but the question before it."""
    right = 0
    for prompt, value in FACTS.values():
        said = me.generate(prompt, max_new_tokens=len(value) - 1, keep=False).text
        print(f"  {prompt} ...{said}")
        right += said == value.rstrip()
    return right


def main(store: str, base: str = "bundled") -> tuple[int, int, int]:
    with Learner.create(store, base, "ana", periods=[64, 256], gate=False) as me:
        for _ in range(3):
            for source, (prompt, value) in FACTS.items():
                me.observe(prompt + value, source=source)
        print("in the evening:")
        evening = asked(me)

        night = me.sleep(**QUICK)
        print(f"{night.action}: {'; '.join(night.report['moved'])}, in {night.seconds:.0f} s")
        print(f"learned {night.report['cost']['learned']:,} tokens, where the day had {me.tokens:,}")
        for dream in night.report["dreams"][:2]:
            print(f"  dreamt {' '.join(dream['text'].split())[:70]!r}")
        print("in the morning:")
        morning = asked(me)

        me.rollback(night.parent)  # as if it had not slept
        print("without the night:")
        return evening, morning, asked(me)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder, *sys.argv[1:2])
