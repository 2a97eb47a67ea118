"""Import timm and make optimizers without the compiler of torch: seconds, and 150 MB.

Before it: nothing. After it: `network` asks here for timm; the linear probe and `session` make optimizers.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

import torch

_disable_dynamo: Any = getattr(getattr(torch, "_compile", None), "_disable_dynamo", None)
"""torch's own, which may go: then the compiler is imported, as always."""
_UTILS: Final = "torch._dynamo.utils"
_MARK: Final = "__dynamo_disable"
"""Where torch 2.14's `_disable_dynamo` keeps what it calls instead of a function."""


def import_timm() -> Any:
    """The module timm. Raises ImportError."""
    if _disable_dynamo and not {"timm", "torch._dynamo"} & {*sys.modules}:
        with _without_garbage(), _compiler_later():
            return importlib.import_module("timm")
    return importlib.import_module("timm")


@contextmanager
def without_compiler() -> Iterator[None]:
    """For as long as the block runs, making an optimizer does not import torch._dynamo.

    torch imports it to keep it away from `add_param_group`. Where nothing is compiled, nothing has to be kept
    away, and the function is called as it is. SGD's first step imports the compiler; L-BFGS's steps do not.
    """
    add = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    if add is None or hasattr(add, _MARK) or "torch._dynamo" in sys.modules:
        yield
        return
    setattr(add, _MARK, add)
    try:
        yield
    finally:
        vars(add).pop(_MARK, None)  # another thread may have taken it away


@contextmanager
def _without_garbage() -> Iterator[None]:
    """Nothing is collected while the block imports: it leaves no garbage, and what it brings stays."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()


@contextmanager
def _compiler_later() -> Iterator[None]:
    """For as long as the block runs, torch._dynamo is imported where it is used and not where it is named.

    torchvision 0.29 (ops/roi_align.py) and timm 1.0.31 (models/naflexvit.py) name one function of it each,
    and it brings sympy and 800 modules more. Whoever asks for anything else of it gets the module itself.
    """
    standing_in = _LaterUtils(_UTILS)
    disable = torch.compiler.disable
    sys.modules[_UTILS] = standing_in
    torch.compiler.disable = _disable_later
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(_UTILS) is standing_in:
            del sys.modules[_UTILS]


class _LaterUtils(ModuleType):
    """Stands in for torch._dynamo.utils."""

    @staticmethod
    def is_compile_supported(device: Any) -> Any:
        """As torch's: it is imported now."""
        return importlib.import_module(_UTILS).is_compile_supported(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` asks every module for its file
            raise AttributeError(name)
        if sys.modules.get(_UTILS) is self:
            del sys.modules[_UTILS]
        return getattr(importlib.import_module(_UTILS), name)


def _disable_later(
    fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None
) -> Any:
    """`torch.compiler.disable` as torch itself has it inside: torch._dynamo is imported at the first call."""
    return _disable_dynamo(fn, recursive)
