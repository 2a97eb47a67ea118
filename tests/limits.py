"""What a system without room does, or one that does not let root do everything, for as long as a block runs."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PERMISSIONS: Final = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of capabilities(7): what makes root go past a file's mode."""
_VERSION: Final = 0x20080522
_SET_SECUREBITS: Final = 28
_NOROOT: Final = 1
"""Of prctl(2): a program that root starts gets no capabilities for being root's."""


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes; a larger one fails as on a full disk, with File too large."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """The calling thread, and the threads and programs that it starts, heed the modes of files as any user does."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and again for the higher 32
    _done(libc.capget(header, sets))
    effective = sets[0]
    try:
        if os.geteuid() == 0:
            _done(libc.prctl(_SET_SECUREBITS, _NOROOT, 0, 0, 0))
        sets[0] = effective & ~_PERMISSIONS
        _done(libc.capset(header, sets))
        yield
    finally:
        sets[0] = effective
        _done(libc.capset(header, sets))
        if os.geteuid() == 0:
            _done(libc.prctl(_SET_SECUREBITS, 0, 0, 0, 0))


def _done(answer: int) -> None:
    """Raises OSError where the system refused a call."""
    if answer:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
