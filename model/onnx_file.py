"""A network as ONNX nodes, behind those of its preprocessing, with what its user must know.

Before it: `export` has a trained network, and the window's nodes from `pipelines.onnx_window`. After it: one
file, from pixels to probabilities. torch's exporter is given the network alone, whose input has one size: of
preprocessing it would bake the example's size into the graph, without an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from greyhound.cache.errors import UserError, one_line

OUTPUT: Final = "probabilities"
"""float32 `[n, K]`, in the order of `classes`."""
_WINDOW: Final = "window"


class ExportError(UserError):
    """The network has no form in ONNX; the message is one line for the user."""


class Probabilities(nn.Module):
    """A network's classes of windows `[n, 3, S, S]`, as probabilities `[n, K]`."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        """temperature: see `calibration.Temperature`."""
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """The probabilities."""
        logits: torch.Tensor = self.network(window)
        return (logits / self.temperature).softmax(1)


def network_nodes(network: nn.Module, size: int, temperature: float, opset: int) -> Any:
    """The network from `window`, float32 `[n, 3, size, size]`, to OUTPUT; an `onnx.ModelProto`.

    network: in evaluation mode, on the CPU. opset: of ONNX's operators. Raises ExportError.
    """
    pooling = torch.ops.aten.adaptive_avg_pool2d.default, torch.ops.aten._adaptive_avg_pool2d.default
    loud = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            Probabilities(network, temperature).eval(),
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            external_data=False,
            opset_version=opset,
            input_names=[_WINDOW],
            output_names=[OUTPUT],
            dynamic_shapes={"window": {0: torch.export.Dim("n")}},
            custom_translation_table=dict.fromkeys(pooling, _pool)
            | {torch.ops.aten.hardsigmoid.default: _hardsigmoid},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = one_line(error.__cause__ or error)
        raise ExportError(f"torch cannot export this network: {reason}; --format safetensors can") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(loud)
    assert program is not None
    return program.model_proto


def _pool(self: Any, output_size: Sequence[int]) -> Any:
    """Adaptive average pooling of a known size as two matrix products, where torch writes 40 Gather nodes."""
    from onnxscript import ir
    from onnxscript import opset20 as op

    if list(output_size) == [1, 1]:
        return op.GlobalAveragePool(self)
    down, across = (shares(cells, int(side)) for cells, side in zip(output_size, self.shape[2:], strict=True))
    rows = op.MatMul(op.Constant(value=ir.tensor(down)), self)
    return op.MatMul(rows, op.Constant(value=ir.tensor(np.ascontiguousarray(across.T))))


def _hardsigmoid(self: Any) -> Any:
    """Hard sigmoid by its parts: OpenCV 5.0.0 takes the operator, where it is a gate, for a hard swish."""
    from onnxscript import opset20 as op

    sixth, half, zero, one = (op.Constant(value_float=each) for each in (1 / 6, 0.5, 0.0, 1.0))
    return op.Clip(op.Add(op.Mul(self, sixth), half), zero, one)


def shares(cells: int, length: int) -> NDArray[np.float32]:
    """What each place has in the mean of each cell of adaptive average pooling: `[cells, length]`."""
    found = np.zeros((cells, length), dtype=np.float32)
    for cell in range(cells):
        first, end = cell * length // cells, -(-(cell + 1) * length // cells)
        found[cell, first:end] = 1 / (end - first)
    return found


def join(window: Any, network: Any, properties: Mapping[str, Any]) -> Any:
    """Both as one graph, with `properties` as text or JSON in its metadata; an `onnx.ModelProto`, checked."""
    import onnx

    first = onnx.compose.add_prefix(window, f"{_WINDOW}/", rename_inputs=False)
    network.ir_version = first.ir_version
    joint = [(first.graph.output[0].name, network.graph.input[0].name)]
    model = onnx.compose.merge_models(first, network, io_map=joint, producer_name="greyhound")
    model.graph.name = "greyhound"
    for part in _parts(model.graph):  # torch writes the paths of this machine's files there
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del model.metadata_props[:]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in properties.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    return model


def _parts(graph: Any) -> Iterator[Any]:
    yield graph
    for each in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        yield from each
