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
_UP: Final = (
    1 / 16
)  # OpenCV rounds a half up in the mean of 2 x 2 pixels, and to even in that of any other block


class _Axis(NamedTuple):
    """One axis of the image. Numbers are int64 `[1]`, all but `size` known at run time."""

    length: Value
    """Pixels."""
    side: Value
    """The length that becomes `size`."""
    block: Value
    """So many pixels are averaged first."""
    size: int
    """Window pixels."""


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
    down, across = _axes(op, op.Shape(images), augment)
    pixels = _blend(op, _reduce(op, images, down, across, augment), across, 1)
    pixels = op.Round(_blend(op, op.Transpose(pixels, perm=[0, 3, 2, 1]), down, 2))
    if augment.fit == "pad":
        shown = op.And(op.Unsqueeze(_inside(op, down), [1]), _inside(op, across))
        pixels = op.Where(shown, pixels, float(augment.fill))
    scale = [1 / (255 * std) for std in augment.std]
    offset = [-mean / std for mean, std in zip(augment.mean, augment.std, strict=True)]
    return op.Add(op.Mul(pixels, op.Unsqueeze(scale, [1, 2])), op.Unsqueeze(offset, [1, 2]))


def _axes(op: Any, shape: Value, augment: Augment) -> tuple[_Axis, _Axis]:
    """Along y and x; see `augment.log2_reduction`."""
    lengths = [op.Slice(shape, [axis], [axis + 1]) for axis in (1, 2)]
    sides = lengths
    if augment.fit != "squash":
        sides = [(op.Min if augment.fit == "crop" else op.Max)(*lengths)] * 2
    found = []
    for length, side in zip(lengths, sides, strict=True):
        block: Value = [1]
        for exponent in range(1, MAX_LOG2_REDUCTION + 1):
            halved = op.Cast(op.GreaterOrEqual(side, [augment.size << exponent]), to=_INT64)
            block = op.Mul(block, op.Add(halved, [1]))
        found.append(_Axis(length, side, block, augment.size))
    return found[0], found[1]


def _reduce(op: Any, images: Value, down: _Axis, across: _Axis, augment: Augment) -> Value:
    """Each axis by its block, as `decoded` does: first by what both have in common; `[n, W, H, 3]`."""
    if augment.fit != "squash":
        return _average(op, images, (down.length, across.length), (down.block, across.block))
    both = op.Min(down.block, across.block)
    pixels = _average(op, images, (down.length, across.length), (both, both))
    lengths = _count(op, across.length, both), _count(op, down.length, both)
    pixels = _average(op, pixels, lengths, (op.Div(across.block, both), op.Div(down.block, both)))
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


def _corners(op: Any, axis: _Axis) -> tuple[Value, Value]:
    """How far from the image's edge the window's centres lie, `[S]`, and the side of a reduced pixel, `[1]`.

    Both in steps of which a pixel of the image has 2 * size, so that they are whole numbers.
    """
    centres = op.Mul([2 * pixel + 1 for pixel in range(axis.size)], axis.side)
    start = op.Mul(op.Sub(axis.length, axis.side), [axis.size])
    return op.Add(centres, start), op.Mul(axis.block, [2 * axis.size])


def _blend(op: Any, pixels: Value, axis: _Axis, place: int) -> Value:
    """Along axis `place`, the bilinear mixture for each window pixel; past its edge the image repeats."""
    corners, pixel = _corners(op, axis)
    centres = op.Sub(corners, op.Mul(axis.block, [axis.size]))
    ahead = op.Mul(pixel, axis.side)  # Div rounds towards 0: keep it above
    first = op.Sub(op.Div(op.Add(centres, ahead), pixel), axis.side)
    weight = op.Div(op.Cast(op.Sub(centres, op.Mul(first, pixel)), to=_FLOAT), op.Cast(pixel, to=_FLOAT))
    last = op.Sub(_count(op, axis.length, axis.block), [1])
    one, other = (
        op.Gather(pixels, op.Max(op.Min(index, last), [0]), axis=place)
        for index in (first, op.Add(first, [1]))
    )
    return op.Add(one, op.Mul(op.Sub(other, one), op.Unsqueeze(weight, [1, 2] if place == 1 else [1])))


def _inside(op: Any, axis: _Axis) -> Value:
    """Whether the centres of the window's pixels lie in the image, edge included: bool `[S]`."""
    corners, pixel = _corners(op, axis)
    edge = op.Div(pixel, [_EDGE])
    end = op.Add(op.Mul(axis.length, [2 * axis.size]), edge)
    return op.And(op.GreaterOrEqual(op.Add(corners, edge), [0]), op.LessOrEqual(corners, end))
