"""The learning rate as arithmetic: phases are values, the rate at a moment is a function of them.

Before it: a recipe. After it: train sets the rate of every step, and draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Final


@dataclass(frozen=True)
class Phase:
    """A triangular cyclic rate (Smith 2017, "Cyclical Learning Rates"): linear from `high` to `low` and up.

    cycles: full periods over the phase; 2.5 starts high and ends low after three descents, 0.5 is one
    straight decay. warm_up: epochs at the start over which the rate is also multiplied by a ramp to 1: of its
    n steps the first takes 1 / n, the last 1. Raises ValueError.
    """

    epochs: int
    """Length of the phase."""
    high: float
    """Learning rate at the start of a cycle."""
    low: float
    """Learning rate in the middle of a cycle."""
    cycles: float = 2.5
    """Full cycles in the phase; 0.5 is one straight decay from high to low."""
    warm_up: float = 0.0
    """Epochs at the start over which the rate is also multiplied by a ramp that ends at 1."""

    def __post_init__(self) -> None:
        """Refuse numbers that give no rate."""
        if self.epochs < 1:
            raise ValueError(f"a phase of {self.epochs} epochs; expected at least 1")
        if not (0 <= self.low <= self.high and isfinite(self.high)):
            raise ValueError(f"a phase from high {self.high} to low {self.low}; expected 0 <= low <= high")
        if not (self.cycles > 0 and isfinite(self.cycles)):
            raise ValueError(f"a phase of {self.cycles} cycles; expected more than 0")
        if not 0 <= self.warm_up <= self.epochs:
            raise ValueError(f"a warm-up of {self.warm_up} epochs; expected 0 to the phase's {self.epochs}")

    def rate(self, epoch: float, step: float = 0.0) -> float:
        """The rate of a step that begins `epoch` epochs after the phase's start, and is `step` epochs long.

        The ramp is taken at the step's end: at its beginning the first step would learn nothing.
        """
        turn = epoch / self.epochs * self.cycles % 1
        depth = 1 - abs(2 * turn - 1)
        ramp = min(1.0, (epoch + step) / self.warm_up) if self.warm_up else 1.0
        return ramp * (self.high * (1 - depth) + self.low * depth)


PAPER_PHASES: Final = (
    Phase(epochs=50, high=1e-1, low=1e-2),
    Phase(epochs=50, high=1e-2, low=1e-4),
    Phase(epochs=50, high=1e-4, low=1e-6),
    Phase(epochs=50, high=1e-6, low=1e-10),
)
"""The original recipe's four phases."""


def total_epochs(phases: Sequence[Phase]) -> int:
    """Epochs of all phases together."""
    return sum(phase.epochs for phase in phases)


def lr_at(phases: Sequence[Phase], epoch: float, step: float = 0.0) -> float:
    """The learning rate at a moment, in epochs from the start of training, fractions included.

    step: length of the step that begins there, in epochs; see `Phase.rate`.

    Where one phase ends the next has begun; past the last one the rate stays where that ended. Raises
    ValueError if `epoch` is negative or there are no phases.
    """
    if not epoch >= 0:
        raise ValueError(f"the learning rate at epoch {epoch}; expected 0 or later")
    if not phases:
        raise ValueError("a schedule without phases has no learning rate; give it at least one")
    for phase in phases:
        if epoch < phase.epochs:
            return phase.rate(epoch, step)
        epoch -= phase.epochs
    return phases[-1].rate(phases[-1].epochs)


def with_epochs(phases: Sequence[Phase], epochs: int) -> tuple[Phase, ...]:
    """The same phases over `epochs` in all, each with its share. Raises ValueError below one each."""
    if epochs < len(phases):
        raise ValueError(f"--epochs is {epochs}; expected at least {len(phases)}, one for each phase")
    if epochs == total_epochs(phases):
        return tuple(phases)
    wanted = [phase.epochs * epochs / total_epochs(phases) for phase in phases]
    counts = [1] * len(phases)
    while sum(counts) < epochs:
        counts[max(range(len(phases)), key=lambda k: wanted[k] - counts[k])] += 1
    pairs = zip(phases, counts, strict=True)
    return tuple(replace(each, epochs=n, warm_up=each.warm_up * n / each.epochs) for each, n in pairs)


def with_lr(phases: Sequence[Phase], lr: float) -> tuple[Phase, ...]:
    """The same phases with `lr` as the highest rate; the others keep their ratio to it. Raises ValueError."""
    if not 0 <= lr < inf:
        raise ValueError(f"--lr is {lr}; expected 0 or more")
    if not phases:
        raise ValueError("--lr is for epochs, and this recipe has none; add --epochs")
    highest = max(phase.high for phase in phases)
    if not highest:
        raise ValueError(
            "the phases' learning rates are all 0, so none has a ratio to the highest; name --phases.0.high"
        )
    # Exact where it can be: the same command, with --resume, must come to the same phases.
    if lr == highest:
        return tuple(phases)
    return tuple(
        replace(
            each, high=lr if each.high == highest else each.high * lr / highest, low=each.low * lr / highest
        )
        for each in phases
    )
