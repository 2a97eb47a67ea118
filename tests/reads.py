"""Host reads: which lines of torch made the host wait for a value of the device, seen also where the device is the CPU.

Before it: a loop that should read nothing. After it: tests/test_sync.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
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
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _OPERATORS or _indexes_by_mask(func, args):
            self.found.append(str(func))
        return func(*args, **kwargs or {})


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _METHODS:
            self.found.append(func.__name__)
        return func(*args, **kwargs or {})


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """For as long as the block runs, the names of what this thread reads from tensors, in order."""
    found: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_Operators(found))
        stack.enter_context(_Methods(found))
        yield found
