"""Soft targets: between an image's label and what a head says of it that never saw it.

Before it: `head.solve`, which comes to such probabilities on its way. After it: train steps along the cross entropy
against the targets. A network that is fitted to labels alone soon knows a few thousand images by heart; targets that
are as doubtful as the images leave little to know by heart (self-distillation: Furlanello et al. 2018, "Born-Again
Neural Networks"). Out of fold, because of the images that it was solved on a head is too sure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


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
