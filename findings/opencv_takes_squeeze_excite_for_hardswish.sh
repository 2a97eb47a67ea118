#!/usr/bin/env bash
# OpenCV 5: a hard sigmoid that gates another tensor, as in MobileNetV3, is computed as a hard swish of its own input.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   opencv 5.0.0, onnxruntime 1.32.0
#   expected: x * hard_sigmoid(mean of x) is what numpy computes, in every reader
#   numpy and ONNX Runtime differ by less than 1e-6
#   OpenCV differs by 4.5; shapes (1, 4, 1, 1) and (1, 4, 8, 8)
#   from hard_swish(mean of x): less than 1e-6
#   the same file with a plain sigmoid: OpenCV differs by less than 1e-6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile \
    opencv-python-headless==5.0.0.93 onnx==1.22.0 onnxruntime==1.32.0
venv/bin/python - <<'END'
import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

print(f"opencv {cv2.__version__}, onnxruntime {onnxruntime.__version__}")
print("expected: x * hard_sigmoid(mean of x) is what numpy computes, in every reader")
x = np.random.default_rng(0).normal(0, 3, (1, 4, 8, 8)).astype(np.float32)


def readers(gate, **numbers):
    """ReduceMean over the pixels, a gate, and the product with x: what each reader makes of it."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node(gate, ["mean"], ["gate"], **numbers),
        helper.make_node("Mul", ["x", "gate"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in "xy"]
    axes = [numpy_helper.from_array(np.array([2, 3]), "axes")]
    graph = helper.make_graph(nodes, "gated", ends[:1], ends[1:], axes)
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    network = cv2.dnn.readNetFromONNX(np.frombuffer(file, np.uint8))
    network.setInput(x)
    return onnxruntime.InferenceSession(file).run(None, {"x": x})[0], network.forward()


def distance(one, other):
    """The largest difference, where small is below what float32 rounds."""
    far = float(np.abs(one - other).max())
    return "less than 1e-6" if far < 1e-6 else f"{far:.1f}"


mean = x.mean((2, 3), keepdims=True)
hard = np.clip(mean / 6 + 0.5, 0, 1)
runtime, opencv = readers("HardSigmoid", alpha=1 / 6, beta=0.5)
swish = np.broadcast_to(mean * hard, x.shape)
print("numpy and ONNX Runtime differ by", distance(x * hard, runtime))
print(f"OpenCV differs by {distance(x * hard, opencv)}; shapes {opencv.shape} and {x.shape}")
print("from hard_swish(mean of x):", distance(swish, np.broadcast_to(opencv, x.shape)))
plain = readers("Sigmoid")[1]
print("the same file with a plain sigmoid: OpenCV differs by", distance(x / (1 + np.exp(-mean)), plain))
assert distance(x * hard, runtime) == "less than 1e-6"
assert np.abs(x * hard - opencv).max() > 1, "OpenCV gates by a hard sigmoid now"
END
