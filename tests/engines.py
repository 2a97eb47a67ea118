"""Marks of tests that need an engine or a GPU, and both engines as a parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch

from greyhound.cache.machine import has_dali
from greyhound.pipelines import dali, threads

F = TypeVar("F", bound=Callable[..., Any])

needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
NAMES = ["threads", pytest.param("dali", marks=needs_dali)]
both = pytest.mark.parametrize("engine", NAMES)
"""The engines' names."""
STREAMS = [
    pytest.param(dali.stream, marks=needs_dali, id="dali"),
    pytest.param(threads.stream, id="threads"),
]


def needs_gpu(test: F) -> F:
    """Skipped where there is none; `-m gpu` selects it."""
    skipped: F = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")(test)
    marked: F = pytest.mark.gpu(skipped)
    return marked
