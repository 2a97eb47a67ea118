"""What a run's formats cost: size, images a second, memory, and how far each is from the run; docs/export.md's table.

    python tests/formats.py RUN FOLDER

Exports RUN, takes the first images of FOLDER at full decode, and gives them one by one to each runtime, in a process
of its own, with one thread and with two. Decoding is not timed; preprocessing is. The last line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

IMAGES: Final = 100
PIECE, CHUNKS = 20, 8
"""Images timed at once, and how often; the fastest time counts, and the mean of the cores' time."""
LARGE: Final = (3000, 4000)
RUNTIMES: Final = ("torch", "torch, bf16", "ONNX Runtime", "OpenVINO", "OpenVINO, bf16", "OpenCV")


def opened(name: str, out: Path, run: Path, threads: int) -> Any:
    """What answers probabilities `[1, K]` to an image `[1, height, width, 3]`, in so many threads."""
    if name == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(out.with_suffix(".onnx"), options)
        return lambda images: session.run(None, {"images": images})[0]
    if name.startswith("OpenVINO"):
        import openvino

        hints = {
            "INFERENCE_PRECISION_HINT": "bf16" if "bf16" in name else "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = openvino.compile_model(out.with_suffix(".xml"), "CPU", hints)
        return lambda images: compiled(images)[0]
    if name == "OpenCV":
        import cv2

        cv2.setNumThreads(threads)
        network = cv2.dnn.readNetFromONNX(str(out.with_suffix(".onnx")))

        def answer(images: Any) -> Any:
            network.setInput(images, "images")
            return network.forward().copy()

        return answer
    return in_torch(run, threads, "bf16" in name, json.loads(out.with_suffix(".json").read_text()))


def in_torch(run: Path, threads: int, bf16: bool, temperature: float) -> Any:
    """The run itself, with the steps of the engine `threads` on the calling thread."""
    import torch

    from greyhound.cache.decode import downsample
    from greyhound.model import precision
    from greyhound.model.run import Run
    from greyhound.pipelines import augment
    from greyhound.pipelines import threads as engine
    from greyhound.pipelines.engine import Resources
    from greyhound.trained import open_trained

    torch.set_num_threads(threads)
    trained = open_trained(Run(run), "auto", Resources(device="cpu"))
    size, centre = trained.augment.size, trained.augment.centre()
    scratch, upright = engine.Scratch(size, centre.fill), np.ones(1, dtype=np.uint8)

    def answer(images: Any) -> Any:
        sizes = np.array([images.shape[2:0:-1]], dtype=np.int32)
        reduction = augment.log2_reduction(centre, sizes)
        drawn, colour = augment.draw(centre, 0, 0, np.zeros(1, dtype=np.int64), sizes)
        geometry = augment.to_stored(drawn, sizes, upright, reduction)
        small = scratch.pad(downsample(images[0], *reduction[0].tolist()), 1)
        engine.warp(small, engine.to_opencv(geometry)[0] + [[0, 0, 1], [0, 0, 1]], scratch.warped)
        scratch.fill(*augment.spans(geometry[:, None], sizes, reduction, size)[0, 0])
        floats = np.empty((size, size, 3), dtype=np.float32)
        engine.colour(scratch.warped, colour[0], scratch, floats)
        with torch.no_grad():
            window = torch.from_numpy(floats).permute(2, 0, 1)[None]
            return (precision.forward(trained.network, window, bf16) / temperature).softmax(1).numpy()

    return answer


def memory_mb(kind: str) -> float:
    """What this process holds, VmRSS, or held at most, VmHWM; a child's `ru_maxrss` begins at its parent's."""
    status = Path("/proc/self/status").read_text()
    return float(status.partition(f"{kind}:")[2].split()[0]) / 1024


def measure(name: str, out: Path, run: Path, folder: Path, threads: int) -> dict[str, Any]:
    """One runtime, in this process."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    images = [
        np.array(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))[None] for file in files[:IMAGES]
    ]
    before = memory_mb("VmRSS")
    answer = opened(name, out, run, threads)
    rows = [answer(image)[0] for image in images]
    memory = memory_mb("VmHWM") - before
    rates, used, count = [], time.process_time(), 0
    for _ in range(CHUNKS):
        start = time.perf_counter()
        for image in images[:PIECE]:
            answer(image)
        rates.append(PIECE / (time.perf_counter() - start))
        count += PIECE
    core = time.process_time() - used
    answer(np.random.default_rng(0).integers(0, 256, (1, *LARGE, 3), dtype=np.uint8))
    large = memory_mb("VmHWM") - before
    start = time.perf_counter()
    answer(np.zeros((1, *LARGE, 3), dtype=np.uint8))
    return {
        "rate": max(rates),
        "core_ms": 1e3 * core / count,
        "memory_mb": memory,
        "large_memory_mb": large,
        "large_ms": 1e3 * (time.perf_counter() - start),
        "rows": np.array(rows).tolist(),
    }


def main(run: Path, folder: Path) -> None:
    from greyhound import export
    from greyhound.model.run import Run
    from greyhound.pipelines.engine import Resources
    from greyhound.trained import open_trained, temperature

    with tempfile.TemporaryDirectory() as temporary:
        out, resources = Path(temporary) / "run.pt", Resources(device="cpu")
        fitted = temperature(open_trained(Run(run), "auto", resources), 1, resources)
        out.with_suffix(".json").write_text(json.dumps(fitted.temperature))
        export.export(export.Job(run=run, out=out.with_suffix(".onnx"), resources=resources))
        export.export(
            export.Job(run=run, out=out.with_suffix(".xml"), format="openvino", resources=resources)
        )
        found, expected = {}, np.empty(0)
        for name in RUNTIMES:
            for threads in (1, 2):
                command = [sys.executable, __file__, str(run), str(folder), name, str(out), str(threads)]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found[f"{name}, {threads}"] = row = json.loads(said.splitlines()[-1])
                rows = np.array(row.pop("rows"))
                expected = rows if name == "torch" and threads == 1 else expected
                row["difference"] = float(np.abs(rows - expected).max())
                row["same_class"] = int((rows.argmax(1) == expected.argmax(1)).sum())
                print(name, threads, {key: round(value, 5) for key, value in row.items()}, flush=True)
        sizes = {suffix: out.with_suffix(suffix).stat().st_size for suffix in (".onnx", ".xml", ".bin")}
    print(json.dumps({"images": IMAGES, "sizes": sizes, "runtimes": found}))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        name, out, threads = sys.argv[3:]
        print(json.dumps(measure(name, Path(out), Path(sys.argv[1]), Path(sys.argv[2]), int(threads))))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
