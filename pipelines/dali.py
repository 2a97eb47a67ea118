"""The `dali` engine: one graph, decode -> halve -> warp -> colour, on a GPU or on DALI's CPU backend.

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

from cache.store import Pack
from pipelines.augment import MAX_HALVINGS
from pipelines.request import BadImageError, Request, Settings, Stream, StreamError


def graph(source: Callable[[], Any], settings: Settings) -> Any:
    """The whole path of an image as a DALI pipeline, not yet built: it can be inspected without a driver.

    source: returns, for one batch, five lists or arrays: encoded bytes, stored (height, width), halvings, geometry
    `[K, 3, 3]` and colour `[K, 3, 4]` of each image. Output: float32 `[K, S, S, 3]` an image; for one view `[S, S, 3]`.
    """
    from nvidia.dali import fn, math, pipeline_def, types

    gpu = settings.device == "gpu"

    @pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
    def image_path() -> Any:
        encoded, size, halvings, geometry, colour = fn.external_source(
            source,
            num_outputs=5,
            batch=True,
            no_copy=True,
            dtype=[types.UINT8, types.FLOAT, types.INT32, types.FLOAT, types.FLOAT],
            ndim=[1, 1, 0, 3, 3],
        )
        images = fn.decoders.image(
            encoded,
            device="mixed" if gpu else "cpu",
            adjust_orientation=False,  # the geometry matrix turns the image
            jpeg_fancy_upsampling=True,  # as libjpeg does: a GPU sees the pixels that a CPU sees
        )
        for level in range(MAX_HALVINGS):
            if halvings > level:
                size = math.ceil(size / 2)
                images = _halve(images, size)
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
    asked: deque[tuple[Request, Any]] = (
        deque()
    )  # DALI reads the arrays in place, so they are held until the answer

    def source() -> Any:
        for request in requests:
            asked.append((request, _arrays(pack, request)))
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
            (output,) = pipeline.run(torch.cuda.current_stream() if settings.device == "gpu" else None)
        except StopIteration:
            yield from empty()
            return
        except RuntimeError as error:
            raise _explain(pack, asked, settings, error) from error
        yield from empty()
        request, _ = asked.popleft()
        yield request, to_torch(output).view(len(request.ids), *shape)


def to_torch(output: Any) -> torch.Tensor:
    """Hand a DALI output over to torch without a copy: float32, on the output's device.

    Safe because DALI's dynamic executor (`exec_dynamic=True`) never recycles an output: the tensor owns its memory
    through DLPack for as long as it lives. On a GPU, `run(stream)` has already ordered the output before whatever
    torch enqueues next on that stream. Source: nvidia/dali/plugin/pytorch/torch_utils.py, `to_torch_tensor`.
    """
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
    return tensor


def _arrays(pack: Pack, request: Request) -> tuple[Any, ...]:
    return (
        [pack.encoded(index) for index in request.ids],
        pack.stored_sizes[request.ids][:, ::-1].astype(np.float32),
        request.halvings,
        request.geometry,
        request.colour,
    )


def _explain(
    pack: Pack, asked: deque[tuple[Request, Any]], settings: Settings, error: RuntimeError
) -> StreamError:
    """What stopped DALI: images of the batches under way that no longer decode, which it does not name, or itself."""
    from pipelines.decode import DecodeError, decode

    bad = []
    for index in (index for request, _ in asked for index in request.ids):
        try:
            decode(pack.encoded(index), strict=True)
        except DecodeError:
            bad.append(pack.describe(index))
    if bad:
        found = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        return BadImageError(
            f"an image no longer decodes: {found}. Check the pack: python -m cache verify {pack.path}"
        )
    said = " ".join(str(error).split())
    remedy = (
        f"lower the batch size, {settings.batch_size} images of {settings.views} views, or --prefetch"
        if "memory" in said or "bad_alloc" in said
        else "--engine threads does the same on the CPU"
    )
    return StreamError(f"DALI stopped, though every image of the batch decodes: {said[:300]}; {remedy}")
