"""The state of a training, how far it has come, and the checkpoints that hold it.

Before it: train counts. After it: a resumed training goes on from the last checkpoint; eval and explain read the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import nn

from greyhound.model import ranks
from greyhound.model.ema import MovingAverage
from greyhound.model.run import BEST, LAST, Run, RunError, load_network
from greyhound.model.shapes import METRICS, TIMES
from greyhound.model.targets import SoftTargets


@dataclass(frozen=True)
class Checkpoints:
    """How often last.ckpt is written, beside the end of every epoch and a signal, and how many are kept."""

    minutes: float = 0.0
    """Also after so many minutes of training; 0: not."""
    steps: int = 0
    """Also after so many steps; 0: not."""
    keep: int = 2
    """The newest so many: last.ckpt, last.1.ckpt before it, and so on."""

    def __post_init__(self) -> None:
        """Refuse what is no timetable."""
        if not 0 <= self.minutes < math.inf:
            raise ValueError(f"checkpoints.minutes is {self.minutes}; expected 0 or more")
        if self.steps < 0:
            raise ValueError(f"checkpoints.steps is {self.steps}; expected 0 or more")
        if self.keep < 1:
            raise ValueError(f"checkpoints.keep is {self.keep}; expected at least 1")


class Timetable:
    """Says after which steps a checkpoint is due."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        """The first one is due as long after now as any other after the one before it."""
        self.checkpoints, self.steps, self.since = checkpoints, 0, time.perf_counter()

    def due(self) -> bool:
        """Whether one is due, a step after the last time this was asked."""
        self.steps += 1
        late = time.perf_counter() - self.since >= 60 * self.checkpoints.minutes > 0
        if not (late or self.steps >= self.checkpoints.steps > 0):
            return False
        self.steps, self.since = 0, time.perf_counter()
        return True


Write: TypeAlias = Callable[[Path, dict[str, Any]], None]
"""Writes a checkpoint: `checkpoint.save`, now or beside the training."""


NEVER: Final = -1


@dataclass
class Progress:
    """How far a training has come, in numbers."""

    epoch: int = 0
    images: int = 0
    """Of this epoch, done."""
    loss_sum: float = 0.0
    """Of those images; likewise seconds."""
    seconds: float = 0.0
    elapsed: float = 0.0
    """Seconds of the whole command, from its start, over every time that it was resumed."""
    best: float = -math.inf
    """Score of best.ckpt on the validation split, see `score`."""
    trained: dict[str, Any] | None = None
    """The row of metrics of an epoch that is trained and not yet validated."""
    diverged: int = NEVER
    """Images of this epoch done before the first batch whose loss was no number."""

    def __post_init__(self) -> None:
        """Refuse what no training wrote. Raises TypeError."""
        counted, timed = (self.epoch, self.images, self.diverged), (self.loss_sum, self.seconds, self.elapsed)
        if not all(isinstance(value, int) for value in counted):
            raise TypeError(f"{counted}; expected whole numbers")
        if not all(isinstance(value, int | float) for value in (*timed, self.best)):
            raise TypeError(f"{timed}; expected numbers")
        if not (0 <= self.epoch < 2**31 and 0 <= self.images < 2**63):
            raise TypeError(
                f"epoch {self.epoch}, image {self.images}; expected a place that a training comes to"
            )
        if self.trained is not None and not self.trained.keys() >= {"epoch", "seconds", "train_loss"}:
            raise TypeError(f"{self.trained}; expected a row of metrics")
        if not all(isinstance(value, int | float) for value in (self.trained or {}).values()):
            raise TypeError(f"{self.trained}; expected numbers")

    def begin_again(self) -> None:
        """Go back to the start of the epoch under way."""
        self.images, self.loss_sum, self.seconds = 0, 0.0, 0.0


class Losses:
    """The sum of an epoch's losses on the device, and where the first came that is no number; read when asked for.

    Each rank adds its own; what is read is of all.
    """

    def __init__(self, total: float, device: torch.device) -> None:
        """total: the sum so far, of all ranks."""
        self.total = torch.tensor(total if ranks.leads() else 0.0, dtype=torch.float64, device=device)
        self.diverged = torch.tensor(NEVER, device=device)

    def add(self, value: torch.Tensor, count: int, done: int) -> None:
        """A batch's mean loss, over `count` images of this rank's, after `done` of the epoch."""
        first = ~value.isfinite() & (self.diverged == NEVER)
        self.diverged = torch.where(first, done, self.diverged)
        self.total += value * count

    def read(self) -> tuple[float, int]:
        """The sum, and how many images were done before the first loss that is no number, or NEVER."""
        total, first = self.total.clone(), self.diverged.double()
        if ranks.count() > 1:
            ranks.add_up([total])
            first = torch.where(first == NEVER, math.inf, first)
            ranks.least(first)
            first = torch.where(first.isinf(), NEVER, first)
        total, diverged = torch.stack([total, first]).tolist()
        return total, int(diverged)


@dataclass
class Training:
    """A training between two steps: with torch's random state, all that going on needs."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    average: MovingAverage | None = None
    """The exponential moving average of the weights, where the recipe has one."""
    progress: Progress = field(default_factory=Progress)
    targets: SoftTargets | None = None
    """Where the recipe has soft ones; else the labels are."""
    before: list[torch.Tensor] = field(default_factory=list)
    """The weights as the epoch under way found them."""
    since: float = field(default_factory=time.perf_counter)
    """When `progress.elapsed` was last brought up to date."""

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the average, or the one that learns."""
        return self.average.network if self.average else self.network

    def tick(self) -> float:
        """Bring `progress.elapsed` up to date; returns it."""
        now = time.perf_counter()
        self.progress.elapsed += now - self.since
        self.since = now
        return self.progress.elapsed

    def begin_epoch(self) -> None:
        """Remember the weights, for `changed`."""
        self.before = [parameter.detach().clone() for parameter in self.network.parameters()]

    def changed(self) -> float:
        """Share of the weights, 0..1, that are not what they were when the epoch began; read from the device once."""
        pairs = list(zip(self.network.parameters(), self.before, strict=True))
        differ = torch.stack([(now.detach() != then).sum() for now, then in pairs]).sum()
        return float(differ) / sum(then.numel() for _, then in pairs)


def score(result: dict[str, Any], by: Literal["accuracy", "loss"]) -> float:
    """What a validation is ranked by, the higher the better: its accuracy, or how low its cross entropy is.

    -inf where the cross entropy is no number, whatever the accuracy.
    """
    if math.isnan(result["valid_loss"]):
        return -math.inf
    return float(result["accuracy"] if by == "accuracy" else -result["valid_loss"])


def scored(
    network: nn.Module, result: dict[str, Any], by: Literal["accuracy", "loss"], after: str
) -> dict[str, Any]:
    """A checkpoint's content: the network and how it validated. after: what was done to it last, for the reader."""
    return {"network": network.state_dict(), "score": score(result, by), "after": after} | result


def keep_best(write: Write, run: Run, progress: Progress, content: dict[str, Any]) -> None:
    """best.ckpt, if no `scored` content before had as high a score."""
    if content["score"] > progress.best:
        progress.best = content["score"]
        write(run.folder / BEST, content)


def save_last(write: Write, run: Run, state: Training) -> None:
    """last.ckpt: everything that going on needs."""
    state.tick()
    content = {
        "progress": asdict(state.progress),
        "network": state.network.state_dict(),
        "momentum": momentum(state),
        "average": state.average.state_dict() if state.average else {},
        "before": state.before if state.progress.images else [],
        "random": torch.get_rng_state(),
        "random_cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }
    write(run.folder / LAST, content)


def momentum(state: Training) -> dict[str, torch.Tensor]:
    """What SGD remembers of each weight, by the weight's name: the groups and their numbers are the recipe's."""
    found = {
        name: state.optimiser.state[weight].get("momentum_buffer")
        for name, weight in state.network.named_parameters()
        if weight in state.optimiser.state
    }
    return {name: buffer for name, buffer in found.items() if buffer is not None}


def restore(run: Run, content: dict[str, Any], state: Training) -> None:
    """Put weights, momentum, average and random state back. Raises RunError where the checkpoint holds others.

    An average that the recipe has and the checkpoint has not begins at the weights.
    """
    load_network(state.network, content, run.folder / LAST)
    try:
        restore_momentum(content["momentum"], state)
        if state.average:
            begun = {"network": content["network"], "updates": 0}
            state.average.load_state_dict(content["average"] or begun)
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and content["random_cuda"]:
            torch.cuda.set_rng_state(content["random_cuda"][0])
        state.progress = Progress(**content["progress"])
        device = next(state.network.parameters()).device
        state.before = [weights.to(device) for weights in content["before"]]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise RunError(
            f"{run.folder / LAST} is no checkpoint that a training goes on from; put back the one that train wrote"
        ) from None


def restore_momentum(found: dict[str, torch.Tensor], state: Training) -> None:
    """What `momentum` kept. Raises ValueError where a weight has another shape."""
    for name, weight in state.network.named_parameters():
        if name in found and state.optimiser.defaults["momentum"]:
            if found[name].shape != weight.shape:
                raise ValueError(name)
            state.optimiser.state[weight]["momentum_buffer"] = found[name].to(weight.device)


def drop_later_rows(run: Run, progress: Progress) -> None:
    """Drop the rows of epochs that are trained again."""
    done = progress.epoch - (progress.trained is not None)
    for name in (METRICS, TIMES):
        run.write_rows(name, [row for row in run.rows(name) if row.get("epoch", done) < done])
