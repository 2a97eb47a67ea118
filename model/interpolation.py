"""A network between two others: the weights on the straight line from one to the other.

Before it: a network whose head was solved, and what training made of it. After it: what lies between is validated;
fine-tuning forgets some of what the pretrained network knew, and on the way back there is often a network better than
both (WiSE-FT: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models").
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn


@torch.no_grad()
def interpolated(first: nn.Module, last: nn.Module, share: float) -> nn.Module:
    """A copy of `last` whose weights lie `share`, 0..1, of the way from those of `first`; buffers are those of `last`.

    The statistics of BatchNorm fit it only where they are the same in both: see `Recipe.frozen_statistics`.
    """
    network = deepcopy(last)
    for weight, start in zip(network.parameters(), first.parameters(), strict=True):
        weight.copy_(torch.lerp(start, weight, share))
    return network
