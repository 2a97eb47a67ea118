"""How numbers are computed: bfloat16 autocast and the backends' switches, in one place.

Before it: a network from `network`. After it: train, average and evaluate all call `forward`.
"""

from __future__ import annotations

import torch
from torch import nn


def forward(network: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Logits, float32 `[B, K]`, of images `[B, 3, S, S]`; inside, bfloat16 where autocast allows and `bf16` asks."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits: torch.Tensor = network(images)
    return logits.float()


def use_fast_kernels() -> None:
    """On a GPU: let cuDNN try its algorithms once a shape, and let float32 products use TF32."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
