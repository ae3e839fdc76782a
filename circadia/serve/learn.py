"""What is done to a learner: each function makes the work of one job, which runs in a thread of its own.

A result names the version that is current afterwards.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from circadia.live import Learner, answers, conversations
from circadia.live.errors import StoreError
from circadia.live.sleeping import Night
from circadia.live.text import BLOCK
from circadia.serve.errors import Refused
from circadia.serve.forms import Branch, Feedback, Forget, NewLearner, Rollback, Set
from circadia.serve.jobs import Job, Result, Work
from circadia.serve.keys import Key
from circadia.serve.reply import plain
from circadia.serve.service import Completion, Service


def current(me: Learner, **more: Any) -> Result:
    version = me.version
    told = {"learner": me.name, "branch": me.branch_name, "version": version.number if version else None}
    return plain({**told, **more})


def slept(service: Service, night: Night) -> None:
    """For whoever watches the server."""
    if night.action == "stopped":
        service.metrics.add("sleeps_stopped_total")
    elif night.number is not None:
        service.metrics.add("sleeps_total")
        service.metrics.add("versions_total", night.version is not None)
        service.metrics.observe("sleep_seconds", night.seconds)


def create(service: Service, form: NewLearner) -> Work:
    """A learner that has learned nothing."""

    def work(job: Job) -> Result:
        known = service.writes.learners()
        if form.name in known:
            raise Refused(409, f"there is a learner {form.name!r} already: take another name", "learner_exists", "name")
        if len(known) >= service.settings.learners:
            raise Refused(403, f"this server holds {len(known)} learners, which is its limit", "too_many_learners")
        model = service.base.arrange(form.settings())
        given = {} if form.every is None else {"every": form.every}
        words = service.settings.tokenizer
        with Learner.create(
            service.writes,
            model,
            form.name,
            tokenizer=words,
            gate=form.gate,
            journal=form.journal,
            sleep=form.sleep,
            rehearse=form.rehearse,
            conversations=form.conversations,
            **given,
        ) as me:
            levels = [level.period for level in model.settings.levels]
            return current(me, model=f"{service.settings.name}@{me.name}", periods=levels)

    return work


def delete(service: Service, name: str) -> Work:
    """For good."""

    def work(job: Job) -> Result:
        uid = service.writes.learner(name).uid
        try:
            with service.changing(name) as me:
                erased = me.delete()
        finally:
            service.lost(uid)
        gone = {"versions": len(erased.versions), "experiences": len(erased.experiences)}
        return plain({"learner": name, "version": None, "deleted": True, **gone, "remains": erased.remains})

    return work


def observe(service: Service, name: str, branch: str, what: str | list[Any], source: str, trust: float) -> Work:
    """Text is read block by block, so that the job can end at a border with what it learned committed."""

    def work(job: Job) -> Result:
        cut = False

        def blocks(text: str) -> Iterator[str]:
            nonlocal cut
            for i in range(0, len(text), BLOCK):
                if job.stopped():
                    cut = True
                    return
                yield text[i : i + BLOCK]

        with service.changing(name, branch) as me:
            position = int(me.state["clock/tokens"])

            def tell(now: Any) -> None:
                nonlocal position
                position += me.model.settings.chunk  # chunks lie at fixed places of the life
                told = {"tokens": now.tokens, "position": position, "surprise": now.surprise,
                        "weight": now.weight, "seconds": now.seconds}  # fmt: skip
                job.tell(plain(told))

            text = blocks(what) if isinstance(what, str) else what
            done = me.observe(text, source, trust, progress=tell, stop=job.stopped)
            service.metrics.add("tokens_learned_total", done.tokens)
            service.metrics.add("versions_total", len(done.versions))
            if done.surprise is not None:
                service.metrics.observe("surprise", done.surprise)
            told = asdict(done)
            for field in ("curve", "experiences"):
                told.pop(field)
            told["interrupted"] |= cut
            for night in done.nights:
                slept(service, night)
            told["nights"] = [night.version for night in done.nights]
            return current(me, source=source, **told)

    return work


def feedback(service: Service, name: str, form: Feedback) -> Work:
    """The reply goes into the journal now, if it is not there yet: feedback can be replayed and forgotten then."""

    def work(job: Job) -> Result:
        kept = None
        with service.changing(name, form.branch) as me:
            number = form.answer
            if number is None:
                kept = _completion(service, me, name, form.completion or "")
                number = kept.answer if kept.answer is not None and me.journal else _take(me, kept, "conversation").id
                kept.answer = number
            assert number is not None
            done = me.feedback(number, form.good, correction=form.correction, about=form.about, weight=form.weight)
            told = {"kind": done.kind, "answer": number, "before": done.before, "after": done.after, "held": done.held}
            return current(me, **told)

    return work


def _completion(service: Service, me: Learner, name: str, id: str) -> Completion:
    kept = service.completions.get(id)
    life = service.writes.learner(name)
    if kept is None or kept.uid != life.uid or kept.epoch != service.memories.epoch(life.uid):
        raise Refused(
            404, f"this learner gave no completion {id[:60]!r} that is still held: a restart and a forgetting "
            "let them go",
            "completion_not_found", "completion",
        )  # fmt: skip
    return kept


def _take(me: Learner, kept: Completion, source: str, form: str | None = None, data: Any = None) -> answers.Answer:
    said = kept.said
    answer = answers.Answer(None, said.text, said.tokens, kept.prompt, kept.version, said.seconds, kept.quotes)
    return answers.take(me, answer, source, form, data)


async def learned(
    service: Service, key: Key, kept: Completion, source: str, turns: Any, asked: bool | None
) -> Result:  # fmt: skip
    """A conversation is learned after its answer was given; where that fails, the answer is still worth sending.

    `asked`: what the request said. Where it said nothing the learner's policy counts, for keys that may teach.
    """
    if not (_policy(service, kept.learner) if asked is None else asked):
        return {}
    if not key.may("teach"):
        return {"learned": False, "error": f"this key has scope {key.scope!r}, 'teach' is needed"}

    def work(job: Job) -> Result:
        with service.changing(kept.learner, kept.branch) as me:
            if asked is None and not me.conversations:
                raise Refused(409, "its policy was changed while it answered: this is not learned", "policy")
            life = service.writes.learner(kept.learner)
            if kept.uid != life.uid or kept.epoch != service.memories.epoch(life.uid):
                raise Refused(409, "the learner forgot something while it answered: this is not learned", "forgotten")
            if turns is None:
                kept.answer = _take(me, kept, source, "tokens", [*kept.prompt, *kept.said.tokens]).id
            else:
                spoken = [*turns, {"role": "assistant", "content": kept.said.text}]
                kept.answer = _take(me, kept, source, "chat", spoken).id
            return current(me)

    try:
        job = service.jobs.submit(kept.learner, "learn", work, key)
    except Refused as error:
        return {"learned": False, "error": error.message}
    await job.done.wait()
    if job.error is not None:
        return {"learned": False, "error": job.error.message}
    assert job.result is not None
    return {"learned": True, "new_version": job.result["version"]}


def _policy(service: Service, name: str) -> bool:
    try:
        return conversations.of(service.reads, name)
    except StoreError:  # deleted while it answered
        return False


def set_(service: Service, name: str, form: Set) -> Work:
    """A setting."""

    def work(job: Job) -> Result:
        with service.changing(name, form.branch) as me:
            me.set(conversations=form.conversations)
            return current(me, conversations=me.conversations)

    return work


def rollback(service: Service, name: str, form: Rollback) -> Work:
    """Only the pointer moves."""

    def work(job: Job) -> Result:
        with service.changing(name, form.branch) as me:
            me.rollback(form.version or None, form.reason)
            return current(me)

    return work


def branch(service: Service, name: str, form: Branch) -> Work:
    """A second way to go on."""

    def work(job: Job) -> Result:
        with service.changing(name, form.branch) as me:
            me.branch(form.name, form.version)
            return current(me, branches=service.writes.learner(name).branches)

    return work


def forget(service: Service, name: str, form: Forget) -> Work:
    """Memories and replies that hold something of it go, too; also where it was stopped half-way."""

    def work(job: Job) -> Result:
        uid = service.writes.learner(name).uid
        try:
            with service.changing(name, form.branch) as me:
                done = me.forget(form.source, since=form.since, until=form.until, all=form.all)
                told = asdict(done)
                told["erased"] = {
                    "experiences": len(done.erased.experiences), "versions": done.erased.versions,
                    "remains": done.erased.remains,
                } if done.erased else None  # fmt: skip
                return current(me, **told)
        finally:
            service.lost(uid)

    return work
