"""A trained network as a folder that timm opens: weights under timm's names, and its configuration.

Before it: `export` has a trained network. After it: `load` of load.py, which lies in every such folder; or
`timm.create_model("local-dir:FOLDER", pretrained=True)`. timm does not know the head that the recipe `fast`
may choose, which sees a grid: this gives timm's network without a head, and `load` adds it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from greyhound.model.network import GridNetwork, Triple

CROP_MODES: Final = {"crop": "center", "pad": "border", "squash": "squash"}
"""What timm calls each `fit`."""


class Preprocessing(NamedTuple):
    """What the network expects: `Augment`'s size, fit, mean and std."""

    size: int
    fit: str
    mean: Triple
    std: Triple


def write(
    network: nn.Module, name: str, preprocessing: Preprocessing, properties: Mapping[str, Any], folder: Path
) -> None:
    """Write the network, of that name in timm, into an empty folder.

    properties: JSON values, `classes` among them; config.json holds them as `greyhound`.
    """
    from safetensors.torch import save  # its save_file writes files that only their owner reads

    classes, inner, grid = list(properties["classes"]), network, 0
    if isinstance(network, GridNetwork):
        inner, grid = network.features.network, network.grid
        (folder / "classifier.safetensors").write_bytes(save(_tensors(network.classifier)))
    shutil.copyfile(Path(__file__).with_name("grid_loader.py"), folder / "load.py")
    (folder / "model.safetensors").write_bytes(save(_tensors(inner), {"format": "pt"}))
    config = {
        "architecture": name.partition(".")[0],
        "num_classes": 0 if grid else len(classes),
        "label_names": classes,
        "pretrained_cfg": _describe(inner, preprocessing, 0 if grid else len(classes)),
        "greyhound": {**properties, "grid": grid},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> nn.Module:
    """The network of such a folder, as its user loads it."""
    from greyhound.model import grid_loader

    return grid_loader.load(folder)


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy in the order of memory that safetensors takes."""
    return {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}


def _describe(network: Any, preprocessing: Preprocessing, classes: int) -> dict[str, Any]:
    """What timm calls a `PretrainedCfg`; what it has for a test, at another size, is this too."""
    known, shape = network.pretrained_cfg, [3, preprocessing.size, preprocessing.size]
    return {
        "tag": "greyhound",
        "input_size": shape,
        "test_input_size": shape,
        "fixed_input_size": bool(known.get("fixed_input_size")),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "test_crop_pct": 1.0,
        "crop_mode": CROP_MODES[preprocessing.fit],
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "num_classes": classes,
        "first_conv": known.get("first_conv"),
        "classifier": known.get("classifier"),
    }
