"""model/precision.py: bfloat16 only where the device has it, and the allocator's switches."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.autograd import Function

from greyhound.model import precision
from greyhound.model.averaging import MovingAverage
from greyhound.model.step import train_step


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


def small(dropout: float = 0.5) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def test_a_compiled_network_shares_its_parameters_and_the_trial_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, asked, seen = small().train(), [], []
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
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.get_rng_state().equal(random)


class NoCompiler(Function):
    """As the identity, but for its backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Failed to find\n a C compiler")


class Failing(nn.Module):
    """What torch.compile returned, where it fails at the first call, or at the first backward pass alone."""

    def __init__(self, network: nn.Module, when: str) -> None:
        super().__init__()
        self.network, self.when = network, when

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.when == "forward":
            raise RuntimeError("Failed to find\n a C compiler")
        found: torch.Tensor = NoCompiler.apply(self.network(images))
        return found


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_where_compiling_fails_the_network_is_called_as_it_is(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **options: Failing(network, when))
    network = small().train()
    before = deepcopy(network.state_dict())
    called, why = precision.compiled(network, [2], 8, bf16=False)
    assert called is network
    assert why == "not compiled (Failed to find a C compiler); the step runs as it is"
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Trained(NamedTuple):
    """A network after some steps, its average, and how far it came."""

    network: nn.Module
    average: nn.Module
    way: torch.Tensor


def trained(device: str, bf16: bool, compile: bool) -> Trained:
    """Steps as `fast` takes them, of the batch sizes that `even_bounds` cuts an epoch into."""
    network = small(dropout=0.0).to(device)  # compiled, dropout draws other numbers
    start = flat(network)
    called, why = precision.compiled(network, [4, 3], 8, bf16) if compile else (network, "")
    assert why == ""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    average, loss, drawn = (
        MovingAverage(network, 0.5),
        nn.CrossEntropyLoss(),
        torch.Generator().manual_seed(1),
    )
    for count in (4, 3, 4, 3, 4):
        pixels = torch.rand(count, 3, 8, 8, generator=drawn).to(device, memory_format=torch.channels_last)
        targets = torch.rand(count, 5, generator=drawn).softmax(1).to(device)
        train_step(called, optimizer, pixels, targets, loss, 0.05, bf16, clip=0.5)
        average.update(network)
    return Trained(network, average.network, flat(network) - start)


def flat(network: nn.Module) -> torch.Tensor:
    """Its weights and BatchNorm's statistics in one row."""
    return torch.cat([value.detach().float().flatten().cpu() for value in network.state_dict().values()])


def apart(one: Trained, other: Trained) -> float:
    """How far from each other two trainings and their averages ended, as a share of the way."""
    pairs = (one.network, other.network), (one.average, other.average)
    return max(float((flat(a) - flat(b)).norm() / one.way.norm()) for a, b in pairs)


def test_compiled_steps_are_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs of torch.compile, run without generated code."""
    real = torch.compile

    def compile(network: nn.Module, mode: str, dynamic: bool) -> Any:
        return real(network, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compile)
    plain = trained("cpu", bf16=False, compile=False)
    assert apart(plain, trained("cpu", bf16=False, compile=True)) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bf16", [False, True])
def test_steps_in_cuda_graphs_are_the_steps(bf16: bool) -> None:
    """A gradient that outlived its step, or a graph that read an old weight, would lead elsewhere."""
    assert apart(trained("cuda", bf16, compile=False), trained("cuda", bf16, compile=True)) < 0.1
