"""Solve the head on frozen features before fine-tuning.

Before it: a pretrained network with a random head. After it: train fine-tunes the whole network, whose gradients no
longer start from a head that knows nothing (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features").
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.network import evaluating

_ITERATIONS: Final = 10_000
_ABSENT: Final = 10.0
"""How far below the lowest logit of any image a class without images is put."""


@torch.no_grad()
def features(
    network: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], bf16: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the head sees, float32 `[n, D]`, and the labels, int64 `[n]`, of one pass over `batches`.

    network: a timm network; it is left as it was. batches: images `[B, 3, S, S]` and labels `[B]` on its device. bf16:
    compute in bfloat16 where autocast allows. Raises ValueError if there is no batch.
    """
    parts = []
    with evaluating(network):
        for images, labels in batches:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                pooled = _pooled(network, images)
            parts.append((pooled.float(), labels))
    if not parts:
        raise ValueError("there are no images to solve the head on; expected at least one batch")
    rows, targets = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return rows, targets


def solve(
    network: nn.Module, features: NDArray[np.float32], labels: NDArray[np.int64], strength: float = 1.0
) -> None:
    """Set the head to the logistic regression of labels int64 `[n]`, 0..K-1, on features float32 `[n, D]`.

    The features are standardised first; the scaling is folded into the weights, so that the network's logits are
    the regression's decision function. strength: sklearn's C, the inverse of its L2 penalty. A class without images
    gets a constant logit below all others. Raises ValueError if the labels are not of two classes or more in 0..K-1.
    """
    # scikit-learn takes a second to import, which a run without a solved head should not wait for
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    head = _classifier(network)
    _check(labels, head.out_features)
    scaler = StandardScaler().fit(features.astype(np.float64))
    scaled = scaler.transform(features.astype(np.float64))
    regression = LogisticRegression(C=strength, max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # short of the optimum, or at the limit of precision, the head is as good a start
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(scaled, labels)
    weight, bias = _rows(regression)
    lowest = float((scaled @ weight.T + bias).min())
    all_weight = np.zeros((head.out_features, scaled.shape[1]))
    all_bias = np.full(head.out_features, lowest - _ABSENT)
    all_weight[regression.classes_] = weight / scaler.scale_
    all_bias[regression.classes_] = bias - weight @ (scaler.mean_ / scaler.scale_)
    _set(head, all_weight, all_bias)


def _pooled(network: Any, images: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return pooled


def _classifier(network: Any) -> nn.Linear:
    head = network.get_classifier()
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ValueError(
            f"the head is {type(head).__name__}; expected a linear layer with a bias: train without solve_head"
        )
    return head


def _check(labels: NDArray[np.int64], classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}")
    if labels.min() == labels.max():
        raise ValueError(f"all labels are {labels.min()}; expected images of at least two classes")


def _rows(regression: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A row a class. Of two classes sklearn gives the difference of their rows: half of it goes to each."""
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])


@torch.no_grad()
def _set(head: nn.Linear, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    head.weight.copy_(torch.from_numpy(weight))
    head.bias.copy_(torch.from_numpy(bias))
