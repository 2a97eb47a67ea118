"""Export: a trained run as one file that other programs read, checked against the run before it stands there.

    greyhound export --run runs/dogs --out dogs.onnx

Before it: `greyhound train`. After it: ONNX Runtime, OpenVINO, OpenCV or timm, without Greyhound.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.errors import UserError
from greyhound.cache.machine import alone
from greyhound.cache.options import read_options
from greyhound.pipelines.engine import Resources

FormatName = Literal["onnx", "openvino", "safetensors"]
NEEDED: Final[dict[FormatName, tuple[str, ...]]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "safetensors": (),
}
"""The packages of each format beyond ours, all in the extra `export`."""
SUFFIXES: Final[dict[FormatName, str]] = {"onnx": ".onnx", "openvino": ".xml", "safetensors": ""}


@dataclass(frozen=True)
class Job:
    """Write a trained run as a file for other programs: uint8 pixels in, probabilities out."""

    run: Path
    """The run folder of a training."""
    out: Path
    """The file: NAME.onnx, or NAME.xml of OpenVINO. The folder, of safetensors."""
    format: FormatName = "onnx"
    """onnx and openvino: one graph with the preprocessing inside. safetensors: the weights, for timm."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    pack: Path | None = None
    """Where the pack of the training is now; its validation split gives the temperature."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse a name that readers of the format would not open. Raises ValueError."""
        suffix = SUFFIXES[self.format]
        if self.out.suffix != suffix and (suffix or self.out.suffix == ".safetensors"):
            expected = f"a file whose name ends in {suffix}" if suffix else "a folder"
            raise ValueError(f"--out is {self.out}; expected {expected} for --format {self.format}")


def check_packages(job: Job) -> Job:
    """Refuse a format whose packages are not installed, before any work. Raises UserError."""
    missing = [name for name in NEEDED[job.format] if find_spec(name) is None]
    if missing:
        found = f"--format {job.format} needs {' and '.join(missing)}, not installed"
        raise UserError(f"{found}; pip install {' '.join(missing)}, or Greyhound's extra export")
    return job


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(
        lambda: check_packages(alone(read_options(Job, sys.argv[1:], "greyhound export"), "export"))
    )
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from greyhound.cache.cli import plain, run
from greyhound.cache.files import replacing_all
from greyhound.cache.folder import find_unlabelled
from greyhound.cache.pack import write_all
from greyhound.cache.store import Pack
from greyhound.model import onnx_file, timm_folder
from greyhound.model.network import licence
from greyhound.model.run import EVALUATION, RECIPE
from greyhound.pipelines.onnx_window import INPUT, OPSET, window
from greyhound.prediction import check_out, say_uncalibrated
from greyhound.trained import Trained, open_calibrated

Probabilities = NDArray[np.float32]
TOLERANCE: Final = 0.01
"""How far a probability of the file may lie from the run's. A guess; 0.0001 was seen, see docs/export.md."""
SIZES: Final = ((1, 1), (1.5, 2.2), (2.3, 1.6), (0.2, 0.3), (0.4, 6.1), (5.2, 0.7), (8.3, 9.1))
"""Height and width of the images that a file is checked on, in window sides."""
_PIXELS: Final = (
    "images: uint8 [n, height, width, 3], RGB, upright (EXIF orientation applied), what is transparent laid"
    " on background; any height and width, one of each in a batch. probabilities: float32 [n, K], as classes"
)
_WINDOWS: Final = (
    "float32 [n, 3, size, size], RGB in 0..1, less mean, by std; logits / temperature, then softmax, are the"
    " probabilities"
)
CONVENTIONS: Final[dict[FormatName, str]] = {"onnx": _PIXELS, "openvino": _PIXELS, "safetensors": _WINDOWS}
"""What each format's network takes and gives."""


def export(job: Job) -> None:
    """Write the file, hold it against the run, and say how it compares. Raises UserError."""
    check_out(job.out)
    trained, fitted = open_calibrated(job.run, job.checkpoint, job.resources, job.pack)
    say_uncalibrated(fitted.why)
    cpu = torch.device("cpu")
    trained = replace(trained, network=trained.network.to(cpu), device=cpu, bf16=False)
    properties = describe(trained, fitted.temperature, CONVENTIONS[job.format])
    if job.format == "safetensors":
        with new_folder(job.out) as folder:
            difference = write_folder(trained, properties, folder)
            checked = f"logits of {len(SIZES)} windows"
            conclude(job, trained, difference, checked, [*folder.iterdir()])
        return
    nodes = onnx_file.network_nodes(trained.network, trained.augment.size, fitted.temperature, OPSET)
    model = onnx_file.join(window(trained.augment), nodes, properties | {"opset": OPSET})
    outs = [job.out, job.out.with_suffix(".bin")] if job.format == "openvino" else [job.out]
    with replacing_all(outs) as files, tempfile.TemporaryDirectory(prefix="greyhound-") as drawn:
        answer = WRITERS[job.format](model, files[0])
        difference = largest_difference(trained, fitted.temperature, answer, Path(drawn))
        conclude(job, trained, difference, f"probabilities of {len(SIZES)} drawn images", files)


def conclude(job: Job, trained: Trained, difference: float, checked: str, files: Sequence[Path]) -> None:
    """Say how the files compare with the run. Raises UserError where they differ."""
    if not difference <= TOLERANCE:  # also if it is no number
        found = (
            f"the {checked} differ from those of {job.run} by up to {difference:.4f}, {TOLERANCE} is allowed"
        )
        raise UserError(f"{found}; nothing was written. Try another --format")
    size = sum(file.stat().st_size for file in files)
    print(plain(f"{job.out}: {size / 1e6:.1f} MB, {len(trained.classes)} classes"))
    print(plain(f"checked: the {checked} differ from the run's by at most {difference:.2g}"))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` if the block ends well. Raises UserError."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there and not empty; name a new folder: --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            yield folder
            folder.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}); name another folder") from None


def write_folder(trained: Trained, properties: Mapping[str, Any], folder: Path) -> float:
    """Write timm's folder; the largest difference of its logits from those of the run, as it was trained."""
    augment, windows = trained.augment, torch.Generator().manual_seed(0)
    _, network = trained.run.network(trained.origin["checkpoint"], trained.device)
    preprocessing = timm_folder.Preprocessing(augment.size, augment.fit, augment.mean, augment.std)
    timm_folder.write(network, properties["network"], preprocessing, properties, folder)
    images = torch.randn(len(SIZES), 3, augment.size, augment.size, generator=windows)
    with torch.inference_mode():
        return float((timm_folder.load(folder)(images) - network(images)).abs().max())


def describe(trained: Trained, fitted: float, convention: str) -> dict[str, Any]:
    """What goes with the network into its file; texts, numbers, and the classes."""
    recipe = trained.run.read(RECIPE)
    return {
        "classes": trained.classes,
        "input": convention,
        "background": trained.background,
        "size": trained.augment.size,
        "temperature": fitted,
        "licence": licence(recipe["network"], recipe.get("weights") or ""),
        "accuracy": accuracy(trained),
        "greyhound": metadata.version("greyhound"),
        "network": recipe["network"],
        "weights": trained.origin["weights"],
    }


def accuracy(trained: Trained) -> Any:
    """What the run's evaluation of its test split says of these weights; or that there was none."""
    if not (trained.run.folder / EVALUATION).exists():
        return "not evaluated"
    found = trained.run.read(EVALUATION)
    if found.get("weights") != trained.origin["weights"]:
        return "not evaluated"
    return {key: found.get(key) for key in ("accuracy", "interval", "n", "split", "crops")}


def write_onnx(model: Any, path: Path) -> Callable[[NDArray[np.uint8]], Probabilities]:
    """Write the file; what it answers to images, in ONNX Runtime."""
    import onnx
    import onnxruntime

    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([onnx_file.OUTPUT], {INPUT: images})[0])


def write_openvino(model: Any, path: Path) -> Callable[[NDArray[np.uint8]], Probabilities]:
    """Write the two files; what they answer to images, in OpenVINO, in float32."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="greyhound-") as folder:
        source = Path(folder, "model.onnx")
        write_onnx(model, source)
        converted = openvino.convert_model(source)
    for each in model.metadata_props:
        converted.set_rt_info(each.value, ["greyhound", each.key])
    openvino.save_model(converted, path, compress_to_fp16=False)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: np.asarray(compiled({INPUT: images})[onnx_file.OUTPUT])


WRITERS = {"onnx": write_onnx, "openvino": write_openvino}


def largest_difference(
    trained: Trained, fitted: float, answer: Callable[[NDArray[np.uint8]], Probabilities], folder: Path
) -> float:
    """Between a file's probabilities and the run's own, over drawn images of all SIZES; folder: for them.

    And between those of two images in one batch and one by one.
    """
    images = [
        drawn(round(high * trained.augment.size), round(wide * trained.augment.size)) for high, wide in SIZES
    ]
    for place, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{place}.png", compress_level=1)
    write_all(find_unlabelled(folder), trained.classes, folder / "drawn.arrow")
    pack = Pack(folder / "drawn.arrow")
    differences = []
    for rows, logits in trained.logits(pack, pack.ids("test"), Resources(engine="threads", device="cpu")):
        expected = (logits[:, 0] / fitted).softmax(1).numpy()
        for row, wanted in zip(rows.tolist(), expected, strict=True):
            found = answer(images[int(pack.image_path(row).partition(".")[0])][None])[0]
            differences.append(float(np.abs(found - wanted).max()))
    assert len(differences) == len(SIZES)
    batch = np.stack([images[0], images[0][:, ::-1]])
    single = np.concatenate([answer(image[None]) for image in batch])
    return max(*differences, float(np.abs(answer(batch) - single).max()))


def drawn(height: int, width: int) -> NDArray[np.uint8]:
    """Coloured clouds with grain, uint8 `[height, width, 3]`, the same every time."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    clouds = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(clouds.astype(int) + random.integers(-16, 17, clouds.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    run(lambda: export(JOB))
