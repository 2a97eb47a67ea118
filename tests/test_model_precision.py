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


def test_a_compiled_network_shares_its_parameters_and_keeps_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    network, asked = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).train(), []

    def compile(network: nn.Module, **options: object) -> nn.Module:
        asked.append(options)
        return nn.Sequential(network)

    monkeypatch.setattr(torch, "compile", compile)
    called, why = precision.compiled(network, 8, bf16=False)
    assert (why, asked) == ("", [{"mode": "default", "dynamic": False}])
    assert next(called.parameters()) is next(network.parameters())
    assert network.training
    assert network[1].num_batches_tracked == 0


def test_where_compiling_fails_the_network_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("Failed to find\n a C compiler")

    monkeypatch.setattr(torch, "compile", lambda network, **options: Failing())
    network = nn.Conv2d(3, 2, 1).train()
    called, why = precision.compiled(network, 8, bf16=False)
    assert called is network
    assert why == "not compiled (Failed to find a C compiler); the step runs as it is"
    assert network.training


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_step_in_cuda_graphs_is_the_step() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).cuda()
    called, why = precision.compiled(network, 8, bf16=False)
    assert why == ""
    for count in (4, 3, 4, 3, 4):  # as `even_bounds` cuts an epoch
        images = torch.rand(count, 3, 8, 8, device="cuda")
        gradients = []
        for each in (network, called):
            found = torch.autograd.grad(each(images).square().sum(), list(network.parameters()))
            gradients.append([gradient.clone() for gradient in found])
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, rtol=1e-2, atol=1e-3)
