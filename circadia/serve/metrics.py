"""Counts and times in Prometheus' text form. No learner's name and no text is in them."""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circadia.serve.service import Service

BOUNDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
COUNTS = {
    "requests_total": "Requests that were answered.",
    "errors_total": "Of these with a status of 500 or above.",
    "refused_total": "Of these with 429.",
    "tokens_read_total": "Tokens of prompts.",
    "tokens_made_total": "Tokens of answers.",
    "tokens_learned_total": "Tokens that were observed.",
    "versions_total": "Versions that were committed.",
    "sleeps_total": "Nights that were slept to their end.",
    "sleeps_stopped_total": "Nights that were stopped, and changed nothing.",
}
TIMES = {
    "request_seconds": "Of an answer, with its waiting.",
    "first_token_seconds": "From the begin of the work to the first token.",
    "sleep_seconds": "Of a night that was slept to its end.",
    "surprise": "Of observed texts before they were learned, nats a token.",
}


class Metrics:
    """Added up since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = dict.fromkeys(COUNTS, 0.0)
        self.times = {name: [[0] * len(BOUNDS), 0, 0.0] for name in TIMES}

    def add(self, name: str, value: float = 1.0) -> None:
        """To a count."""
        with self._lock:
            self.counts[name] += value

    def observe(self, name: str, value: float) -> None:
        """Into a histogram."""
        with self._lock:
            found = self.times[name]
            found[0] = [n + (value <= bound) for n, bound in zip(found[0], BOUNDS)]  # type: ignore[call-overload]
            found[1], found[2] = found[1] + 1, found[2] + value  # type: ignore[operator]

    def text(self, service: "Service") -> str:
        """As Prometheus reads it."""
        lines = []
        with self._lock:
            for name, value in self.counts.items():
                lines += [f"# HELP circadia_{name} {COUNTS[name]}", f"# TYPE circadia_{name} counter"]
                lines.append(f"circadia_{name} {value:.15g}")
            for name, (buckets, count, total) in self.times.items():
                lines += [f"# HELP circadia_{name} {TIMES[name]}", f"# TYPE circadia_{name} histogram"]
                lines += [f'circadia_{name}_bucket{{le="{b:g}"}} {n}' for b, n in zip(BOUNDS, buckets)]  # type: ignore[call-overload]
                lines.append(f'circadia_{name}_bucket{{le="+Inf"}} {count}')
                lines += [f"circadia_{name}_sum {total:.15g}", f"circadia_{name}_count {count}"]
        gauges = {
            "answers_waiting": service.slots.waiting,
            "answers_working": service.slots.slots - service.slots.free,
            "changes_waiting": service.jobs.waiting,
            "changes_working": service.jobs.working,
            "sleeps_working": service.jobs.asleep,
            "memories_held": len(service.memories),
            "memories_bytes": service.memories.bytes,
            "memories_loaded_total": service.memories.loads,
            "memories_evicted_total": service.memories.evictions,
        }
        if service.engine is not None:
            gauges |= {"batch_passes_total": service.engine.passes, "batch_tokens_total": service.engine.made}
        for name, value in gauges.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE circadia_{name} {kind}", f"circadia_{name} {value}"]
        return "\n".join(lines) + "\n"
