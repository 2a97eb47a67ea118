"""How far a training has come, and the checkpoints that hold it.

Before it: train counts. After it: a resumed training goes on from the last checkpoint; eval and explain read the best.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from model.checkpoint import save
from model.run import BEST, LAST, Run, load_network


@dataclass
class Progress:
    """How far a training has come; with weights, momentum and random state all that going on needs."""

    epoch: int = 0
    images: int = 0
    """Of this epoch, done."""
    loss_sum: float = 0.0
    """Of those images; likewise seconds."""
    seconds: float = 0.0
    best: float = -1.0
    """Validation accuracy of best.ckpt."""
    trained: dict[str, Any] | None = None
    """The row of metrics of an epoch that is trained and not yet validated."""


def keep_best(run: Run, network: nn.Module, progress: Progress, accuracy: float, after: str) -> None:
    """best.ckpt, if no validation before was as accurate. after: what had been done to the network, for the reader."""
    if accuracy > progress.best:
        progress.best = accuracy
        save(run.folder / BEST, {"network": network.state_dict(), "accuracy": accuracy, "after": after})


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
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["random"])
    if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    progress = Progress(**state["progress"])
    done = progress.epoch - (progress.trained is not None)
    run.write_metrics([row for row in run.metrics() if row["epoch"] < done])
    return progress
