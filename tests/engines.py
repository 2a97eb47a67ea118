"""Marks of tests that need an engine or a GPU, both engines as a parameter, and a pack with an image that went bad."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from pictures import encode, noise, packed

from greyhound.cache.machine import has_dali
from greyhound.cache.store import Pack
from greyhound.pipelines import dali, threads

F = TypeVar("F", bound=Callable[..., Any])

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
both = pytest.mark.parametrize("engine", ["threads", pytest.param("dali", marks=needs_dali)])
"""The engines' names."""
STREAMS = [pytest.param(dali.stream, marks=needs_dali, id="dali"), pytest.param(threads.stream, id="threads")]


def needs_gpu(test: F) -> F:
    """Skipped where there is none; `-m gpu` selects it."""
    skipped: F = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test)
    marked: F = pytest.mark.gpu(skipped)
    return marked


def rotten_pack(root: Path) -> Pack:
    """Six images, of which the third lost its first bytes after it was packed."""
    files = [encode(noise(60, 50, seed), "JPEG") for seed in range(6)]
    path = packed(root, {"a": files[:3], "b": files[3:]}).path
    data = bytearray(path.read_bytes())
    place = data.find(files[2])
    data[place : place + 64] = bytes(64)
    path.with_name("rotten.arrow").write_bytes(data)
    return Pack(path.with_name("rotten.arrow"))


def believed(pack: Pack) -> Pack:
    """Take the bytes as they are for those that were packed."""
    images = [pack._raw(row) for row in range(len(pack))]
    pack.crc32s = np.array([zlib.crc32(image.data) for image in images], dtype=np.uint32)
    return pack


def engine_threads() -> list[threading.Thread]:
    """Those of engines that run now."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("greyhound")]
