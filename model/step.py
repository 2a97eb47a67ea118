"""What a step of training is made of, one pass of validation, and the refusal of a loss that is not finite.

Before it: images and labels on the network's device. After it: train writes out the step with these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from greyhound.model import distributed
from greyhound.model.precision import forward
from greyhound.model.run import RecipeError

Pairs: TypeAlias = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images `[B, 3, S, S]` and labels int64 `[B]`, on the network's device."""
Examples: TypeAlias = Iterable[tuple[torch.Tensor, ...]]
"""Images, labels, and weights float32 `[B]` where images weigh differently, on the network's device; where
they are mixed, also the labels of the images mixed in, and the weights of those."""
Loss: TypeAlias = Callable[..., torch.Tensor]
"""Logits `[B, K]`, labels `[B]`, and perhaps what else an example has -> the batch's mean loss."""


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every weight."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def ddp_loss_weight(local: int, total: int) -> float:
    """The weight, in the ranks' average, of a rank's mean loss over `local` of the batch's `total` images.

    DDP averages: (1 / N) * sum of w_r * mean_r over N ranks is the mean over all images where w_r = N *
    local_r / total.
    """
    return distributed.world_size() * local / total


def micro_batches(examples: Sequence[torch.Tensor], size: int, total: int, views: int) -> Examples:
    """A rank's share of a batch in parts of at most `size` images, 0: in one part.

    total: images of the batch over all ranks, in `views` views each. Every rank gets as many parts, since DDP
    waits for all of them after each; some may be empty.
    """
    largest = -(-total // distributed.world_size()) * views
    parts = -(-largest // size) if size else 1
    return zip(*(each.tensor_split(parts) for each in examples), strict=True)


def mean_loss(loss: Loss, logits: torch.Tensor, labels: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    """The batch's mean loss. Of an empty share 0, with gradients of 0: the other ranks wait for them."""
    return loss(logits, labels, *rest) if len(labels) else logits.sum()


@torch.no_grad()
def validate(network: nn.Module, batches: Pairs, bf16: bool) -> dict[str, Any]:
    """Plain cross entropy, accuracy and n over one pass of all ranks; read from the device once.

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
    distributed.all_reduce_sum([sums])
    loss, right, n = sums.tolist()
    return {"valid_loss": loss / n, "accuracy": right / n, "n": int(n)}


def image_weights(
    labels: NDArray[np.integer[Any]], weights: NDArray[np.floating[Any]], balanced: bool
) -> NDArray[np.float32]:
    """The weights of training images, their mean 1: float32 `[n]`.

    labels: `[n]`. weights: `[n]`, from 0, one above it. balanced: times one weight a class, so that all
    classes with a weight weigh the same.
    """
    found: NDArray[np.float64] = weights / weights.mean(dtype=np.float64)
    if balanced:
        sums = np.bincount(labels, found)
        classes = len(found) / (np.count_nonzero(sums) * np.where(sums, sums, 1))
        found *= classes[labels]
    return found.astype(np.float32)


def weighted(loss_fn: nn.CrossEntropyLoss) -> Loss:
    """The loss; with weights `[B]`, the mean over a batch of each image's own times its weight.

    Torch's own weights divide by their sum in the batch, so that parts of a batch would not add up to it.
    mixed: labels and weights `[B]` of the images mixed in. An image's loss is the sum over both.
    """
    each = nn.CrossEntropyLoss(label_smoothing=loss_fn.label_smoothing, reduction="none")

    def loss(
        logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None, *mixed: torch.Tensor
    ) -> torch.Tensor:
        if weights is None:
            plain: torch.Tensor = loss_fn(logits, labels)
            return plain
        losses: torch.Tensor = each(logits, labels) * weights
        if mixed:
            others, shares = mixed
            losses = losses + each(logits, others) * shares
        return losses.mean()

    return loss


def smoothed_cross_entropy(epsilon: float, classes: int) -> nn.CrossEntropyLoss:
    """Mean cross entropy of logits `[B, K]` against 1 - e on the true class, e / (K - 1) on every other.

    Torch spreads its smoothing over all K classes, the true one among them, so it must be given e * K / (K -
    1) (Szegedy et al. 2016, section 7, is torch's form). Raises ValueError unless 0 <= e <= (K - 1) / K,
    where the true class is no less likely than another.
    """
    if classes < 2:
        raise ValueError(f"label smoothing over {classes} classes; expected at least 2")
    if not 0 <= epsilon <= (classes - 1) / classes:
        raise ValueError(f"label smoothing of {epsilon}; expected 0 to {(classes - 1) / classes:.3g}")
    return nn.CrossEntropyLoss(label_smoothing=min(1.0, epsilon * classes / (classes - 1)))


class DivergedError(RecipeError):
    """The loss or a gradient is not finite."""


def remedy(max_grad_norm: float) -> str:
    """What to do about a training that diverged; max_grad_norm: its recipe's."""
    limit = "" if max_grad_norm else ", or with --max-grad-norm 1"
    return f"earlier checkpoints are kept: train into another folder at a lower --lr{limit}"


def check_finite(row: dict[str, Any], highest_rate: float, max_grad_norm: float) -> None:
    """Refuse a network whose validation loss is not finite; earlier checkpoints stay.

    Raises DivergedError.
    """
    if not math.isfinite(row["valid_loss"]):
        found = f"epoch {row['epoch']} has valid_loss = {row['valid_loss']} at rates up to {highest_rate:g}"
        raise DivergedError(f"{found}: the network diverged; {remedy(max_grad_norm)}")


def check_averaging(loss: float, rate: float) -> None:
    """Refuse a network whose loss averaging made infinite or nan; nothing of it is kept.

    Raises DivergedError.
    """
    if not math.isfinite(loss):
        found = f"averaging came to a loss of {loss} at a rate of {rate:g}, so the network diverged"
        todo = "go on with a lower --averaging.rate, or --averaging.steps 0, and --force recipe"
        raise DivergedError(f"{found}; earlier checkpoints are kept: {todo}")
