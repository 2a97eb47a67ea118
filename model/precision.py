"""How numbers are computed: bfloat16 or float32, and the backends' switches, in one place.

Before it: a network from `network`. After it: train, average and evaluate all call `forward`.
"""

from __future__ import annotations

import torch
from torch import nn


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16.

    Where it has none torch computes it all the same, in emulation: on a CPU with AVX2 alone, EfficientNet-lite0 took
    12 times as long as in float32, and more (docs/log.md, 2026-11-24).
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def forward(network: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Logits, float32 `[B, K]`, of images `[B, 3, S, S]`; in bfloat16 inside, where autocast allows, if `bf16`."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits: torch.Tensor = network(images)
    return logits.float()


def use_fast_kernels() -> None:
    """On a GPU: let cuDNN try its algorithms once a shape, and let float32 products use TF32."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
