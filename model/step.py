"""One step of training, and one pass of validation.

Before it: images and labels on the network's device. After it: train goes round these two, epoch by epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from greyhound.model import ranks
from greyhound.model.network import leaving_no_trace
from greyhound.model.precision import forward

Pairs: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images `[B, 3, S, S]` and labels int64 `[B]`, on the network's device."""
Loss: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits `[B, K]` and labels `[B]`, or soft targets `[B, K]` -> the batch's mean loss."""


def train_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
    rate: float,
    bf16: bool,
    weight: float = 1.0,
    clip: float = 0.0,
) -> torch.Tensor:
    """One step at `rate`, times a group's `lr_scale`; the batch's mean loss before it, still on the device.

    weight: of this batch's gradient, where a network of several ranks averages theirs: see `share_weight`. clip: a
    gradient that is longer is made so long (Pascanu et al. 2013); 0: it is taken as it is.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    # Before the forward pass: of a CUDA graph gradients are memory that the next call writes to.
    optimiser.zero_grad(set_to_none=True)
    value = mean_loss(loss, forward(network, images, bf16), labels)
    (value * weight).backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_(network.parameters(), clip)
    optimiser.step()
    return value.detach()


def share_weight(share: int, whole: int) -> float:
    """The weight at which a rank's mean loss over `share` of the `whole` batch's images goes into the ranks' average.

    (1 / N) * sum of w_r * mean_r over N ranks is the mean over all images where w_r = N * share_r / whole.
    """
    return ranks.count() * share / whole


def mean_loss(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The batch's mean loss; of a rank's empty share 0, with gradients of 0, for the other ranks wait for them."""
    return loss(logits, labels) if len(labels) else logits.sum()


@torch.no_grad()
def loss_again(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, loss: Loss, bf16: bool
) -> torch.Tensor:
    """A batch's mean loss after its step, in the mode that the network is in, still on the device.

    The step's own loss is the one before it and says nothing of the weights that it left. What the pass changes, the
    network's statistics and torch's random state, is put back.
    """
    with leaving_no_trace(network):
        return mean_loss(loss, forward(network, images, bf16), labels)


@torch.no_grad()
def validate(network: nn.Module, batches: Pairs, bf16: bool) -> dict[str, Any]:
    """Plain cross entropy and accuracy over one pass of all ranks, and its n; read from the device once, at the end.

    Leaves the network in evaluation mode. Raises ValueError if there is no batch.
    """
    network.eval()
    sums: torch.Tensor | None = None
    count = 0
    for images, labels in batches:
        logits = forward(network, images, bf16)
        losses = functional.cross_entropy(logits, labels, reduction="sum")
        found = torch.stack([losses.double(), (logits.argmax(1) == labels).sum().double()])
        sums, count = found if sums is None else sums + found, count + len(labels)
    if sums is None:
        raise ValueError("there are no images to validate on; expected at least one batch")
    sums = torch.cat([sums, sums.new_tensor([count])])
    ranks.add_up([sums])
    loss, right, n = sums.tolist()
    return {"valid_loss": loss / n, "accuracy": right / n, "n": int(n)}
