"""Stochastic weight averaging: full-batch gradient steps after training, and the mean of their weights.

Before it: a trained network. After it: the averaged network is validated and saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from greyhound.model import distributed
from greyhound.model.network import eval_mode, set_train_mode
from greyhound.model.step import Examples, Loss, mean_loss

Forward: TypeAlias = Callable[[nn.Module, torch.Tensor], torch.Tensor]
"""How a network is called: the place for autocast."""


def call(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The plain way to call a network."""
    logits: torch.Tensor = network(images)
    return logits


def average(
    network: nn.Module,
    passes: Callable[[], Examples],
    images: int,
    loss: Loss,
    rate: float,
    steps: int,
    forward: Forward = call,
    freeze_bn: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """A copy whose parameters are the mean of those after each of `steps` full-batch steps at `rate`.

    passes: called for one pass over the training set's `images`, once a step and once more for BatchNorm,
    whose statistics are refreshed for the mean unless they are frozen (`network.set_train_mode`). on_step:
    called with the step, from 0, and the mean loss before it. The network itself is left as it is. Raises
    ValueError.
    """
    if steps < 1:
        raise ValueError(f"averaging over {steps} steps; expected at least 1")
    walker = deepcopy(network)
    optimizer = torch.optim.SGD(walker.parameters(), lr=rate)
    averaged = AveragedModel(walker)
    for step in range(steps):
        value = full_batch_step(walker, passes(), images, loss, optimizer, forward, freeze_bn)
        averaged.update_parameters(walker)
        if on_step:
            on_step(step, value)
    if not freeze_bn:
        refresh_batchnorm(averaged.module, passes(), forward)
    return averaged.module


def full_batch_step(
    network: nn.Module,
    batches: Examples,
    images: int,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    forward: Forward = call,
    freeze_bn: bool = False,
) -> float:
    """One step along the gradient of the mean loss over all `images`, of all ranks.

    Returns that loss.

    Batches may differ in size. BatchNorm, where there is any, still normalises each by its own statistics.
    The loss is read from the device once, at the end. Raises ValueError if the batches hold another number of
    images; then no step is made.
    """
    set_train_mode(network, freeze_bn)
    optimizer.zero_grad(set_to_none=True)
    total, seen = torch.zeros((), dtype=torch.float64, device=next(network.parameters()).device), 0
    for pixels, labels, *rest in batches:
        share = mean_loss(loss, forward(network, pixels), labels, *rest) * (len(labels) / images)
        share.backward()  # type: ignore[no-untyped-call]
        total, seen = total + share.detach().double(), seen + len(labels)
    counted = torch.tensor([seen])  # in host memory
    distributed.all_reduce_sum([total, counted])
    (seen,) = counted.tolist()
    if seen != images:
        raise ValueError(f"one pass gave {seen} images; expected the whole training set, {images}")
    distributed.all_reduce_sum(
        parameter.grad for parameter in network.parameters() if parameter.grad is not None
    )
    optimizer.step()
    return float(total)


@torch.no_grad()
def refresh_batchnorm(network: nn.Module, batches: Examples, forward: Forward = call) -> None:
    """Set BatchNorm's running statistics to the mean of the batches' own, weighted by their images.

    Like torch's `update_bn`, but a short last batch counts by its size, and dropout is off, as in evaluation.
    A network without BatchNorm takes nothing from `batches`.
    """
    momenta = {module: module.momentum for module in network.modules() if isinstance(module, _BatchNorm)}
    seen = 0
    try:
        with eval_mode(network):
            for images, *_ in batches if momenta else ():
                seen += len(images)
                for norm in momenta:
                    # 1 at first: what was there before is gone.
                    norm.train().momentum = len(images) / max(1, seen)
                forward(network, images)
        _mean_over_ranks(momenta, seen)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _mean_over_ranks(norms: Iterable[_BatchNorm], seen: int) -> None:
    """Replace running statistics by their mean over the ranks, weighted by the images that each has seen."""
    if distributed.world_size() == 1:
        return
    images = torch.tensor(float(seen))
    distributed.all_reduce_sum([images])
    for norm in norms:
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                statistic *= seen / float(images)
                distributed.all_reduce_sum([statistic])
