"""The state of a training, how far it has come, and the checkpoints that hold it.

Before it: train counts. After it: a resumed training goes on from the last checkpoint; eval and explain read the best.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from model.ema import MovingAverage
from model.run import BEST, LAST, Run, RunError, load_network

Write: TypeAlias = Callable[[Path, dict[str, Any]], None]
"""Writes a checkpoint: `checkpoint.save`, now or beside the training."""


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


@dataclass
class Training:
    """A training between two steps: with torch's random state, all that going on needs."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    average: MovingAverage | None = None
    """The exponential moving average of the weights, where the recipe has one."""
    progress: Progress = field(default_factory=Progress)
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
    """What a validation is ranked by, the higher the better: its accuracy, or how low its cross entropy is."""
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
        "optimiser": state.optimiser.state_dict(),
        "average": state.average.state_dict() if state.average else {},
        "before": state.before if state.progress.images else [],
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    write(run.folder / LAST, content)


def restore(run: Run, content: dict[str, Any], state: Training) -> None:
    """Put weights, momentum, average and random state back. Raises RunError where the checkpoint holds others."""
    load_network(state.network, content, run.folder / LAST)
    try:
        state.optimiser.load_state_dict(content["optimiser"])
        if state.average:
            state.average.load_state_dict(content["average"])
        torch.set_rng_state(content["random"])
        if torch.cuda.is_available() and len(content["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random_cuda"])
        state.progress = Progress(**content["progress"])
        device = next(state.network.parameters()).device
        state.before = [weights.to(device) for weights in content["before"]]
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise RunError(
            f"{run.folder / LAST} is no checkpoint that a training goes on from; put back the one that train wrote"
        ) from None


def drop_later_metrics(run: Run, progress: Progress) -> None:
    """Drop the rows of epochs that are trained again."""
    done = progress.epoch - (progress.trained is not None)
    run.write_metrics([row for row in run.metrics() if row.get("epoch", done) < done])
