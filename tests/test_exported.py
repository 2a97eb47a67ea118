"""exported.py: predict with an ONNX file, without torch; and files that are none of ours."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encode, folder
from PIL import Image
from runs import ONE_THREAD, Capture, Patch

from greyhound import export, predict
from greyhound.cache.errors import UserError
from greyhound.exported import open_exported
from greyhound.pipelines.engine import Resources
from greyhound.prediction import ImageFile

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CLASSES = ["blue <b>", "green", "red"]
OURS = {"classes": json.dumps(CLASSES), "background": "#0000ff"}


def network(file: Path, metadata: dict[str, str] = OURS, kind: str = "UINT8", name: str = "images") -> Path:
    """An ONNX file that tells the colour of the first row: softmax of its mean, from blue to red."""
    shape = ["n", "height", "width", 3]
    images = onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)
    found = onnx.helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["n", 3])
    constants = {
        "first": np.array(0),
        "axes": np.array([1]),
        "order": np.array([2, 1, 0]),
        "scale": np.float32(0.1),
    }
    nodes = [
        ("Gather", [name, "first"], "top", {"axis": 1}),
        ("Cast", ["top"], "values", {"to": onnx.TensorProto.FLOAT}),
        ("ReduceMean", ["values", "axes"], "mean", {"keepdims": 0}),
        ("Gather", ["mean", "order"], "turned", {"axis": 1}),
        ("Mul", ["turned", "scale"], "scaled", {}),
        ("Softmax", ["scaled"], "probabilities", {"axis": 1}),
    ]
    made = [onnx.helper.make_node(kind, inputs, [out], **given) for kind, inputs, out, given in nodes]
    kept = [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    graph = onnx.helper.make_graph(made, "colours", [images], [found], kept)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, file)
    return file


def plane(*colour: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (30, 20), colour)


def written(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A picture of each class; one upside down by its EXIF, one transparent, one that is none."""
    turned = plane(0, 250, 0)
    turned.paste((250, 0, 0), (0, 10, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = 3
    files = {
        "blue <b>/1.png": written(plane(0, 0, 250), format="PNG"),
        "green/1.png": written(plane(250, 0, 0), format="PNG"),
        "red/broken.png": b"\x89PNG none",
        "red/clear.png": written(plane(0, 0, 0, 0, mode="RGBA"), format="PNG"),
        "red/turned.png": written(turned, format="PNG", exif=exif),
    }
    return folder(tmp_path / "new", files)


EXPECTED = {"blue <b>/1.png": 0, "green/1.png": 2, "red/clear.png": 0, "red/turned.png": 2}


def test_upright_opaque_pixels_go_in(tmp_path: Path, pictures: Path) -> None:
    exported = open_exported(network(tmp_path / "n.onnx"))
    assert (exported.classes, exported.background) == (tuple(CLASSES), "#0000ff")
    names = [*EXPECTED, "red/broken.png", "red/gone.png"]
    *found, broken, gone = exported.predict(ImageFile(pictures / name, name) for name in names)
    assert [each.image.path for each in found] == list(EXPECTED)
    for each in found:
        assert each.probabilities is not None
        assert each.probabilities.shape == (3,)
        assert each.probabilities.argmax() == EXPECTED[each.image.path]
        assert each.probabilities.max() > 0.99
    assert (broken.probabilities, broken.error) == (None, "undecodable (no image that is read here)")
    assert gone.error == "there is no such file"


def test_a_large_picture_is_no_warning(tmp_path: Path, pictures: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    exported = open_exported(network(tmp_path / "n.onnx"))
    (found,) = exported.predict([ImageFile(pictures / "green" / "1.png", "1.png")])
    assert found.error == ""


WITHOUT_TORCH = """
import runpy, sys
class Refusing:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("torch", "torchvision", "timm"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refusing())
sys.argv = ["greyhound", "predict", *sys.argv[1:]]
runpy.run_module("greyhound", run_name="__main__", alter_sys=True)
"""


def test_the_rows_are_the_same_without_torch(tmp_path: Path, pictures: Path) -> None:
    words = ["--model", str(network(tmp_path / "n.onnx")), str(pictures), "--top", "2"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rows = {
        row.pop("path").removeprefix(f"{pictures}/"): row for row in csv.DictReader(io.StringIO(done.stdout))
    }
    assert list(rows) == [
        "blue <b>/1.png",
        "green/1.png",
        "red/broken.png",
        "red/clear.png",
        "red/turned.png",
    ]
    assert {name: CLASSES.index(row["class"]) for name, row in rows.items() if row["class"]} == EXPECTED
    assert [row["right"] for row in rows.values()] == ["true", "false", "", "false", "true"]
    assert done.stderr.splitlines() == [
        "accuracy: 0.500 (95 % interval 0.150 to 0.850, n = 4)",
        "note: 1 of 5 files could not be read; the column error says why",
    ]


def test_a_real_export_gives_the_rows_of_its_run(
    run: Path, images: Path, tmp_path: Path, capsys: Capture
) -> None:
    pytest.importorskip("onnxscript")
    export.export(export.Job(run=run, out=tmp_path / "tiny.onnx", resources=ONE_THREAD))
    ours = predict.Job(run=run, paths=(str(images),), probabilities=True, resources=ONE_THREAD)
    rows = []
    for job in (ours, replace(ours, run=None, model=tmp_path / "tiny.onnx", resources=Resources())):
        capsys.readouterr()
        predict.main(job)
        rows.append(list(csv.DictReader(io.StringIO(capsys.readouterr().out))))
    assert len(rows[0]) == 6
    for one, other in zip(*rows, strict=True):
        assert [*one] == [*other]
        for name, value in one.items():
            if name.startswith("probability"):
                assert float(other[name]) == pytest.approx(float(value), abs=1e-3)
            else:
                assert other[name] == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metadata": {}}, "is an ONNX file that names no classes; expected the file of: greyhound export"),
        ({"metadata": {"classes": "dogs"}}, "names no classes"),
        ({"metadata": {"classes": "[1, 2, 3]"}}, "names no classes"),
        ({"metadata": {"classes": '["a", "b"]'}}, "and gives .*not images, uint8"),
        ({"kind": "FLOAT"}, r"takes .*tensor\(float\).*not images, uint8 \[n, height, width, 3\]"),
        ({"name": "pixels"}, "takes .*pixels.*not images, uint8"),
    ],
)
def test_another_kind_of_onnx_file_is_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    file = network(tmp_path / "n.onnx", **changes)
    with pytest.raises(UserError, match=says) as refused:
        open_exported(file)
    assert "\n" not in str(refused.value)


def test_a_network_that_takes_one_number_is_one_line(tmp_path: Path) -> None:
    one = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "one", one[:1], one[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, OURS)
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(UserError, match="not images, uint8"):
        open_exported(tmp_path / "n.onnx")


def test_what_is_no_onnx_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*n.onnx; expected the file of: greyhound export"):
        open_exported(tmp_path / "n.onnx")
    (tmp_path / "n.onnx").write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(UserError, match=r"n.onnx is no ONNX file \(.*\); expected the file of"):
        open_exported(tmp_path / "n.onnx")
