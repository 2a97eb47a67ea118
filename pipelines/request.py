"""What the loader asks an engine for: the words that `loader`, `tier`, `dali` and `threads` share.

Before it: draws and order. After it: an engine, which turns every request into one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from greyhound.cache.errors import UserError
from greyhound.cache.store import Pack

Device = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Request:
    """One batch: which images, under which matrices; K views of each.

    ids: int64 `[B]`, rows of the pack. geometry: float32 `[B, K, 3, 3]`, output pixel -> stored pixel after the
    halvings. colour: float32 `[B, K, 3, 4]`. halvings: int32 `[B]`. epoch, stop: where the stream stands once this
    batch is done, as an epoch and a number of images of it.
    """

    ids: NDArray[np.int64]
    geometry: NDArray[np.float32]
    colour: NDArray[np.float32]
    halvings: NDArray[np.int32]
    epoch: int
    stop: int


class Originals(Protocol):
    """Where an engine gets pixels that are decoded already; `tier.Tier` is the one there is."""

    kept: NDArray[np.bool_]
    """Rows of the pack whose pixels are held in memory, or will be."""

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Row `index`, decoded and halved: uint8 `[H, W, 3]`."""


@dataclass(frozen=True)
class Settings:
    """What stays the same from batch to batch. size, fill: pixels and level, as in `Augment`."""

    size: int
    fill: int
    views: int
    batch_size: int
    threads: int
    prefetch: int
    device: Device
    tier: Originals


Stream = Iterator[tuple[Request, torch.Tensor]]
"""Requests and their images: float32 `[B, K, S, S, 3]`, in the order asked for."""

Engine = Callable[[Pack, Iterator[Request], Settings], Any]
"""A generator function `(pack, requests, settings) -> Stream`; closing the generator frees what it holds."""


class ResourcesError(UserError):
    """What was asked for is not there, or does not fit; the message is one line for the user."""


class StreamError(UserError):
    """The engine stopped: the message is one line for the user."""


class HangError(StreamError):
    """The engine does not go on."""

    hung = True


class BadImageError(StreamError):
    """An image of the pack did not decode, though it did when it was packed."""
