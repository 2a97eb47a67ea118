"""What leaves a run says what the run says, in every format, and carries what its user must know."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from pictures import noise
from PIL import Image, ImageOps
from runs import NAMES, ONE_THREAD, Capture, Here, Patch, never
from runtimes import HAS_OPENCV_5, HAS_OPENVINO, in_onnxruntime, in_opencv, in_openvino

from greyhound import export, train
from greyhound.cache.errors import UserError
from greyhound.cache.folder import NO_LABEL, Sample
from greyhound.cache.pack import Options, pack, write
from greyhound.cache.store import Pack
from greyhound.export import Job
from greyhound.model import checkpoint, network, onnx_file
from greyhound.model.calibration import Temperature
from greyhound.model.run import Run
from greyhound.pipelines.engine import Resources
from greyhound.recipe import FAST, TrainOptions
from greyhound.trained import Trained, open_trained

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "export.md"
pytestmark = pytest.mark.usefixtures("scan_in_process")


def job(run: Path, out: Path, **fields: Any) -> Job:
    return Job(run=run, out=out, resources=ONE_THREAD, **fields)


def with_grid(run: Path) -> Path:
    """The run, its network one whose head sees a grid, of random weights."""
    torch.manual_seed(0)
    built: Any = network.build("test_efficientnet", len(NAMES), "none", grid=2)
    with torch.no_grad():
        for parameter in built.get_classifier().parameters():
            parameter.normal_()
    for name in ("swa.ckpt", "best.ckpt"):
        (run / name).unlink(missing_ok=True)
    content = {"network": built.state_dict(), "grid": 2, "after": "a test", "score": 1.0}
    checkpoint.save(run / "best.ckpt", content)
    return run


def windows(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows `[5, 3, S, S]` and the run's logits of them, BatchNorm as it was trained.

    The same weights read elsewhere gave logits up to 4e-5 away on a Zen 3 (torch 2.14.1, 2026-11-30).
    """
    _, built = Run(run).network("auto", torch.device("cpu"))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return images, built(images)


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with dogs.onnx, of the tiny run evaluated; and a photograph."""
    root = tmp_path_factory.mktemp("exported")
    run = Path(shutil.copytree(tiny_run, root / "run"))
    origin, _ = Run(run).network("auto", torch.device("cpu"))
    result = {
        "weights": origin["weights"],
        "accuracy": 0.75,
        "interval": [0.5, 0.9],
        "n": 12,
        "split": "test",
    }
    Run(run).write("eval.json", result | {"crops": 1})
    export.export(job(run, root / "dogs.onnx"))
    Image.fromarray(noise(90, 61, 5)).save(root / "photo.jpg")
    return root


def test_a_program_of_onnxruntime_gets_the_probabilities_of_the_run(exported: Path, tmp_path: Path) -> None:
    trained = replace(open_trained(Run(exported / "run"), "auto", ONE_THREAD), bf16=False)
    session = onnxruntime.InferenceSession(exported / "dogs.onnx")
    assert [(each.name, each.type) for each in session.get_inputs()] == [("images", "tensor(uint8)")]
    assert [(each.name, each.shape[1]) for each in session.get_outputs()] == [("probabilities", 3)]
    difference = export.largest_difference(
        trained, 1.0, lambda images: session.run(None, {"images": images})[0], tmp_path
    )
    assert 0 <= difference < 2e-4
    one_at_most = export.largest_difference(
        trained, 1.0, lambda images: session.run(None, {"images": images})[0] * (len(images) == 1), tmp_path
    )
    assert one_at_most > 0.3, "a batch is checked too"
    images = np.stack([noise(50, 40, seed) for seed in range(3)])
    batch = session.run(None, {"images": images})[0]
    single = [session.run(None, {"images": image[None]})[0][0] for image in images]
    np.testing.assert_allclose(batch, single, atol=1e-6)
    assert batch.dtype == np.float32 and batch.shape == (3, 3)
    np.testing.assert_allclose(batch.sum(1), 1, rtol=1e-6)
    assert np.ptp(batch, axis=0).max() > 1e-3, "images differ"


def test_what_its_user_must_know_stands_in_the_file(exported: Path) -> None:
    model = onnx.load(exported / "dogs.onnx")
    said = {each.key: each.value for each in model.metadata_props}
    assert json.loads(said["classes"]) == list(NAMES)
    assert json.loads(said["accuracy"]) == {
        "accuracy": 0.75, "interval": [0.5, 0.9], "n": 12, "split": "test", "crops": 1,
    }  # fmt: skip
    assert said["licence"] == "none: trained from random weights"
    assert (said["size"], said["background"], said["temperature"]) == ("32", "#ffffff", "1.0")
    assert said["opset"] == str(model.opset_import[0].version) == "20"
    assert "EXIF" in said["input"] and "transparent" in said["input"]
    assert said["weights"] == Run(exported / "run").network("auto", torch.device("cpu"))[0]["weights"]
    assert {"greyhound", "network"} <= said.keys()
    assert str(ROOT).encode() not in (exported / "dogs.onnx").read_bytes(), "no paths of this machine"
    assert not (exported / "dogs.onnx.data").exists(), "one file"


def test_accuracy_of_other_weights_is_none(exported: Path, run: Path) -> None:
    trained = open_trained(Run(run), "auto", ONE_THREAD)
    assert export.accuracy(trained) == "not evaluated"
    Run(run).write("eval.json", {"weights": "of others", "accuracy": 1.0})
    assert export.accuracy(trained) == "not evaluated"


def test_licences_are_told_as_far_as_they_are_known() -> None:
    assert network.licence("tf_efficientnet_lite2", "auto") == "apache-2.0"
    assert network.licence("resnet50.a1_in1k", "auto") == "apache-2.0"
    assert network.licence("resnet50", "weights.safetensors") == "unknown"


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_is_inside(temperature: float) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    found = onnx_file.Probabilities(torch.nn.Identity(), temperature)(logits)
    np.testing.assert_allclose(found, (logits / temperature).softmax(1))


@pytest.mark.parametrize(("cells", "length"), [(3, 7), (3, 14), (2, 7), (1, 5), (5, 3), (4, 4)])
def test_pooling_as_a_product_is_torchs(cells: int, length: int) -> None:
    images = torch.randn(2, 3, length, length, generator=torch.Generator().manual_seed(0))
    weights = torch.from_numpy(onnx_file.shares(cells, length))
    expected = torch.nn.functional.adaptive_avg_pool2d(images, cells)
    np.testing.assert_allclose(weights @ images @ weights.T, expected, atol=1e-6)


def test_a_grid_and_bars_are_exported_too(run: Path, tmp_path: Path, capsys: Capture) -> None:
    recipe = Run(with_grid(run)).read("recipe.json")
    Run(run).write("recipe.json", recipe | {"augment": recipe["augment"] | {"fit": "pad", "fill": 77}})
    export.export(job(run, tmp_path / "grid.onnx"))
    said = capsys.readouterr().out
    (difference,) = re.findall(r"by at most (\S+)", said)
    assert float(difference) < 2e-3, "the weights are random and large"
    kinds = {node.op_type for node in onnx.load(tmp_path / "grid.onnx").graph.node}
    assert "Resize" not in kinds and "GatherND" not in kinds


def test_a_file_that_differs_is_not_left_behind(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    nodes, old = onnx_file.network_nodes, tmp_path / "old.onnx"
    warmer = 0.05
    monkeypatch.setattr(
        onnx_file, "network_nodes", lambda network, size, _, opset: nodes(network, size, warmer, opset)
    )
    old.write_text("what was there")
    with pytest.raises(
        UserError, match=r"differ from those of .* by up to 0\.\d+, 0\.01 is allowed; nothing was"
    ):
        export.export(job(run, old))
    assert old.read_text() == "what was there"
    assert not [file for file in tmp_path.iterdir() if file.name not in ("old.onnx", "run")]


def test_openvino(exported: Path) -> None:
    openvino = pytest.importorskip("openvino")
    export.export(job(exported / "run", exported / "dogs.xml", format="openvino"))
    model = openvino.Core().read_model(exported / "dogs.xml")
    assert json.loads(model.get_rt_info(["greyhound", "classes"]).value) == list(NAMES)
    run_program("## OpenVINO", exported)


def test_timm_opens_the_folder_with_its_own_head(run: Path, tmp_path: Path) -> None:
    export.export(job(run, tmp_path / "timm", format="safetensors"))
    images, expected = windows(run)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), expected, rtol=1e-4, atol=1e-4)
    seen = timm.data.resolve_model_data_config(loaded, use_test_size=True)
    assert list(seen["input_size"]) == [3, 32, 32] and seen["crop_pct"] == 1.0
    assert (seen["interpolation"], seen["crop_mode"]) == ("bilinear", "center")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["label_names"] == config["greyhound"]["classes"] == list(NAMES)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "timm").iterdir()}
    assert modes == {(tmp_path / "timm" / "config.json").stat().st_mode & 0o777}, (
        "whoever reads one reads all"
    )


@pytest.mark.parametrize("grid", [False, True])
def test_the_program_for_timm(grid: bool, run: Path, tmp_path: Path) -> None:
    """It is right for both kinds of head, also for the one that timm does not know."""
    home = tmp_path / "dogs-timm"
    export.export(job(with_grid(run) if grid else run, home, format="safetensors"))
    content = json.loads((home / "config.json").read_text())
    content["greyhound"]["temperature"] = 2.0
    (home / "config.json").write_text(json.dumps(content))
    images, expected = windows(run)
    torch.save(images, tmp_path / "images.pt")
    Image.fromarray(noise(90, 61, 5)).save(tmp_path / "photo.jpg")
    (program,) = programs("## timm")
    more = "torch.save(network(torch.load('images.pt')).detach(), 'logits.pt')"
    seen = "print([name for name in sys.modules if name.startswith('greyhound')], network.training)"
    first, second = python(f"{program}{more}\n{seen}", tmp_path).splitlines()
    assert second == "[] False", "it needs torch and timm alone"
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-4, atol=1e-4)
    bare = timm.create_model(f"local-dir:{home}", pretrained=True).eval()
    assert bare(images).shape == (5, bare.num_features if grid else 3)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(bare))
    _, network = Run(run).network("auto", torch.device("cpu"))
    with Image.open(tmp_path / "photo.jpg") as image, torch.inference_mode():
        probabilities = (network(transform(image)[None]) / 2).softmax(1)[0].numpy()
    assert int(first.split()[0]) == probabilities.argmax()
    np.testing.assert_allclose(float(first.split()[1]), probabilities.max(), rtol=1e-5)


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(("format", "name"), [("onnx", "a.onnx"), ("safetensors", "a")])
def test_a_place_that_cannot_be_written_is_found_at_once(
    run: Path, tmp_path: Path, format: Any, name: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(export, "open_calibrated", None)
    (tmp_path / "closed").mkdir(mode=0o555)
    out = tmp_path / "closed" / "new" / name
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\); name another: --out"):
        export.export(job(run, out, format=format))


def test_a_corrupt_validation_image_is_left_out(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """As predict leaves it out of the temperature, which is the same."""
    asked = []

    def look(trained: Trained, crops: int, resources: Resources, pack: Path | None) -> Temperature:
        asked.append(resources.on_corrupt)
        return Temperature()

    monkeypatch.setattr("greyhound.trained.temperature", look)
    export.export(job(run, tmp_path / "timm", format="safetensors"))
    assert asked == ["skip"]


def test_a_folder_with_other_files_is_left_alone(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is there and not empty; name a new folder: --out"):
        export.export(job(run, run, format="safetensors"))


def test_refusals_come_before_any_work(here: Here, monkeypatch: Patch) -> None:
    for format, out, expected in (
        ("onnx", "dogs.xml", "expected a file whose name ends in .onnx for --format onnx"),
        ("openvino", "dogs.onnx", "expected a file whose name ends in .xml for --format openvino"),
        ("safetensors", "dogs.safetensors", "expected a folder for --format safetensors"),
    ):
        assert expected in here("export.py", "--run", "r", "--out", out, "--format", format).error
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnx" else find_spec(name))
    refused = here("export.py", "--run", "r", "--out", "dogs.onnx").error
    assert (
        refused == "--format onnx needs onnx, not installed; pip install onnx, or Greyhound's extra export\n"
    )
    assert "has no" in here("export.py", "--run", ".", "--out", "timm", "--format", "safetensors").error


def programs(title: str) -> list[str]:
    """The Python under a heading of docs/export.md."""
    (section,) = re.findall(rf"^{title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def python(program: str, folder: Path) -> str:
    """What a program of its own prints, started in a folder; warnings are its errors."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(program)]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def run_program(title: str, folder: Path) -> list[str]:
    """The words that the first program under a heading prints, its class by name or number; of photo.jpg."""
    words = python(programs(title)[0], folder).rsplit(" ", 1)
    image = np.array(Image.open(folder / "photo.jpg"))
    (expected,) = onnxruntime.InferenceSession(folder / "dogs.onnx").run(None, {"images": image[None]})[0]
    assert words[0] in (NAMES[expected.argmax()], str(expected.argmax()))
    np.testing.assert_allclose(float(words[1]), expected.max(), atol=1e-4)
    return words


def test_the_program_for_onnx_runtime(exported: Path) -> None:
    run_program("## ONNX Runtime", exported)


def test_the_program_for_opencv(exported: Path) -> None:
    in_opencv(exported / "dogs.onnx")  # skips where OpenCV is too old
    run_program("## OpenCV", exported)


class Gated(torch.nn.Module):
    """Squeeze and excitation by a hard sigmoid, as in MobileNetV3."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        gate = torch.nn.functional.hardsigmoid(window.mean((2, 3), keepdim=True))
        return (window * gate).amax((2, 3))


def test_a_hard_sigmoid_that_gates_is_exported_as_what_opencv_computes_too(tmp_path: Path) -> None:
    """OpenCV 5.0.0 takes ONNX's own operator for a hard swish: findings/opencv_takes_squeeze_excite_for_hardswish.sh."""
    model, file = Gated(), tmp_path / "gated.onnx"
    onnx.save(onnx_file.network_nodes(model, 8, 1.0, 20), file)
    window = 4 * torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    in_opencv(file)  # skips where OpenCV is too old
    net = cv2.dnn.readNetFromONNX(str(file))
    net.setInput(window.numpy())
    np.testing.assert_allclose(net.forward(), model(window).softmax(1), atol=1e-6)


class Undecided(torch.nn.Module):
    """A network that goes another way for other images, which no graph can."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return window.mean((2, 3)) if window.sum() > 0 else window.amax((2, 3))


def test_a_network_without_a_form_in_onnx_is_refused_in_one_line() -> None:
    with pytest.raises(
        onnx_file.ExportError, match=r"torch cannot export this network: .*; --format safetensors can"
    ):
        onnx_file.network_nodes(Undecided(), 8, 1.0, 20)


@pytest.mark.slow
def test_photographs_get_the_class_that_the_run_gives_them(tmp_path: Path) -> None:
    """500 of three data sets, in every runtime that is here; the run computes in float32, as the file does."""
    data = ROOT.parent / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"needs {data}, which is no part of the product")
    openers = [
        in_onnxruntime,
        *([in_openvino] if HAS_OPENVINO else []),
        *([in_opencv] if HAS_OPENCV_5 else []),
    ]
    files = [file for name in ("clothing", "dogs25", "photos") for file in spread(data / name)]
    trained = trained_on(data / "clothing", tmp_path)
    sources = [Sample(file, f"{place}{file.suffix}", NO_LABEL) for place, file in enumerate(files)]
    options = Options(grayscale="keep", duplicates="keep")
    write(sources, trained.classes, tmp_path / "asked.arrow", options, split="test")
    asked = Pack(tmp_path / "asked.arrow")
    export.export(Job(run=trained.run.folder, out=tmp_path / "run.onnx", resources=ONE_THREAD))
    runtimes = [opener(tmp_path / "run.onnx") for opener in openers]
    same = [0 for _ in runtimes]
    for rows, logits in replace(trained, bf16=False).logits(asked, asked.ids("test"), ONE_THREAD):
        for row, expected in zip(rows.tolist(), logits[:, 0].argmax(1).tolist(), strict=True):
            file = files[int(asked.image_path(row).partition(".")[0])]
            image = np.array(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))[None]
            for place, answer in enumerate(runtimes):
                same[place] += answer(image)[0].argmax() == expected
    assert len(asked.ids("test")) == 500
    assert min(same) >= 498, same


def spread(folder: Path) -> list[Path]:
    """200 photographs over all of a folder, 100 of the folder photos."""
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    return found[:: len(found) // (100 if folder.name == "photos" else 200)][
        : 100 if folder.name == "photos" else 200
    ]


def trained_on(photographs: Path, folder: Path) -> Trained:
    """The recipe `fast` on a folder of photographs, with a smaller network."""
    pack(photographs, folder / "pack.arrow")
    recipe = replace(FAST, network="tf_efficientnet_lite0")
    options = TrainOptions(
        pack=folder / "pack.arrow", out=folder / "run", recipe=recipe, resources=ONE_THREAD
    )
    train.train(options, never)
    return open_trained(Run(folder / "run"), "auto", ONE_THREAD)
