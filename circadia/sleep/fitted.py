"""A night cut to a price: fewer windows, the most surprising ones, and fewer dreams, instead of too few steps on all.

A fact binds rather suddenly, between 100 and 200 presentations. A night that a budget ends in the middle has shown all
windows a few times; one that is fitted shows some of them as often as it takes, and its rate falls to the end.
"""

from circadia.sleep.settings import Settings
from circadia.sleep.words import TRIES

DREAMS = 0.2  # of the price: at most so much goes into dreams, which are made once and measured twice
FEWEST = 8


def fitted(settings: Settings, tokens: int, days: float) -> Settings:
    """Settings for a day of so many tokens, whose night costs at most so many times what reading the day did.

    In tokens, those learned three times, as budgets count, as if there were windows of earlier nights. Reading the day
    once more, to find what surprises, is a third of a day already; where nothing is left for a window, the night has
    none. A filter reads it, too. For replay alone; what is said more often, as corrections are, comes on top.
    """
    others = {"again": settings.again, "seeding": settings.seeding, "dreaming": settings.dreaming}
    odd = next((f"{name}={part!r:.40}" for name, part in others.items() if part is not None), None)
    odd = f"inner={settings.inner}" if settings.inner else odd
    odd = f"filter.trial={settings.filter.trial}" if settings.filter and settings.filter.trial else odd
    how = settings.replay
    if odd is not None or how is None or how.whole:
        raise ValueError(
            f"{odd or f'replay={how!r:.40}'}: only replay of windows is cut to a price: use the arm journal-replay, or "
            "a budget that ends the night"
        )
    if not days > 0:
        raise ValueError(f"days={days!r} must be above 0, such as 2")
    if tokens < 1:
        raise ValueError(f"tokens={tokens!r}: a day has at least one")
    price, long = 3.0 * days * tokens, settings.dream_length
    dreams = max(FEWEST, min(settings.dreams, int(DREAMS * price / (2 * long))))
    guarded = how.dreams * (long - 1) if how.guard else 0
    step = 3 * ((how.rows + how.earlier) * how.length + guarded) + guarded * (how.distance != "ce")
    window = how.presentations / how.rows * step
    window += 2 * how.length  # its probe, in the evening and in the morning, and every `every` steps
    # Those of earlier nights, of which there may be as many probes.
    window += how.presentations / how.rows / how.every * how.probes * (2 if how.earlier else 1) * how.length
    window += 6 * how.variations * TRIES * how.length  # said after it, and read with it and without
    left = price - tokens * (2 if settings.filter else 1) - 2 * dreams * long
    most = max(0, int(left / window))
    windows = most if how.windows is None else min(most, how.windows)
    return settings.but(dreams=dreams, replay={"windows": windows})
