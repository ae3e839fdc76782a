"""One life: it reads, answers, is corrected, goes back, and forgets as if it had never read."""

import sys
import tempfile

import torch

from circadia import Learner

FACTS = {
    "notes": "Mira lives in Oslo. ",
    "letters": "The key lies under the blue stone. ",
    "secret": "The vault opens with seven. ",
}


def main(store: str, base: str = "bundled", times: int = 10) -> bool:
    with Learner.create(store, base, "ana", periods=[64, 256], gate=False) as me:
        for source in ("notes", "letters"):
            done = me.observe(FACTS[source] * times, source=source)
            print(f"{source}: surprise {done.curve[0][1]:.2f} to {done.curve[-1][1]:.2f}, version {done.versions[-1]}")
        before = me.state
        me.observe(FACTS["secret"] * times, source="secret")
        answer = me.generate("The vault opens with", max_new_tokens=6)
        print(f"The vault opens with{answer.text}")

        done = me.feedback(answer.id, correction=" eight.")
        print(f"corrected: {done.before:.2f} nats a byte before, {done.after:.2f} after")
        me.rollback(done.version - 1)  # every version is kept
        print("versions:", [(v.number, v.parent, v.reason) for v in me.versions()], "at", me.version.number)

        gone = me.forget(source="secret")
        me.forget(source="feedback")  # a correction is the user's own words, so it is asked for by itself
        print(f"forgot {len(gone.experiences)} experiences and erased versions {gone.erased.versions}")
        print(f"The vault opens with{me.generate('The vault opens with', max_new_tokens=6).text}")
        print(f"The key lies under the{me.generate('The key lies under the', max_new_tokens=11).text}")
        return all(torch.equal(x, before[name]) for name, x in me.state.items())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print("as if it had never been read:", main(folder, *sys.argv[1:2]))
