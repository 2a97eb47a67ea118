"""How far a training has come, and the checkpoints that hold it.

Before it: train counts. After it: a resumed training goes on from the last checkpoint; eval and explain read the best.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from model.checkpoint import save
from model.run import BEST, LAST, Run, RunError, load_network


@dataclass
class Progress:
    """How far a training has come; with weights, momentum and random state all that going on needs."""

    epoch: int = 0
    images: int = 0
    """Of this epoch, done."""
    loss_sum: float = 0.0
    """Of those images; likewise seconds."""
    seconds: float = 0.0
    best: float = -math.inf
    """Score of best.ckpt on the validation split, see `score`."""
    trained: dict[str, Any] | None = None
    """The row of metrics of an epoch that is trained and not yet validated."""


def score(result: dict[str, Any], by: Literal["accuracy", "loss"]) -> float:
    """What a validation is ranked by, the higher the better: its accuracy, or how low its cross entropy is."""
    return float(result["accuracy"] if by == "accuracy" else -result["valid_loss"])


def scored(
    network: nn.Module, result: dict[str, Any], by: Literal["accuracy", "loss"], after: str
) -> dict[str, Any]:
    """A checkpoint's content: the network and how it validated. after: what was done to it last, for the reader."""
    return {"network": network.state_dict(), "score": score(result, by), "after": after} | result


def keep_best(run: Run, progress: Progress, content: dict[str, Any]) -> None:
    """best.ckpt, if no `scored` content before had as high a score."""
    if content["score"] > progress.best:
        progress.best = content["score"]
        save(run.folder / BEST, content)


def save_last(run: Run, network: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
    """last.ckpt: everything that going on needs."""
    content = {
        "progress": asdict(progress),
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save(run.folder / LAST, content)


def restore(
    run: Run, state: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer
) -> Progress:
    """Put weights, momentum and random state back, and drop the metrics of epochs that are trained again.

    Raises RunError if the checkpoint is of another network.
    """
    load_network(network, state, run.folder / LAST)
    try:
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        progress = Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise RunError(
            f"{run.folder / LAST} is no checkpoint that a training goes on from; put back the one that train wrote"
        ) from None
    done = progress.epoch - (progress.trained is not None)
    run.write_metrics([row for row in run.metrics() if row.get("epoch", done) < done])
    return progress
