#!/usr/bin/env bash
# ONNX Runtime: ReduceMean over a short axis, with the channels behind it, takes many times what its parts take.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   onnxruntime 1.32.0
#   expected: the mean of two neighbours takes no longer than to take both out, add them and halve the sum
#   ReduceMean of [375, 500, 2, 3] over axis 2: 19 times the time of Gather, Gather, Add, Mul; the same result
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
venv/bin/python - <<'END'
import time
from importlib.metadata import version

import numpy
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

print("onnxruntime", version("onnxruntime"))
print("expected: the mean of two neighbours takes no longer than to take both out, add them and halve the sum")
SHAPE = (375, 500, 2, 3)
numbers = {
    "axes": numpy.array([2], numpy.int64),
    "first": numpy.array(0, numpy.int64),
    "second": numpy.array(1, numpy.int64),
    "half": numpy.array(0.5, numpy.float32),
}
mean = [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)]
parts = [
    helper.make_node("Gather", ["x", "first"], ["a"], axis=2),
    helper.make_node("Gather", ["x", "second"], ["b"], axis=2),
    helper.make_node("Add", ["a", "b"], ["sum"]),
    helper.make_node("Mul", ["sum", "half"], ["y"]),
]


def milliseconds(nodes, values):
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(value, name) for name, value in numbers.items() if name in used]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "mean", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    best = float("inf")
    for _ in range(20):
        start = time.process_time()
        (result,) = session.run(None, {"x": values})
        best = min(best, time.process_time() - start)
    return 1000 * best, result


pixels = numpy.random.default_rng(0).random(SHAPE, dtype=numpy.float32)
(slow, one), (fast, other) = milliseconds(mean, pixels), milliseconds(parts, pixels)
assert numpy.abs(one - other).max() < 1e-6
print(f"ReduceMean of {list(SHAPE)} over axis 2: {slow / fast:.0f} times the time of Gather, Gather, Add, Mul; the same result")
assert slow / fast > 4, "it is about as fast now"
END
