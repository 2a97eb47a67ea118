"""The range test (Smith 2015, arXiv:1506.01186, section 3.3): the loss while the learning rate grows.

Before it: a network as training would start from it. After it: `try_out` draws the curve and suggests a rate.
It is a guess from one short run: the rate that is best over many epochs may be another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

LOW: Final = 1e-5
HIGH: Final = 10.0
STEPS: Final = 100
"""Steps from the lowest rate to the highest: 17 for each power of ten."""
KEPT: Final = 0.8
"""Of the mean before, in the smoothed loss. A guess: it looks back about five steps."""
RULE: Final = "a hundredth of the rate at which the loss went wrong (four times its least, or no number)"
NEVER: Final = "a hundredth of the highest rate tried, at which the loss had not gone wrong"
WORSE: Final = 4.0
"""The test ends where the smoothed loss is this many times its least (fastai's choice)."""


def rate_at(step: float) -> float:
    """The learning rate of a step: it grows by the same factor from each to the next."""
    return float(LOW * (HIGH / LOW) ** (step / (STEPS - 1)))


def smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential moving mean `[n]` of losses `[n]`, each as if the mean had begun with the first."""
    sums = itertools.accumulate(losses, lambda mean, loss: KEPT * mean + (1 - KEPT) * loss, initial=0.0)
    return [mean / (1 - KEPT**count) for count, mean in enumerate(sums) if count]


def usable(losses: Sequence[float]) -> int:
    """How many steps count: those before the loss is not finite, or smoothed `WORSE` times its least."""
    least = math.inf
    for step, mean in enumerate(smoothed(losses)):
        least = min(least, mean)
        if not mean <= WORSE * least:
            return step
    return len(losses)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """See `RULE` and `NEVER`. rates, losses: of every step taken, `[n]` each."""
    return rates[min(usable(losses), len(rates) - 1)] / 100


def depends_on(recipe: Mapping[str, Any], pack: str) -> dict[str, Any]:
    """What of a recipe the test depends on, and the pack's digest: of another run it says nothing."""
    apart = ("name", "note", "phases", "averaging", "select", "patience", "seed")
    return {"pack": pack} | {key: value for key, value in recipe.items() if key not in apart}
