"""The window that evaluation looks at, as ONNX nodes: any image in, the network's floats out.

Before it: `export` has a run's augmentation. After it: the nodes stand before the network's, in one file, and
any runtime does what `threads` does on full decode. Sizes are read from the input, and places are computed in
whole numbers, exactly. None of the nodes is a Resize, whose antialias OpenVINO and OpenCV's DNN ignore.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from greyhound.pipelines.augment import MAX_LOG2_REDUCTION, Augment

Value: TypeAlias = Any
"""A tensor of the graph that is being built, `onnxscript.ir.Value`."""
OPSET: Final = 20
"""Version of ONNX's operators; the one that torch's exporter writes."""
INPUT: Final = "images"
"""uint8 `[n, height, width, 3]`, upright RGB."""
_FLOAT: Final = 1  # onnx.TensorProto's number of the type
_INT64: Final = 7
_EDGE: Final = 1000  # so many-th of a pixel past its edge a place still is in the image; as augment.spans
_UP: Final = 1 / 16
"""OpenCV rounds a half up in the mean of 2 x 2 pixels, and to even in that of any other block."""


class _Axis(NamedTuple):
    """One axis of the image, known at run time: int64 `[1]`, of each pixel of the window `[S]`."""

    start: Value
    """The first pixel that the window sees."""
    end: Value
    """The pixel after the last one."""
    block: Value
    """So many pixels are averaged first."""
    first: Value
    """Of each window pixel, the averaged pixel before its centre, counted from `start`; `[S]`."""
    weight: Value
    """And what the one after it has in the mixture, float32 `[S]`."""
    inside: Value
    """Whether its centre lies in the image, edge included; bool `[S]`."""


def window(augment: Augment) -> Any:
    """The graph: `images`, uint8 `[n, height, width, 3]`, to float32 `[n, 3, S, S]`; an `onnx.ModelProto`.

    It is the centre window, whatever else the augmentation may draw.
    """
    from onnxscript import GraphBuilder, ir

    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="greyhound")
    builder = GraphBuilder(graph)
    images = builder.input(INPUT, ir.DataType.UINT8, ["n", "height", "width", 3])
    builder.add_output(_window(builder.op, images, augment), "window")
    graph.outputs[0].dtype = ir.DataType.FLOAT
    graph.outputs[0].shape = ir.Shape(["n", 3, augment.size, augment.size])
    return ir.to_proto(ir.Model(graph, ir_version=10))


def _window(op: Any, images: Value, augment: Augment) -> Value:
    """Reduce, warp, fill, colour. Runtimes are fast along an axis where what follows it is long."""
    shape = op.Shape(images)
    lengths = [op.Slice(shape, [place], [place + 1]) for place in (1, 2)]
    sides = lengths
    if augment.fit != "squash":
        sides = [(op.Min if augment.fit == "crop" else op.Max)(*lengths)] * 2
    down, across = (_axis(op, *pair, augment.size) for pair in zip(lengths, sides, strict=True))
    ends = [op.Concat(*pair, axis=0) for pair in ((down.start, across.start), (down.end, across.end))]
    pixels = _reduce(op, op.Slice(images, *ends, [1, 2]), down, across, augment)
    pixels = op.Transpose(_blend(op, pixels, across, 1), perm=[0, 3, 2, 1])
    pixels = op.Round(_blend(op, pixels, down, 2))
    if augment.fit == "pad":
        shown = op.And(op.Unsqueeze(down.inside, [1]), across.inside)
        pixels = op.Where(shown, pixels, float(augment.fill))
    scale = [1 / (255 * std) for std in augment.std]
    offset = [-mean / std for mean, std in zip(augment.mean, augment.std, strict=True)]
    return op.Add(op.Mul(pixels, op.Unsqueeze(scale, [1, 2])), op.Unsqueeze(offset, [1, 2]))


def _axis(op: Any, length: Value, side: Value, size: int) -> _Axis:
    """An axis of so many pixels, `side` of which become `size`; see `augment.log2_reduction` and `spans`."""
    block: Value = [1]
    for exponent in range(1, MAX_LOG2_REDUCTION + 1):
        halved = op.Cast(op.GreaterOrEqual(side, [size << exponent]), to=_INT64)
        block = op.Mul(block, op.Add(halved, [1]))
    # In steps of which a pixel has 2 * size, all of this is in whole numbers.
    pixel = op.Mul(block, [2 * size])
    centres = op.Mul([2 * place + 1 for place in range(size)], side)
    centres = op.Add(centres, op.Mul(op.Sub(length, side), [size]))
    edge = op.Div(pixel, [_EDGE])
    end = op.Add(op.Mul(length, [2 * size]), edge)
    inside = op.And(op.GreaterOrEqual(op.Add(centres, edge), [0]), op.LessOrEqual(centres, end))
    places = op.Sub(centres, op.Mul(block, [size]))
    ahead = op.Mul(pixel, side)  # Div rounds towards 0: keep it above
    first = op.Sub(op.Div(op.Add(places, ahead), pixel), side)
    weight = op.Div(op.Cast(op.Sub(places, op.Mul(first, pixel)), to=_FLOAT), op.Cast(pixel, to=_FLOAT))
    low = op.Max(op.Slice(first, [0], [1]), [0])
    high = op.Add(op.Slice(first, [size - 1], [size]), [2])
    return _Axis(
        op.Mul(low, block), op.Min(op.Mul(high, block), length), block, op.Sub(first, low), weight, inside
    )


def _reduce(op: Any, images: Value, down: _Axis, across: _Axis, augment: Augment) -> Value:
    """Each axis by its block, as `decoded` does: first by what both have in common; `[n, W, H, 3]`."""
    lengths = op.Sub(down.end, down.start), op.Sub(across.end, across.start)
    if augment.fit != "squash":
        return _average(op, images, lengths, (down.block, across.block))
    both = op.Min(down.block, across.block)
    pixels = _average(op, images, lengths, (both, both))
    high, wide = (_count(op, length, both) for length in lengths)
    pixels = _average(op, pixels, (wide, high), (op.Div(across.block, both), op.Div(down.block, both)))
    return op.Transpose(pixels, perm=[0, 2, 1, 3])


def _average(op: Any, pixels: Value, lengths: tuple[Value, Value], blocks: tuple[Value, Value]) -> Value:
    """Blocks of `[n, H, W, 3]`, each averaged and rounded, and the sides exchanged: `[n, W', H', 3]`.

    lengths: H and W. blocks: along both. The last row and column repeat to fill a block.
    """
    rows = _mean(op, pixels, lengths[0], blocks[0], op.Mul(lengths[1], [3]))
    rows = op.Reshape(rows, op.Concat([0, -1], lengths[1], [3], axis=0))
    high = _count(op, lengths[0], blocks[0])
    columns = _mean(op, op.Transpose(rows, perm=[0, 2, 1, 3]), lengths[1], blocks[1], op.Mul(high, [3]))
    halved = op.And(op.Equal(blocks[0], [2]), op.Equal(blocks[1], [2]))
    levels = op.Round(op.Add(columns, op.Mul(op.Cast(halved, to=_FLOAT), [_UP])))
    return op.Reshape(levels, op.Concat([0, -1], high, [3], axis=0))


def _count(op: Any, length: Value, block: Value) -> Value:
    """How many blocks there are."""
    return op.Div(op.Sub(op.Add(length, block), [1]), block)


def _mean(op: Any, pixels: Value, length: Value, block: Value, run: Value) -> Value:
    """Blocks along axis 1, averaged: float32 `[n, count, run]`."""
    places = op.Range(0, op.Squeeze(op.Mul(_count(op, length, block), block), [0]), 1)
    pixels = op.Gather(pixels, op.Min(places, op.Sub(length, [1])), axis=1)
    blocks = op.Reshape(op.Cast(pixels, to=_FLOAT), op.Concat([0, -1], block, run, axis=0))
    return op.ReduceMean(blocks, [2], keepdims=0)


def _blend(op: Any, pixels: Value, axis: _Axis, place: int) -> Value:
    """Along axis `place`, the bilinear mixture for each window pixel; past its edge the image repeats."""
    last = op.Sub(_count(op, op.Sub(axis.end, axis.start), axis.block), [1])
    one, other = (
        op.Gather(pixels, op.Max(op.Min(index, last), [0]), axis=place)
        for index in (axis.first, op.Add(axis.first, [1]))
    )
    weight = op.Unsqueeze(axis.weight, [1, 2] if place == 1 else [1])
    return op.Add(one, op.Mul(op.Sub(other, one), weight))
