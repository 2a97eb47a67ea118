"""A few steps of a training, and nothing written: whether it can be, what it would take, whether it computes the same twice.

Before it: a network and its batches. After it: `train.py --dry-run` and `--verify-determinism` print what came of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from greyhound.model.memory import Memory
from greyhound.model.network import evaluating
from greyhound.model.precision import forward
from greyhound.model.step import Loss, Pairs, train_step

TIMED_STEPS: Final = 4
"""Steps that a dry run times; the first one, which is slower, does not count."""
REPEATED_STEPS: Final = 20
"""Steps that are taken twice and compared."""
_CARD: Final = 8e9
"""Bytes of the GPU that the author's recipe was made on."""


@dataclass(frozen=True)
class Extent:
    """How much there is to train. steps: an epoch. passes: of the training set more, for the averaging."""

    network: str
    precision: str
    batch_size: int
    steps: int
    epochs: int
    passes: int


@torch.no_grad()
def refusal(network: nn.Module, size: int, bf16: bool) -> str:
    """Why the network does not take an image `[1, 3, size, size]`, in a line; empty where it does."""
    device = next(network.parameters()).device
    try:
        with evaluating(network):
            forward(network, torch.zeros(1, 3, size, size, device=device), bf16)
    except Exception as error:  # networks have errors of their own
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def take_steps(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: Pairs,
    loss: Loss,
    rate: float,
    bf16: bool,
    clip: float = 0.0,
) -> list[float]:
    """`train_step` on every one of `batches`, at one rate; the seconds of each step, the loader's not among them."""
    seconds = []
    for images, labels in batches:
        started = time.perf_counter()
        float(train_step(network, optimiser, images, labels, loss, rate, bf16, clip=clip))
        seconds.append(time.perf_counter() - started)
    return seconds


def forecast(extent: Extent, memory: Memory, seconds: Sequence[float]) -> list[str]:
    """What the training would take, in lines. seconds: of `TIMED_STEPS` steps of its own batches."""
    step, batch, passes = statistics.median(seconds[1:]), extent.batch_size, extent.passes
    return [
        f"network: {extent.network}, {memory.parameters:,} parameters, {extent.precision}",
        f"memory: {memory.per_image / 2**20:.1f} MiB an image and {memory.fixed / 2**20:.1f} MiB besides: a batch of "
        f"{batch} takes {memory.batch(batch) / 1e9:.2f} GB; {_CARD / 1e9:.0f} GB hold "
        f"{memory.fitting(_CARD)} images (counted; what libraries need for themselves comes on top)",
        f"steps: {extent.steps:,} an epoch, {extent.steps * extent.epochs:,} in {extent.epochs} epochs; averaging passes "
        f"{passes} times more over the training set",
        f"time: {step:.3f} s a step, the median of {len(seconds) - 1} here; {step * extent.steps:,.0f} s an epoch, "
        f"{step * extent.steps * (extent.epochs + passes) / 3600:,.2f} h in all, validation not counted",
    ]


def compare(hashes: Sequence[str]) -> tuple[bool, str]:
    """Whether the weights after `REPEATED_STEPS` steps, taken twice, are equal, by their hashes; and a line that says so."""
    first, second = hashes
    same = first == second
    verdict = "equal, bit for bit" if same else "which differ: this machine does not compute the same twice"
    return same, f"{REPEATED_STEPS} steps twice: weights {first[:16]} and {second[:16]}, {verdict}"
