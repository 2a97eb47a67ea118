"""The `dali` engine: one graph, decode -> downsample -> warp -> colour, on a GPU or on DALI's CPU backend.

Before it: `loader` says which images, under which matrices. After it: torch tensors on the device. Training,
validation, test-time augmentation, averaging and saliency all run this graph; only their matrices differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from numpy.typing import NDArray

from greyhound.cache.errors import one_line
from greyhound.cache.store import Pack
from greyhound.pipelines.augment import MAX_LOG2_REDUCTION, spans
from greyhound.pipelines.decoded import no_longer_decodes
from greyhound.pipelines.engine import BatchSpec, Device, EngineConfig, Stream, StreamError


def graph(source: Callable[[], Any], config: EngineConfig) -> Any:
    """The whole path of an image as a DALI pipeline, not yet built: it can be inspected without a driver.

    source: returns, for one batch, lists or arrays: encoded bytes, stored (height, width), log2_reduction of
    both, geometry `[K, 3, 3]`, the two arrays of `outside` and colour `[K, 3, 4]` of each image. Output:
    float32 `[K, S, S, 3]` an image; for one view `[S, S, 3]`.
    """
    from nvidia.dali import fn, pipeline_def, types

    gpu = config.device == "gpu"
    dtypes, ndims = [types.UINT8, types.FLOAT, types.INT32, *[types.FLOAT] * 4], [1, 1, 1, 3, 2, 2, 3]
    square = (config.size, config.size)

    @pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
    def image_path() -> Any:
        inputs = fn.external_source(source, num_outputs=7, batch=True, no_copy=True, dtype=dtypes, ndim=ndims)
        encoded, size, log2_reduction, geometry, place, extent, colour = inputs
        images = _decode(gpu, encoded, size, log2_reduction)
        views = []
        for view in range(config.views):
            matrix = geometry[view].gpu() if gpu else geometry[view]
            warped = fn.experimental.warp_perspective(images, matrix, size=square, border_mode="replicate")
            filled = fn.erase(
                warped, anchor=place[view], shape=extent[view], axes=(0, 1), fill_value=config.fill
            )
            views.append(fn.coord_transform(filled, MT=colour[view], dtype=types.FLOAT))
        return fn.stack(*views) if len(views) > 1 else views[0]

    return image_path(
        batch_size=config.batch_size,
        num_threads=config.threads,
        device_id=_gpu() if gpu else None,
        prefetch_queue_depth=config.prefetch,
        exec_dynamic=True,
    )


def _decode(gpu: bool, encoded: Any, size: Any, log2_reduction: Any) -> Any:
    """Encoded bytes to pixels, each image at its own reduction."""
    from nvidia.dali import fn, math

    images, deepest = decode(gpu, encoded), fn.reductions.max(log2_reduction)
    for level in range(MAX_LOG2_REDUCTION):
        if deepest > level:
            block = 1 + (log2_reduction > level)  # 2, or 1 along a side that is small enough
            size = math.ceil(size / block)
            images = _downsample(images, size, block)
    return images


def decode(gpu: bool, encoded: Any) -> Any:
    """Encoded bytes to all their pixels."""
    from nvidia.dali import fn

    return fn.decoders.image(
        encoded,
        device="mixed" if gpu else "cpu",
        adjust_orientation=False,  # the geometry matrix turns the image
        jpeg_fancy_upsampling=True,  # as libjpeg does: a GPU sees the pixels that a CPU sees
    )


def _gpu() -> int:
    """The GPU that torch uses; without a driver the first, so that the graph can be inspected."""
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _downsample(images: Any, size: Any, block: Any) -> Any:
    """Average blocks of 2 x 2, 1 x 2 or 2 x 1 pixels: at exactly 1/2 linear interpolation does that."""
    from nvidia.dali import fn, types

    return fn.resize(
        images,
        size=size,
        roi_start=[0.0, 0.0],
        roi_end=size * block,  # one row or column past an odd edge, where the edge repeats
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )


def outside(spans: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The window less the image, as rectangles of one row: before it, and after it; some have no pixel.

    spans: `[B, K, 2, S]`, as `augment.spans` gives it. Returns their places and their extents, float32
    `[B, K, 4 * S]`, each (down, across) in turn.
    """
    first, last = spans[:, :, 0], spans[:, :, 1]
    place, extent = np.zeros((2, *first.shape, 2, 2), dtype=np.float32)
    place[..., 0] = np.arange(spans.shape[-1])[:, None]
    place[..., 1, 1] = last
    extent[..., 0] = 1
    extent[..., 0, 1], extent[..., 1, 1] = first, spans.shape[-1] - last
    flat = (*spans.shape[:2], 4 * spans.shape[-1])
    return place.reshape(flat), extent.reshape(flat)


def stream(pack: Pack, specs: Iterator[BatchSpec], config: EngineConfig) -> Stream:
    """Answer `specs` in their order, `config.prefetch` of them ahead; see `engine.Engine`."""
    # DALI reads the arrays in place, so they are held until the answer.
    asked: deque[tuple[BatchSpec, Any]] = deque()

    def source() -> Any:
        for spec in specs:
            with pack.naming_corrupt(spec.ids):
                encoded = [pack.encoded(index) for index in spec.ids]
            stored = pack.stored_sizes[spec.ids]
            shown = spans(spec.geometry, stored, spec.log2_reduction, config.size)
            sizes, reduction = stored[:, ::-1].astype(np.float32), spec.log2_reduction[:, ::-1].copy()
            asked.append((spec, (encoded, sizes, reduction, spec.geometry, *outside(shown), spec.colour)))
            if len(spec.ids):
                return asked[-1][1]
        raise StopIteration

    def empty() -> Stream:
        """A rank's share of a short last batch may be empty, which DALI refuses: it is never asked for it."""
        while asked and not len(asked[0][0].ids):
            yield asked.popleft()[0], torch.empty(0, *shape)

    shape = (config.views, config.size, config.size, 3)
    pipeline = graph(source, config)
    while True:
        try:
            images = hand_over(pipeline, config.device)
        except StopIteration:
            yield from empty()
            return
        except RuntimeError as error:
            raise _explain(pack, asked, config, error) from error
        yield from empty()
        spec, _ = asked.popleft()
        yield spec, images.view(len(spec.ids), *shape)


def hand_over(pipeline: Any, device: Device) -> torch.Tensor:
    """Run the pipeline once and give torch its only output, without a copy: float32, on its device.

    Order: `run(stream)` binds the output to the stream that torch works on, so that whatever torch enqueues
    there next comes after DALI's last kernel, and the host waits for nothing; `from_dlpack` asks for that
    same stream once more. Lifetime: DALI's dynamic executor reuses no output while anyone holds it, and the
    DLPack capsule holds it for as long as a tensor lives on that memory. When the last one dies, DALI frees
    the memory in the order of the stream that the output is bound to, so kernels that torch has enqueued
    there still read what they were given. Hence the one rule for who takes a batch: use it on the stream that
    was current when it was asked for, or make that stream wait for the other. Sources: `Pipeline.outputs` in
    nvidia/dali/pipeline.py; `TensorGPU.__dlpack__` (its note on the default execution model);
    `deletion_order` in nvidia/dali/include/dali/pipeline/data/buffer.h; torch/utils/dlpack.py;
    nvidia/dali/plugin/pytorch/torch_utils.py, which does the same.

    Raises what DALI raises: StopIteration at the end, RuntimeError.
    """
    (output,) = pipeline.run(torch.cuda.current_stream() if device == "gpu" else None)
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
    return tensor


def _explain(
    pack: Pack, asked: deque[tuple[BatchSpec, Any]], config: EngineConfig, error: RuntimeError
) -> StreamError:
    """What stopped DALI: images under way that no longer decode, which it does not name, or itself."""
    from greyhound.cache.decode import DecodeError, decode

    bad = []
    for index in (index for spec, _ in asked for index in spec.ids):
        try:
            decode(pack.encoded(index), strict=True)
        except DecodeError:
            bad.append(pack.describe(index))
    if bad:
        found = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return no_longer_decodes(pack, found)
    said, remedy = one_line(error), "--engine threads does the same on the CPU"
    if "memory" in str(error) or "bad_alloc" in str(error):
        remedy = f"lower the batch size, {config.batch_size} images of {config.views} views, or --prefetch"
    return StreamError(f"DALI stopped, though every image of the batch decodes: {said}; {remedy}")
