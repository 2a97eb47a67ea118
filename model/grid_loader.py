"""Load a network as `greyhound export --format safetensors` wrote it, from its folder.

    network = load("FOLDER")
    logits = network(images)  # float32 [n, 3, S, S]: size, mean and std are in config.json

It needs torch, timm and safetensors alone, and stands in the folder as load.py. A head with a grid sees the
pooled features of the last layer, and those of the last two stages averaged on it; timm loads the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d


class GridClassifier(nn.Module):
    """A timm network without its head, and a linear one."""

    def __init__(self, backbone: Any, grid: int, head: dict[str, torch.Tensor]) -> None:
        """grid: cells a side. head: weight `[K, D]` and bias `[K]`."""
        super().__init__()
        self.backbone, self.grid = backbone, grid
        self.pretrained_cfg = backbone.pretrained_cfg  # of which timm makes the transform
        self.classifier = nn.Linear(head["weight"].shape[1], head["weight"].shape[0])
        self.classifier.load_state_dict(head)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[n, K]` of images `[n, 3, S, S]`."""
        last, stages = self.backbone.forward_intermediates(images, indices=2)
        cells = [adaptive_avg_pool2d(stage, self.grid).flatten(1) for stage in stages]
        features = torch.cat([self.backbone.forward_head(last, pre_logits=True), *cells], dim=1)
        logits: torch.Tensor = self.classifier(features)
        return logits


def load(folder: str | Path) -> nn.Module:
    """The network, in evaluation mode, on the CPU."""
    grid = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["greyhound"]["grid"]
    backbone: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if not grid:
        return backbone
    return GridClassifier(backbone, grid, load_file(Path(folder, "classifier.safetensors"))).eval()
