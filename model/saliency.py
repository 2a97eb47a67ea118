"""Where a network looks: the gradient of the loss at the pixels. The network stays as it was.

Before it: a trained network and a batch as evaluation sees it. After it: explain draws the maps beside the
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from greyhound.model.network import eval_mode

_BRIGHTEST: Final = 99
"""The percentile of a map that is drawn white: by the maximum, one pixel could leave the rest black."""
AT_ONCE: Final = {"cuda": 64, "cpu": 2}
"""Images in a backward pass, by device. On a CPU more take more memory, and no less time."""
Maps: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Saliency:
    """Of B images. gradient: float32 `[B, S, S]`, the largest |d loss / d input| of the three channels.

    loss: float32 `[B]`, cross entropy. predictions: int64 `[B]`. probabilities: float32 `[B, K]`.
    """

    gradient: NDArray[np.float32]
    loss: NDArray[np.float32]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def saliency(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Saliency:
    """Backpropagate each image's cross entropy to its pixels (Simonyan et al. 2013, section 3.1).

    images: `[B, 3, S, S]` on the network's device. labels: int64 `[B]`. In evaluation mode, where no image
    sees another. Parameters get no gradient; network and images stay as they were.
    """
    at_once = AT_ONCE.get(images.device.type, len(images))
    with eval_mode(network), torch.enable_grad():
        parts = [
            _backpropagate(network, *pair)
            for pair in zip(torch.split(images, at_once), torch.split(labels, at_once), strict=True)
        ]
    gradient, losses, logits = map(torch.cat, zip(*parts, strict=True))
    return Saliency(
        gradient=gradient.numpy(force=True),
        loss=losses.numpy(force=True),
        predictions=logits.argmax(dim=1).numpy(force=True),
        probabilities=logits.softmax(dim=1).numpy(force=True),
    )


def _backpropagate(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Maps:
    """Of a few images: the gradient `[B, S, S]`, the losses `[B]`, the logits `[B, K]`; float32."""
    pixels = images.detach().clone().requires_grad_()
    logits = network(pixels)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return gradient.abs().amax(dim=1).float(), losses.detach().float(), logits.detach().float()


def normalise(gradient: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Maps `[B, S, S]` for display, uint8: each from 0 to its own 99th percentile, clipped above."""
    finite = np.nan_to_num(gradient, posinf=0.0)
    white = np.percentile(finite, _BRIGHTEST, axis=(1, 2), keepdims=True)
    white = np.where(white > 0, white, finite.max(axis=(1, 2), keepdims=True))
    shares = np.divide(finite, white, out=np.zeros_like(finite), where=white > 0)
    return np.asarray(np.rint(255 * np.minimum(shares, 1)), dtype=np.uint8)
