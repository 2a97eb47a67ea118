"""The `threads` engine: decode -> downsample -> warp -> colour on CPU threads, with libjpeg-turbo and OpenCV.

Before it: `loader` says which images, under which matrices. After it: torch tensors in host memory. All three
steps release the GIL, so plain threads use every core. What lies between the steps lies in memory of the
thread's own that stays in its cache, and the last step writes straight into the batch.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from greyhound.cache.decode import downsample
from greyhound.cache.errors import one_line
from greyhound.cache.store import Pack
from greyhound.pipelines.augment import Augment, draw, log2_reduction, spans, to_stored
from greyhound.pipelines.engine import BatchSpec, EngineConfig, Stream, StreamError

Floats = NDArray[np.float32]
_PADDED = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])  # what `Scratch.pad` moves an image by
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def stream(pack: Pack, specs: Iterator[BatchSpec], config: EngineConfig) -> Stream:
    """Answer `specs` in their order, `config.prefetch` of them ahead; see `engine.Engine`."""
    cv2.setNumThreads(1)  # the threads are ours
    shape = (config.batch_size, config.views, config.size, config.size, 3)
    buffers = BufferPool(shape, config.device == "gpu")
    pool = ThreadPoolExecutor(config.threads, thread_name_prefix="greyhound")
    scratches = [Scratch(config.size, config.fill) for _ in range(config.threads)]
    ahead: deque[tuple[BatchSpec, NDArray[np.float32], list[Future[None]]]] = deque()
    try:
        for spec in specs:
            batch = buffers.get()
            # Decoding starts here, before the oldest is handed out.
            ahead.append((spec, batch, _start(pool, pack, spec, batch, scratches, config)))
            if len(ahead) > config.prefetch:
                yield _finish(pack, buffers, *ahead.popleft())
        while ahead:
            yield _finish(pack, buffers, *ahead.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


class BufferPool:
    """Preallocated batches of one shape, each reused once no tensor on it is alive.

    A consumer that keeps its batches gets new memory for the next ones: nothing is ever overwritten under it.
    """

    def __init__(self, shape: tuple[int, ...], pinned: bool = False) -> None:
        """pinned: page-locked memory, from which a GPU copies fastest."""
        self._shape, self._pinned = shape, pinned
        self._free: list[Floats] = []
        self.allocated = 0

    def get(self) -> Floats:
        """Memory for one batch that nobody reads."""
        if self._free:
            return self._free.pop()
        self.allocated += 1
        fresh: Floats = torch.empty(self._shape, pin_memory=self._pinned).numpy()
        return fresh

    def wrap(self, batch: NDArray[np.float32], count: int) -> torch.Tensor:
        """The first `count` images as a tensor; when the last view of it dies, `batch` is free again."""
        view = batch[:count]
        weakref.finalize(view, self._free.append, batch).atexit = False
        return torch.from_numpy(view)


class Scratch:
    """What one thread needs between the steps of an image; used for every image, it stays in the cache."""

    def __init__(self, size: int, fill: int) -> None:
        """size: S, the window's side. fill: the level of what lies outside the image."""
        self._padded = np.empty(0, dtype=np.uint32)
        self.warped = np.empty((size, size, 4), dtype=np.uint8)
        self.rgb = np.empty((size, size, 3), dtype=np.uint8)
        self.floats = np.empty((size, size, 3), dtype=np.float32)
        columns = np.tri(size + 1, size, -1, dtype=np.bool_)  # row k is true in the first k columns
        self._before, self._from = (255 * each.astype(np.uint8) for each in (columns, ~columns))
        self._mask, self._rest = (np.empty((size, size), dtype=np.uint8) for _ in range(2))
        self._filled = np.full((size, size, 4), fill, dtype=np.uint8)

    def pad(self, pixels: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
        """The image `[H, W, 3]` with 4 bytes a pixel, `[H + 2 edge, W + 2 edge, 4]`; until the next.

        edge: 1 repeats the image's edge once around it, as far as the window sees of it past the edge.

        OpenCV gathers four bytes at once and three one by one. One pass in the order of memory also brings
        the image into the cache before the warp: together twice as fast (docs/log.md, 2026-11-24).
        """
        height, width = pixels.shape[0] + 2 * edge, pixels.shape[1] + 2 * edge
        if self._padded.size < height * width:
            self._padded = np.empty(height * width, dtype=np.uint32)
        padded = self._padded[: height * width].reshape(height, width)
        found = padded.view(np.uint8).reshape(height, width, 4)
        cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA, found[edge : height - edge, edge : width - edge])
        if edge:
            padded[1:-1, 0], padded[1:-1, -1] = padded[1:-1, 1], padded[1:-1, -2]
            padded[0], padded[-1] = padded[1], padded[-2]
        return found

    def fill(self, first: NDArray[np.int32], last: NDArray[np.int32]) -> None:
        """Fill `warped` where the image is not: in each row before a column and from another on; `[S]`."""
        np.take(self._before, first, axis=0, out=self._mask, mode="clip")
        np.take(self._from, last, axis=0, out=self._rest, mode="clip")
        cv2.bitwise_or(self._mask, self._rest, self._mask)
        cv2.copyTo(self._filled, self._mask, self.warped)


def _start(
    pool: ThreadPoolExecutor,
    pack: Pack,
    spec: BatchSpec,
    batch: Floats,
    scratches: list[Scratch],
    config: EngineConfig,
) -> list[Future[None]]:
    """One task a thread; the tasks take images off a common iterator until it is empty."""
    todo = iter(range(len(spec.ids)))  # `next` on it is atomic
    matrices, sizes = to_opencv(spec.geometry), pack.stored_sizes[spec.ids]
    inside = see_no_edge(matrices, sizes * 0.5**spec.log2_reduction, config.size)
    edges = np.asarray(~inside.all(axis=1))
    shown = np.tile(
        np.array([[0], [config.size]], dtype=np.int32), (*spec.geometry.shape[:2], 1, config.size)
    )
    shown[edges] = spans(spec.geometry[edges], sizes[edges], spec.log2_reduction[edges], config.size)
    arguments = (spec, matrices, edges, shown, todo, batch, scratches, config)
    return [pool.submit(fill_rows, *arguments) for _ in range(min(config.threads, len(spec.ids)))]


def _finish(
    pack: Pack, buffers: BufferPool, spec: BatchSpec, batch: Floats, tasks: list[Future[None]]
) -> tuple[BatchSpec, torch.Tensor]:
    for task in tasks:
        try:
            with pack.naming_corrupt(spec.ids):
                task.result()
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(error.err) from error
            said = one_line(error)
            raise StreamError(f"OpenCV stopped: {said}; --engine dali does the same") from error
    return spec, buffers.wrap(batch, len(spec.ids))


def fill_rows(
    spec: BatchSpec,
    matrices: NDArray[np.float64],
    edges: NDArray[np.bool_],
    shown: NDArray[np.int32],
    todo: Iterator[int],
    batch: Floats,
    scratches: list[Scratch],
    config: EngineConfig,
) -> None:
    """A thread's part of a batch: decode the image of each row of `todo` once, warp and colour its views.

    matrices: `[B, K, 2, 3]`, OpenCV's. edges: bool `[B]`, whether a view sees the image's edge. shown: int32
    `[B, K, 2, S]`, as `augment.spans` gives it. batch: float32 `[B, K, S, S, 3]`. scratches: one of them is
    this call's for as long as it takes. Raises BadImageError.
    """
    scratch = scratches.pop()  # there is one for each thread
    whole = (shown == [[0], [config.size]]).all(axis=(2, 3))
    try:
        for row in todo:
            pixels = scratch.pad(config.image_cache.pixels(int(spec.ids[row])), int(edges[row]))
            for view, image in enumerate(batch[row]):
                warp(pixels, matrices[row, view] + edges[row] * _PADDED, scratch.warped)
                if not whole[row, view]:
                    scratch.fill(*shown[row, view])
                colour(scratch.warped, spec.colour[row, view], scratch, image)
    finally:
        scratches.append(scratch)


def centre_window(pixels: NDArray[np.uint8], augment: Augment) -> Floats:
    """What evaluation sees of an upright image in full, uint8 RGB `[H, W, 3]`: float32 `[S, S, 3]`.

    Of a large JPEG a loader sees a little else, up to a few levels: libjpeg reduces it while it decodes.
    """
    sizes = np.array([[pixels.shape[1], pixels.shape[0]]], dtype=np.int32)
    reduction, size = log2_reduction(augment, sizes), augment.size
    geometry, colours = draw(augment.centre(), 0, 0, np.array([0]), sizes)
    stored = to_stored(geometry, sizes, np.array([1], dtype=np.uint8), reduction)[:, None]
    across, down = reduction[0].tolist()
    both, scratch = min(across, down), Scratch(size, augment.fill)
    reduced = downsample(downsample(pixels, both), across - both, down - both)
    warp(scratch.pad(reduced, 1), to_opencv(stored)[0, 0] + _PADDED, scratch.warped)
    scratch.fill(*spans(stored, sizes, reduction, size)[0, 0])
    out = np.empty((size, size, 3), dtype=np.float32)
    colour(scratch.warped, colours[0], scratch, out)
    return out


def warp(pixels: NDArray[np.uint8], matrix: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
    """Fill the window `out`, uint8 `[S, S, C]`, with what its pixels see of the image, uint8 `[H, W, C]`.

    matrix: `[2, 3]`, from the window to the image. What they see past its edge is 0.
    """
    cv2.warpAffine(pixels, matrix, (out.shape[1], out.shape[0]), out, _WARP)


def see_no_edge(matrices: NDArray[np.float64], sizes: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    """Whether all that a view interpolates between lies in the image, bool `[B, K]`: its corners tell.

    matrices: `[B, K, 2, 3]`, OpenCV's. sizes: `[B, 2]`, width and height of the image. size: S.
    """
    corners = np.array([[x, y, 1] for x in (0, size - 1) for y in (0, size - 1)]).T
    seen = matrices @ corners  # `[B, K, 2, 4]`
    last = np.floor(sizes)[:, None, :, None] - 1
    return np.asarray(((seen >= 0) & (seen <= last)).all(axis=(2, 3)))


def colour(warped: NDArray[np.uint8], matrix: Floats, scratch: Scratch, out: Floats) -> None:
    """Write the pixels, uint8 `[S, S, 4]`, times the matrix `[3, 4]` to `out`, float32 `[S, S, 3]`."""
    cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, scratch.rgb)
    np.copyto(scratch.floats, scratch.rgb)
    cv2.transform(scratch.floats, matrix, out)


def to_opencv(geometry: NDArray[np.float32]) -> NDArray[np.float64]:
    """Geometry whose origin is the first pixel's centre: M (p + 1/2) - 1/2 in place of M p, `[..., 2, 3]`."""
    matrices = geometry[..., :2, :].astype(np.float64)
    matrices[..., 2] += 0.5 * (matrices[..., 0] + matrices[..., 1]) - 0.5
    return matrices
