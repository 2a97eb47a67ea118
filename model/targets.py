"""Soft targets: between an image's label and what a head says of it that never saw it.

Before it: `head.solve`, which comes to such probabilities on its way. After it: train steps along the cross entropy
against the targets. A network that is fitted to labels alone soon knows a few thousand images by heart; targets that
are as doubtful as the images leave little to know by heart (self-distillation: Furlanello et al. 2018, "Born-Again
Neural Networks"). Out of fold, because of the images that it was solved on a head is too sure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from greyhound.model.checkpoint import CheckpointError, load, save
from greyhound.model.run import RunError


def write(path: Path, targets: SoftTargets, pack: str) -> None:
    """Keep them for as long as the run lasts, once: of many images they are larger than a network. Raises CheckpointError.

    pack: the digest of the pack that the images are of.
    """
    save(path, {"ids": targets.ids, "probabilities": targets.probabilities.cpu(), "pack": pack})


def read(path: Path, share: float, pack: str, classes: int) -> SoftTargets | None:
    """What `write` kept, at the share that the recipe now has; None where it is of another pack. Raises RunError."""
    remedy = "go on without it, --distillation 0 --force recipe, or train into another folder"
    try:
        content = load(path)
        found = SoftTargets(content["ids"], content["probabilities"], share)
        fitting = found.probabilities.shape == (*found.ids.shape, classes) and found.ids.ndim == 1
        fitting &= found.ids.dtype == torch.int64 and found.probabilities.is_floating_point()
    except CheckpointError as error:
        raise RunError(
            f"distillation is {share}, and only a run's start makes its targets: {error}; or {remedy}"
        ) from None
    except (KeyError, TypeError, AttributeError):
        fitting = False
    if not fitting:
        raise RunError(
            f"{path} holds no targets of {classes} classes; put back the file that train wrote, or {remedy}"
        )
    return found if content.get("pack") == pack else None


@dataclass(frozen=True)
class SoftTargets:
    """A target for every image of `ids`, int64 `[n]`, ascending: `share` of its probabilities, the rest its label.

    probabilities: float32 `[n, K]`, on the network's device, in the order of ids.
    """

    ids: torch.Tensor
    probabilities: torch.Tensor
    share: float

    def to(self, device: torch.device) -> SoftTargets:
        """The same, its probabilities on that device."""
        return replace(self, probabilities=self.probabilities.to(device))

    def of(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The targets, float32 `[B * V, K]`, of a batch: ids int64 `[B]`, in host memory; labels `[B * V]`, V views each.

        Of an image that is none of ours, as one that was damaged when the head was solved, the target is its label.
        """
        rows = torch.searchsorted(self.ids, ids.contiguous())
        ours = self.ids[rows.clamp(max=len(self.ids) - 1)] == ids
        rows = torch.where(ours, rows, -1).to(labels.device, non_blocking=True)
        rows = rows.repeat_interleave(len(labels) // max(1, len(ids)))
        known = self.probabilities[rows.clamp(min=0)]
        target = torch.zeros_like(known).scatter_(1, labels[:, None], 1.0)
        return target.lerp(known, self.share * (rows >= 0)[:, None])
