"""model/precision.py: bfloat16 only where the device has it, steps compiled, BatchNorm fused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from runs import Patch, train_on
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from greyhound.model import precision
from greyhound.model.network import build


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
    monkeypatch: Patch, capabilities: dict[str, object], expected: bool
) -> None:
    named = torch.cpu.get_capabilities()
    assert {"avx512_bf16", "amx_bf16"} <= named.keys() or named["architecture"] != "x86_64"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.has_bf16(torch.device("cpu")) is expected


@pytest.mark.parametrize("bf16", [False, True])
def test_forward_computes_in_bf16_only_if_asked_and_returns_float32(bf16: bool) -> None:
    network = nn.Linear(3, 2)
    seen: list[torch.dtype] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    logits = precision.forward(network, torch.ones(4, 3), bf16)
    assert logits.dtype == torch.float32
    assert seen == [torch.bfloat16 if bf16 else torch.float32]


def test_fast_kernels_are_switched_on(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        precision.use_fast_kernels(torch.device("cpu"))
        assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def small(dropout: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten())
    return body.append(nn.Linear(4 * 36, 5)).to(memory_format=torch.channels_last).train()


def same(network: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_compiled_network_shares_its_parameters_and_the_trial_leaves_no_trace(monkeypatch: Patch) -> None:
    network, asked, seen = small(), [], []
    before, random = deepcopy(network.state_dict()), torch.get_rng_state()
    network.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].shape, out.requires_grad)))

    def compile(network: nn.Module, **options: object) -> nn.Module:
        asked.append(options)
        return nn.Sequential(network)

    monkeypatch.setattr(torch, "compile", compile)
    called, why = precision.compiled(network, [7, 6], 8, bf16=False)
    assert (why, asked) == ("", [{"mode": "default", "dynamic": False}])
    assert next(called.parameters()) is next(network.parameters())
    assert seen == [((7, 3, 8, 8), True), ((6, 3, 8, 8), True)] * 3
    assert network.training
    assert same(network, before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.get_rng_state().equal(random)


@pytest.mark.parametrize("when", ["forward", "full_backward"])
def test_where_compiling_fails_the_network_is_called_as_it_is(monkeypatch: Patch, when: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Failed to find\n a C compiler")

    def compile(network: nn.Module, **options: object) -> nn.Module:
        called = nn.Sequential(network)
        getattr(called, f"register_{when}_pre_hook")(fail)
        return called

    monkeypatch.setattr(torch, "compile", compile)
    network = small()
    before = deepcopy(network.state_dict())
    called, why = precision.compiled(network, [2], 8, bf16=False)
    assert called is network
    assert why == "not compiled (Failed to find a C compiler); the step runs as it is"
    assert network.training
    assert same(network, before)


def trained(device: str, bf16: bool, compile: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights after steps of the batch sizes that `even_bounds` cuts an epoch into, and how far they came."""
    network = small(dropout=0.0).to(device)  # compiled, dropout draws other numbers
    start = flat(network)
    called, why = precision.compiled(network, [4, 3], 8, bf16) if compile else (network, "")
    assert why == ""
    drawn, batches = torch.Generator().manual_seed(1), []
    for count in (4, 3, 4, 3, 4):
        images = torch.rand(count, 3, 8, 8, generator=drawn).to(device, memory_format=torch.channels_last)
        batches.append((images, torch.randint(5, (count,), generator=drawn).to(device)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    train_on(network, batches, 0.05, optimizer, called, classes=5, precision="bf16" if bf16 else "fp32")
    return flat(network), flat(network) - start


def flat(network: nn.Module) -> torch.Tensor:
    """Its weights and BatchNorm's statistics in one row."""
    return torch.cat([value.detach().float().flatten().cpu() for value in network.state_dict().values()])


def apart(device: str, bf16: bool) -> float:
    """How far from each other steps that are compiled and steps that are not end, as a share of the way."""
    (one, way), (other, _) = (trained(device, bf16, compile) for compile in (False, True))
    return float((one - other).norm() / way.norm())


def test_compiled_steps_are_the_steps(monkeypatch: Patch) -> None:
    """The graphs of torch.compile, run without generated code."""
    real = torch.compile

    def compile(network: nn.Module, mode: str, dynamic: bool) -> Any:
        return real(network, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile)
    assert apart("cpu", bf16=False) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_steps_in_cuda_graphs_are_the_steps(bf16: bool) -> None:
    """A gradient that outlived its step, or a graph that read an old weight, would lead elsewhere."""
    assert apart("cuda", bf16) < 0.1


# --- convolutions and BatchNorms fused: the same logits, fewer layers, the network left alone ---------------


def lively(name: str) -> nn.Module:
    """A network whose BatchNorms have seen something, so that folding them changes every weight."""
    torch.manual_seed(0)
    network = build(name, 3, "none")
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


def logits(network: nn.Module, count: int, side: int) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network(torch.linspace(0, 1, count * 3 * side**2).view(count, 3, side, side))
    return found


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet", "mobilenetv3_small_050"])
def test_the_copy_has_the_networks_logits_and_no_batchnorm(name: str) -> None:
    network = lively(name)
    before = deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    copy = precision.fuse_conv_bn(network, 64)
    assert norms(network) > 0
    assert norms(copy) == 0
    assert not any(module.training for module in copy.modules())
    assert [module.training for module in network.modules()] == modes
    assert same(network, before)
    expected = logits(network.eval(), 4, 64)
    assert torch.allclose(logits(copy, 4, 64), expected, atol=1e-3 * float(expected.abs().max()))


def test_a_network_without_batchnorm_is_copied() -> None:
    network = build("test_vit", 3, "none")
    copy = precision.fuse_conv_bn(network, 160)
    assert logits(copy, 1, 160).equal(logits(network.eval(), 1, 160))
    assert copy is not network


class Forked(nn.Module):
    """The convolution's output goes two ways, so it must stay what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        straight = self.convolution(images)
        result: torch.Tensor = (straight + self.norm(straight)).mean((2, 3))
        return result


def test_a_convolution_that_is_used_twice_is_left_alone() -> None:
    torch.manual_seed(0)
    network = Forked()
    nn.init.constant_(network.norm.weight, 5.0)
    copy = precision.fuse_conv_bn(network, 8)
    assert norms(copy) == 1
    assert logits(copy, 2, 8).equal(logits(network.eval(), 2, 8))


def test_a_norm_that_uses_the_batchs_own_statistics_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    assert norms(precision.fuse_conv_bn(network, 8)) == 1


@pytest.mark.parametrize("grid", [0, 1])
def test_the_head_computes_in_float32_under_bf16(grid: int) -> None:
    """Of a thousand classes, logits in bfloat16 tie in half of the rows; these do not."""
    torch.manual_seed(0)
    network = build("test_efficientnet", 1000, "none", grid=grid).eval()
    seen: list[torch.Tensor] = []
    network.get_classifier().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[operator]
    with torch.no_grad():
        logits = precision.forward(network, torch.rand(64, 3, 32, 32), bf16=True)
        head = network.get_classifier()  # type: ignore[operator]
        expected = torch.nn.functional.linear(seen[0].float(), head.weight, head.bias)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert not torch.equal(logits, logits.bfloat16().float())
    top = logits.topk(2).values
    assert (top[:, 0] > top[:, 1]).all()
