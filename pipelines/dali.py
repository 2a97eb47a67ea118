"""The `dali` engine: one graph, decode -> halve -> warp -> colour, on a GPU or on DALI's CPU backend.

Before it: `loader` says which images, under which matrices. After it: torch tensors on the device. Training,
validation, test-time augmentation, averaging and saliency all run this graph; only their matrices differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import torch
import torch.utils.dlpack

from greyhound.cache.store import Pack
from greyhound.pipelines.augment import MAX_HALVINGS
from greyhound.pipelines.request import (
    BadImageError,
    Device,
    Originals,
    Request,
    Settings,
    Stream,
    StreamError,
)

_NOTHING: Final = np.zeros(1, dtype=np.uint8)
_NO_PIXELS: Final = np.zeros((1, 1, 3), dtype=np.uint8)


def graph(source: Callable[[], Any], settings: Settings) -> Any:
    """The whole path of an image as a DALI pipeline, not yet built: it can be inspected without a driver.

    source: returns, for one batch, lists or arrays: encoded bytes, stored (height, width) and halvings of each image; if
    the tier keeps any, whether it keeps this one, and its pixels `[H, W, 3]`; geometry `[K, 3, 3]` and colour
    `[K, 3, 4]`. Output: float32 `[K, S, S, 3]` an image; for one view `[S, S, 3]`.
    """
    from nvidia.dali import fn, pipeline_def, types

    gpu = settings.device == "gpu"
    matrices = [(types.FLOAT, 3, ""), (types.FLOAT, 3, "")]
    original = [(types.UINT8, 1, ""), (types.FLOAT, 1, ""), (types.INT32, 0, "")]
    if settings.tier.kept.any():
        original += [(types.BOOL, 0, ""), (types.UINT8, 3, "HWC")]
    dtypes, ndims, layouts = zip(*original, *matrices, strict=True)

    @pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
    def image_path() -> Any:
        *found, geometry, colour = fn.external_source(
            source,
            num_outputs=len(dtypes),
            batch=True,
            no_copy=True,
            dtype=list(dtypes),
            ndim=list(ndims),
            layout=list(layouts),
        )
        images = _decode(gpu, *found) if len(found) == 3 else _decode_or_take(gpu, *found)
        views = []
        for view in range(settings.views):
            matrix = geometry[view].gpu() if gpu else geometry[view]
            warped = fn.experimental.warp_perspective(
                images, matrix, size=(settings.size, settings.size), fill_value=settings.fill
            )
            views.append(fn.coord_transform(warped, MT=colour[view], dtype=types.FLOAT))
        return fn.stack(*views) if len(views) > 1 else views[0]

    return image_path(
        batch_size=settings.batch_size,
        num_threads=settings.threads,
        device_id=_gpu() if gpu else None,
        prefetch_queue_depth=settings.prefetch,
        exec_dynamic=True,
    )


def _decode(gpu: bool, encoded: Any, size: Any, halvings: Any) -> Any:
    """Encoded bytes to pixels, halved as often as each image needs."""
    from nvidia.dali import math

    images = decode(gpu, encoded)
    for level in range(MAX_HALVINGS):
        if halvings > level:
            size = math.ceil(size / 2)
            images = _halve(images, size)
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


def _decode_or_take(gpu: bool, encoded: Any, size: Any, halvings: Any, kept: Any, pixels: Any) -> Any:
    """The pixels that the tier keeps, or the decoder's."""
    if kept:  # noqa: SIM108, DALI splits a batch at statements alone
        images = pixels.gpu() if gpu else pixels
    else:
        images = _decode(gpu, encoded, size, halvings)
    return images


def _gpu() -> int:
    """The GPU that torch uses; without a driver the first, so that the graph can be inspected."""
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def _halve(images: Any, size: Any) -> Any:
    """Average blocks of 2 x 2 pixels: at exactly 1/2 that is what linear interpolation does."""
    from nvidia.dali import fn, types

    return fn.resize(
        images,
        size=size,
        roi_start=[0.0, 0.0],
        roi_end=size * 2,  # one row or column past an odd edge, where the edge repeats
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )


def stream(pack: Pack, requests: Iterator[Request], settings: Settings) -> Stream:
    """Answer `requests` in their order, `settings.prefetch` of them ahead; see `request.Engine`."""
    # DALI reads the arrays in place, so they are held until the answer.
    asked: deque[tuple[Request, Any]] = deque()

    def source() -> Any:
        for request in requests:
            with pack.naming_corrupt(request.ids):
                asked.append((request, _arrays(pack, request, settings.tier)))
            if len(request.ids):
                return asked[-1][1]
        raise StopIteration

    def empty() -> Stream:
        """A rank's share of a short last batch may be empty; DALI is never asked for it, since it refuses nothing."""
        while asked and not len(asked[0][0].ids):
            yield asked.popleft()[0], torch.empty(0, *shape)

    shape = (settings.views, settings.size, settings.size, 3)
    pipeline = graph(source, settings)
    while True:
        try:
            images = hand_over(pipeline, settings.device)
        except StopIteration:
            yield from empty()
            return
        except RuntimeError as error:
            raise _explain(pack, asked, settings, error) from error
        yield from empty()
        request, _ = asked.popleft()
        yield request, images.view(len(request.ids), *shape)


def hand_over(pipeline: Any, device: Device) -> torch.Tensor:
    """Run the pipeline once and give torch its only output, without a copy: float32, on the pipeline's device.

    Order: `run(stream)` binds the output to the stream that torch works on, so that whatever torch enqueues there next
    comes after DALI's last kernel, and the host waits for nothing; `from_dlpack` asks for that same stream once more.
    Lifetime: DALI's dynamic executor reuses no output while anyone holds it, and the DLPack capsule holds it for as long
    as a tensor lives on that memory. When the last one dies, DALI frees the memory in the order of the stream that the
    output is bound to, so kernels that torch has enqueued there still read what they were given. Hence the one rule for
    who takes a batch: use it on the stream that was current when it was asked for, or make that stream wait for the
    other. Sources: `Pipeline.outputs` in nvidia/dali/pipeline.py; `TensorGPU.__dlpack__` (its note on the default
    execution model); `deletion_order` in nvidia/dali/include/dali/pipeline/data/buffer.h; torch/utils/dlpack.py;
    nvidia/dali/plugin/pytorch/torch_utils.py, which does the same.

    Raises what DALI raises: StopIteration at the end, RuntimeError.
    """
    (output,) = pipeline.run(torch.cuda.current_stream() if device == "gpu" else None)
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
    return tensor


def _arrays(pack: Pack, request: Request, tier: Originals) -> tuple[Any, ...]:
    """What `graph` asks its source for; of an image that the tier keeps no byte is decoded, so none is given."""
    sizes = pack.stored_sizes[request.ids][:, ::-1].astype(np.float32)
    if not tier.kept.any():
        encoded = [pack.encoded(index) for index in request.ids]
        return encoded, sizes, request.halvings, request.geometry, request.colour
    kept = tier.kept[request.ids]
    rows = list(zip(request.ids.tolist(), kept.tolist(), strict=True))
    encoded = [_NOTHING if here else pack.encoded(index) for index, here in rows]
    pixels = [tier.pixels(index) if here else _NO_PIXELS for index, here in rows]
    return encoded, sizes, request.halvings, kept, pixels, request.geometry, request.colour


def _explain(
    pack: Pack, asked: deque[tuple[Request, Any]], settings: Settings, error: RuntimeError
) -> StreamError:
    """What stopped DALI: images of the batches under way that no longer decode, which it does not name, or itself."""
    from greyhound.cache.decode import DecodeError, decode

    bad = []
    for index in (index for request, _ in asked for index in request.ids):
        try:
            decode(pack.encoded(index), strict=True)
        except DecodeError:
            bad.append(pack.describe(index))
    if bad:
        found = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return BadImageError(
            f"an image no longer decodes: {found}. Check the pack: greyhound verify {pack.path}"
        )
    said = " ".join(str(error).split())
    remedy = (
        f"lower the batch size, {settings.batch_size} images of {settings.views} views, or --prefetch"
        if "memory" in said or "bad_alloc" in said
        else "--engine threads does the same on the CPU"
    )
    return StreamError(f"DALI stopped, though every image of the batch decodes: {said[:300]}; {remedy}")
