"""Host reads: which lines of torch made the host wait for a value of the device, seen also where the device
is the CPU.

Before it: a loop that should read nothing. After it: tests/test_sync.py and the GPU check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from runs import tiny_context
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from greyhound import train
from greyhound.cache.store import Pack
from greyhound.pipelines.engine import Device, EngineName, Resources
from greyhound.pipelines.loader import Batch
from greyhound.recipe import FINE

aten = torch.ops.aten
WARM = 6
"""Steps before the watch begins: a ring is filled by then, and cuDNN has tried its algorithms."""
WATCHED = 6
SMALL = replace(FINE.augment, size=32)
RECIPE = replace(FINE, network="test_efficientnet", weights="none", augment=SMALL, batch_size=6, views=2)
_OPERATORS = {
    aten._local_scalar_dense.default,  # item, float, int, bool, if, and indexing by a tensor of the host
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,  # its output's size is data; so are the next ones'
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
_METHODS = {"tolist", "numpy", "cpu", "__array__", "__repr__", "__format__"}
"""Of a tensor: they read its memory without an operator where that is the host's."""


def _indexes_by_mask(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the size of the result is data: an index of truth values is turned into places first."""
    indices = args[1] if func in (aten.index.Tensor, aten.index_put_.default) else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    found: list[str]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OPERATORS or _indexes_by_mask(func, args):
            self.found.append(str(func))
        return func(*args, **kwargs or {})


class _Methods(TorchFunctionMode):
    found: list[str]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _METHODS:
            self.found.append(func.__name__)
        return func(*args, **kwargs or {})


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """For as long as the block runs, the names of what this thread reads from tensors, in order."""
    operators, methods = _Operators(), _Methods()  # type: ignore[no-untyped-call]
    operators.found = methods.found = []
    with operators, methods:
        yield operators.found


@contextmanager
def syncs_raise() -> Iterator[list[str]]:
    """While the block runs, an operation of torch that waits for the GPU raises; so none is listed."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield []
    finally:
        torch.cuda.set_sync_debug_mode(before)


def walk(
    pack: Pack, device: Device, watch: Callable[[], AbstractContextManager[Any]], engine: EngineName = "auto"
) -> Any:
    """Take steps of an epoch with all that the recipe `fast` asks for, as train does, the last under `watch`.

    Network, images and epoch are small.
    """
    found: list[Any] = []
    with tiny_context(pack, RECIPE, Resources(engine, device, threads=1)) as context:
        following = context.with_progress

        def follow(*values: Any) -> Iterator[Batch]:
            with ExitStack() as stack:
                for number, batch in enumerate(islice(following(*values), WARM + WATCHED)):
                    if number == WARM:
                        found.append(stack.enter_context(watch()))
                    yield batch

        vars(context)["with_progress"] = follow
        train.train_epoch(context, context.compiled())
    return found[0]
