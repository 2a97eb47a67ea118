"""Where a network looks: three maps of an image, and what to hold against them. The network stays as it was.

Before it: a trained network and a batch as evaluation sees it. After it: explain draws the maps beside the
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from greyhound.model.network import GridNetwork, eval_mode

_BRIGHTEST: Final = 99
"""The percentile of a map that is drawn white: by the maximum, one pixel could leave the rest black."""
AT_ONCE: Final = {"cuda": 64, "cpu": 2}
"""Images in a backward pass, by device. On a CPU more take more memory, and no less time."""
Maps: TypeAlias = NDArray[np.float32]
"""Of B images, `[B, S, S]`; the higher, the more it counts."""
Backward: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Noise: TypeAlias = Callable[[slice, int], torch.Tensor]
"""(which of the images, number of the copy) -> standard normal numbers of the images' shape."""


@dataclass(frozen=True)
class Saliency:
    """Of B images. gradient: float32 `[B, S, S]`, the largest |d loss / d input| of the three channels.

    loss: float32 `[B]`, cross entropy. predictions: int64 `[B]`.
    """

    gradient: Maps
    loss: NDArray[np.float32]
    predictions: NDArray[np.int64]


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
        gradient=_strongest(gradient),
        loss=losses.numpy(force=True),
        predictions=logits.argmax(dim=1).numpy(force=True),
    )


def smoothgrad(
    network: nn.Module, images: torch.Tensor, labels: torch.Tensor, noise: Noise, copies: int, spread: float
) -> Maps:
    """The gradient of `saliency`, averaged over noisy copies of each image (Smilkov et al. 2017, equation 2).

    spread: the noise's standard deviation, as a share of each image's range. The signed gradients are
    averaged; then the largest of the three channels is taken.
    """
    at_once, parts = AT_ONCE.get(images.device.type, len(images)), []
    with eval_mode(network), torch.enable_grad():
        for start in range(0, len(images), at_once):
            place = slice(start, start + at_once)
            few, total = images[place].detach(), torch.zeros_like(images[place])
            sigma = spread * (few.amax((1, 2, 3), keepdim=True) - few.amin((1, 2, 3), keepdim=True))
            for copy in range(copies):
                total += _backpropagate(network, few + sigma * noise(place, copy), labels[place])[0]
            parts.append(total / copies)
    return _strongest(torch.cat(parts))


def grad_cam(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> Maps | None:
    """Where the features lie that speak for a class (Selvaraju et al. 2017, equations 1 and 2).

    The features are the last stage's. A grid head sees two stages, and neither alone has all that it knows:
    each gets the map of the gradient that the head sends to it directly, and the two are added by the logit
    that they bring to a place. classes: int64 `[B]`, whose logits. None where a network has no such stages:
    they must be `[B, C, H, W]`, or `[B, H, W, C]` where timm says so (Swin), and the logits depend on them.
    """
    at_once, parts = AT_ONCE.get(images.device.type, len(images)), []
    with eval_mode(network), torch.enable_grad(), _stages_as_leaves(network) as stages:
        for few, wanted in zip(torch.split(images, at_once), torch.split(classes, at_once), strict=True):
            stages.clear()
            logits = network(few)
            if not stages or any(stage.ndim != 4 for stage in stages):
                return None
            chosen = logits.gather(1, wanted[:, None]).sum()
            gradients: Sequence[torch.Tensor] = torch.autograd.grad(chosen, stages, allow_unused=True)
            if any(gradient is None for gradient in gradients):
                return None
            if getattr(_inner(network), "output_fmt", "NCHW") == "NHWC":
                stages[:], gradients = ([each.movedim(3, 1) for each in part] for part in (stages, gradients))
            parts.append(_weigh(stages, gradients, few.shape[-1]))
    return torch.cat(parts).numpy(force=True)


def _weigh(stages: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Of stages `[B, C, H, W]`, the finest first: the map `[B, size, size]`, float32."""
    cells, found = stages[-1][0, 0].numel(), []
    for stage, gradient in zip(stages, gradients, strict=True):
        weights = gradient.sum((2, 3), keepdim=True) / cells  # of the last stage: the mean
        found.append((weights * stage.detach()).sum(1, keepdim=True).float())
    total = torch.stack([_resize(cam, stages[0].shape[2:]) for cam in found]).sum(0)
    return _resize(total.relu(), (size, size))[:, 0]


def _resize(maps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return functional.interpolate(maps, tuple(shape), mode="bilinear", align_corners=False)


def _inner(network: nn.Module) -> Any:
    """Timm's own network."""
    return network.features.network if isinstance(network, GridNetwork) else network


@contextmanager
def _stages_as_leaves(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """While the block runs: what a pass makes of the stages that the head sees, each cut off from before."""
    inner = _inner(network)
    seen = getattr(inner, "feature_info", [])[-2 if isinstance(network, GridNetwork) else -1 :]
    leaves: list[torch.Tensor] = []

    def cut(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()  # what follows may work in place

    hooks = [inner.get_submodule(stage["module"]).register_forward_hook(cut) for stage in seen]
    try:
        yield leaves
    finally:
        for hook in hooks:
            hook.remove()


def _backpropagate(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Backward:
    """Of a few images: the gradient `[B, 3, S, S]`, the losses `[B]`, the logits `[B, K]`, float32."""
    pixels = images.detach().clone().requires_grad_()
    logits = network(pixels)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return gradient, losses.detach().float(), logits.detach().float()


def _strongest(gradient: torch.Tensor) -> Maps:
    """The largest absolute value of the channels, `[B, S, S]` of `[B, 3, S, S]`."""
    return np.asarray(gradient.abs().amax(dim=1).float().numpy(force=True))


def with_head(network: nn.Module, random: nn.Module) -> nn.Module:
    """A copy of the network with the head, or all the heads, of another one of its kind."""
    copy = deepcopy(network)
    heads, others = (cast(Any, each).get_classifier() for each in (copy, random))
    pairs = zip(heads, others, strict=True) if isinstance(heads, tuple) else [(heads, others)]
    for head, other in pairs:
        head.load_state_dict(other.state_dict())
    return copy


def rank_correlation(first: Maps, second: Maps) -> NDArray[np.float64]:
    """Spearman's, of the pixels of each pair of maps, float64 `[B]`; nan where a map has only one value."""
    ranks = [np.stack([_ranks(image.ravel()) for image in maps]) for maps in (first, second)]
    one, other = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        found = (one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    return np.asarray(found)


def _ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks `[n]` from 1; equal values share the mean of theirs."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def peaks(maps: Maps) -> NDArray[np.int64]:
    """Column and row of each map's highest pixel, int64 `[B, 2]`; of several equal ones, the middle.

    -1, -1 where a map is the same everywhere, or has a value that is no number.
    """
    found = np.full((len(maps), 2), -1)
    for place, image in zip(found, maps, strict=True):
        if image.max() > image.min():
            place[:] = np.argwhere(image == image.max()).mean(axis=0)[::-1]
    return found


def normalise(gradient: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Maps `[B, S, S]` for display, uint8: each from 0 to its own 99th percentile, clipped above."""
    finite = np.nan_to_num(gradient, posinf=0.0)
    white = np.percentile(finite, _BRIGHTEST, axis=(1, 2), keepdims=True)
    white = np.where(white > 0, white, finite.max(axis=(1, 2), keepdims=True))
    shares = np.divide(finite, white, out=np.zeros_like(finite), where=white > 0)
    return np.asarray(np.rint(255 * np.minimum(shares, 1)), dtype=np.uint8)
