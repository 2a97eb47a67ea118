"""model/precision.py: bfloat16 only where the device has it, and the allocator's switches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model import precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx2": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({}, False),
    ],
)
def test_a_cpu_has_bf16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.has_bf16(torch.device("cpu")) is expected


def test_torch_still_names_the_capabilities_that_are_asked_for() -> None:
    assert {"avx512_bf16", "amx_bf16"} <= torch.cpu.get_capabilities().keys() or torch.cpu.get_capabilities()[
        "architecture"
    ] != "x86_64"


@pytest.mark.parametrize("bf16", [False, True])
def test_forward_computes_in_bf16_only_if_asked_and_returns_float32(bf16: bool) -> None:
    network = nn.Linear(3, 2)
    seen: list[torch.dtype] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    logits = precision.forward(network, torch.ones(4, 3), bf16)
    assert logits.dtype == torch.float32
    assert seen == [torch.bfloat16 if bf16 else torch.float32]


def test_fast_kernels_are_switched_on() -> None:
    precision.use_fast_kernels(torch.device("cpu"))
    assert torch.backends.cudnn.benchmark
    assert torch.get_float32_matmul_precision() == "high"
