"""Doctor: what this machine has for training, what it lacks, and what of it is known not to work together.

    greyhound doctor [--pack PACK]          (--json for programs)

Before it: an installation. After it: a table, a line a finding, each with what to do; also what could not be
learnt, and why. Exit code 1 if something is known to be wrong, else 0, also without a GPU. With a pack, some
of its pictures are decoded: black ones, half ones and those with swapped colours have another mean luma than
the pack says. A shifted one may have the same; the GPU check compares pixels.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from greyhound.cache.cli import read_or_exit
from greyhound.cache.options import read_options


@dataclass(frozen=True)
class Job:
    """Say what this machine has for training, what it lacks, and what does not fit together."""

    pack: Path | None = None
    """Also decode some of this pack's pictures, and compare them with what was packed; default: none."""
    json: bool = False
    """Print facts and findings as JSON, and nothing else."""


if __name__ == "__main__":  # --help and a slip are answered before the slow imports
    JOB = read_or_exit(lambda: read_options(Job, sys.argv[1:], "greyhound doctor"))

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from greyhound.cache.cli import run
from greyhound.cache.decode import LUMA
from greyhound.cache.machine import available_cores, available_memory, describe_machine, installed
from greyhound.cache.store import Pack
from greyhound.pipelines.decoded import ImageCache, say_bytes
from greyhound.pipelines.engine import BatchSpec, Device, Engine, EngineConfig, StreamError
from greyhound.pipelines.loader import ENGINES, choose

Verdict = Literal["ok", "note", "problem", "unknown"]

_SHARED_MEMORY: Final = Path("/dev/shm")
_KERNEL_MODULE: Final = Path("/proc/driver/nvidia/version")
TOLERANCE: Final = 4.0
"""Levels of 255 by which a mean luma may be off: not all pixels are sampled, and decoders differ a little."""
_SIZE: Final = 128  # samples a side of each picture
_BATCH: Final = 16
_LUMA: Final = np.array(LUMA, dtype=np.float32)  # as the pack's
_LEAST_FILES: Final = 1024
# The driver that a CUDA version needs at least: docs.nvidia.com/deploy/cuda-compatibility, "Minor Version
# Compatibility", table 1.
_LEAST_DRIVER: Final = {11: 450, 12: 525, 13: 580}
_REGIONS: Final = (
    "a region of a JPEG on the GPU fails or crashes with 0.9 (NVIDIA/nvImageCodec#55; 0.8.0 did not). "
    "Greyhound decodes whole images; in graphs of your own use fn.decoders.image and crop or warp after it"
)


@dataclass(frozen=True)
class Gpu:
    """One GPU. memory, free: bytes. None: not learnt."""

    name: str
    memory: int | None
    free: int | None
    mig: bool | None = None
    jpeg_engines: int | None = None


@dataclass(frozen=True)
class Facts:
    """What was learnt. cores: of all `processors` those that this process may use. None: unknown, no limit.

    memory, shared_memory: bytes free. locked_memory, open_files: limits of this process. versions: of
    packages, and `torch's CUDA` and `DALI's CUDA`. driver: its version, by its library or else by the kernel;
    driver_unknown: why the library could not be asked.
    """

    machine: str
    cores: int
    processors: int
    memory: int
    shared_memory: int | None
    locked_memory: int | None
    open_files: int | None
    versions: dict[str, str]
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    driver_unknown: str = ""


@dataclass(frozen=True)
class Finding:
    """One line: what it is about, what was found, what it means, and what to do or why it is not known."""

    about: str
    found: str
    verdict: Verdict = "ok"
    advice: str = ""


def learn() -> Facts:
    """Look at this machine; nothing is changed, and no memory of a GPU is taken."""
    driver, gpus, why = ask_driver()
    return Facts(
        machine=describe_machine(),
        cores=available_cores(),
        processors=os.cpu_count() or 1,
        memory=available_memory(),
        shared_memory=shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None,
        locked_memory=_limit("RLIMIT_MEMLOCK"),
        open_files=_limit("RLIMIT_NOFILE"),
        versions=_versions(),
        gpus=gpus,
        driver=driver or kernel_driver(),
        driver_unknown=why,
    )


def ask_driver() -> tuple[str | None, tuple[Gpu, ...], str]:
    """The driver's version and GPUs by NVML, its library, or why not; without it torch names the GPUs."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None, _torch_gpus(), "needs NVIDIA's binding: pip install nvidia-ml-py"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, (), f"no NVIDIA driver answers ({error})"
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(place) for place in range(pynvml.nvmlDeviceGetCount())]
        return pynvml.nvmlSystemGetDriverVersion(), tuple(_gpu(pynvml, handle) for handle in handles), ""
    finally:
        pynvml.nvmlShutdown()


def kernel_driver() -> str | None:
    """The version of NVIDIA's kernel module, where one is loaded, as it says it itself on Linux."""
    text = _KERNEL_MODULE.read_text() if _KERNEL_MODULE.exists() else ""
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text)
    return found[1] if found else None


def _gpu(nvml: Any, handle: Any) -> Gpu:
    name = str(nvml.nvmlDeviceGetName(handle))
    total = free = None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError:  # where it shares the host's memory; torch asks CUDA
        for gpu in (gpu for gpu in _torch_gpus() if gpu.name == name):
            total, free = gpu.memory, gpu.free
    mig = engines = None
    with suppress(nvml.NVMLError):  # this GPU has no such thing as MIG
        mig = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    # NVML counts the engines in MIG's profiles alone; the widest one has them all.
    with suppress(nvml.NVMLError):
        profile = nvml.nvmlDeviceGetGpuInstanceProfileInfo(handle, nvml.NVML_GPU_INSTANCE_PROFILE_7_SLICE)
        engines = int(profile.jpegCount)
    return Gpu(name, total, free, mig, engines)


def _torch_gpus() -> tuple[Gpu, ...]:
    places = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    name, memory = torch.cuda.get_device_name, torch.cuda.mem_get_info
    return tuple(Gpu(name(place), *memory(place)[::-1]) for place in places)


def _limit(name: str) -> int | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _versions() -> dict[str, str]:
    """Of what decodes and computes, in the builds of all CUDA versions."""
    found = installed("torch", "torchvision", "nvidia-dali-*", "nvidia-nvimgcodec-*", "nvidia-nvjpeg-*")
    if torch.version.cuda:
        found["torch's CUDA"] = torch.version.cuda
    with suppress(ImportError, AttributeError):
        from nvidia import dali

        found["DALI's CUDA"] = str(dali.__cuda_version__)[:2]  # 12.9.86 is said as 12986
    return found


def judge(facts: Facts) -> list[Finding]:
    """What the facts mean."""
    packages = _judge_packages(facts.versions)
    return [*_judge_machine(facts), *_judge_gpus(facts), *packages, *_judge_drivers(facts)]


def _judge_machine(facts: Facts) -> Iterator[Finding]:
    yield Finding("machine", facts.machine)
    few = facts.cores < facts.processors
    advice = "what affinity and the container's quota leave; loader threads are counted from these"
    yield _finding("cores", f"{facts.cores} of {facts.processors}", advice=few and advice)
    yield Finding("free memory", say_bytes(facts.memory))
    small = facts.shared_memory is not None and facts.shared_memory < 2**30
    advice = "the loader needs none, but NCCL and torch's DataLoader do: docker run --shm-size=8g"
    shared = None if facts.shared_memory is None else say_bytes(facts.shared_memory)
    yield _finding("shared memory", shared, f"there is no {_SHARED_MEMORY} on this system", small and advice)
    few = facts.open_files is not None and facts.open_files < _LEAST_FILES
    files = str(facts.open_files or "no limit")
    yield _finding("open files", files, advice=few and f"raise it: ulimit -n {_LEAST_FILES}")
    locked = "no limit" if facts.locked_memory is None else say_bytes(facts.locked_memory)
    yield Finding("locked memory", locked, advice="CUDA's pinned memory does not count; InfiniBand's does")


def _finding(
    about: str, found: str | None, unknown: str = "", advice: str | Literal[False] = False
) -> Finding:
    """A note where there is advice. found: None where it is not known; `unknown` says why."""
    if found is None:
        return Finding(about, "-", "unknown", unknown)
    return Finding(about, found, "note", advice) if advice else Finding(about, found)


def _judge_gpus(facts: Facts) -> Iterator[Finding]:
    if not facts.gpus:
        yield Finding("GPU", "none", "note", f"training runs on the CPU, by engine {choose()[0]}")
    for place, gpu in enumerate(facts.gpus):
        about = f"GPU {place}"
        free, total = ("?" if nbytes is None else say_bytes(nbytes) for nbytes in (gpu.free, gpu.memory))
        yield Finding(about, f"{gpu.name}, {free} free of {total}")
        mig = None if gpu.mig is None else "on" if gpu.mig else "off"
        why = "the driver does not say, or the GPU has none"
        advice = "memory, multiprocessors and JPEG engines are those of the instance"
        yield _finding(f"{about}, MIG", mig, why, bool(gpu.mig) and advice)
        engines = None if gpu.jpeg_engines is None else str(gpu.jpeg_engines)
        why = "the driver counts them where MIG exists (A100, H100 and later); else CUDA cores decode"
        yield _finding(f"{about}, JPEG engines", engines, why)


def _judge_packages(versions: dict[str, str]) -> Iterator[Finding]:
    yield from (Finding(name, version) for name, version in versions.items())
    if not any(name.startswith("nvidia-dali") for name in versions):
        advice = "engine threads needs none; pip install nvidia-dali-cuda120"
        yield Finding("DALI", "not installed", "note", advice)
    for name, version in versions.items():
        if name.startswith("nvidia-nvimgcodec") and version.startswith("0.9."):
            yield Finding(f"{name} and regions", version, "note", _REGIONS)
    if find_spec("torchvision") and (fault := torchvision_fault()):
        advice = "let pip choose both: pip install --force-reinstall torch torchvision"
        yield Finding("torch and torchvision", fault, "problem", advice)
    theirs, ours = (_major(versions.get(name)) for name in ("DALI's CUDA", "torch's CUDA"))
    if theirs and ours and theirs != ours:
        advice = (
            f"each has its own libraries, and the driver must serve CUDA {max(theirs, ours)}; for one of "
            f"them: pip uninstall nvidia-dali-cuda{theirs}0; pip install nvidia-dali-cuda{ours}0"
        )
        yield Finding("DALI and torch", f"CUDA {theirs} beside CUDA {ours}", "note", advice)


def torchvision_fault() -> str:
    """Why torchvision does not work with this torch, or nothing: a wrong pair fails when it is imported."""
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return " ".join(str(error).split())[:120]
    return ""


def _judge_drivers(facts: Facts) -> Iterator[Finding]:
    yield _finding("driver", facts.driver, facts.driver_unknown, facts.driver_unknown)
    for name in ("torch's CUDA", "DALI's CUDA"):
        major = _major(facts.versions.get(name))
        least = _LEAST_DRIVER.get(major, 0)
        if facts.driver and _major(facts.driver) < least:
            advice = f"CUDA {major} needs driver {least} or later: update it, or use a build for older CUDA"
            yield Finding(f"driver and {name}", f"{facts.driver} under CUDA {major}", "problem", advice)


def _major(version: str | None) -> int:
    return int(version.split(".")[0]) if version else 0


def try_decoder(pack: Pack) -> Finding:
    """Whether the engine that training would choose here decodes pictures of the pack to what was packed."""
    name, device = choose()
    rows = of_every_kind(kinds(pack), 64)
    about = f"decoder, engine {name} on {device}"
    try:
        wrong = faults(pack, rows, ENGINES[name], device)
    except StreamError as error:
        return Finding(about, "stopped", "problem", str(error))
    if not wrong:
        return Finding(about, f"{len(rows)} pictures as they were packed")
    advice = f"{wrong[0]}, for one; another build of the decoder, or --engine threads --device cpu"
    return Finding(about, f"{len(wrong)} of {len(rows)} pictures are others", "problem", advice)


def luma_errors(pack: Pack, rows: NDArray[np.int64], engine: Engine, device: Device) -> NDArray[np.float32]:
    """The mean luma of each picture, sampled at `_SIZE` x `_SIZE` places as the engine decodes it, less the
    pack's: levels of 255, float32 `[n]`. Raises StreamError.
    """
    cache = ImageCache(pack, np.zeros(len(pack), dtype=bool), np.zeros(len(pack), dtype=np.int32))
    config = EngineConfig(_SIZE, 0, 1, min(_BATCH, len(rows)), available_cores(), 2, device, cache)
    stream = engine(pack, _whole_pictures(pack, rows), config)
    found = [images.mean(dim=(1, 2, 3)).numpy(force=True) @ _LUMA for _, images in stream]
    return np.asarray(np.concatenate(found) - pack.mean_lumas[rows], dtype=np.float32)


def faults(pack: Pack, rows: NDArray[np.int64], engine: Engine, device: Device) -> list[str]:
    """The pictures of these rows that the engine decodes to others than were packed, each with its error."""
    errors = luma_errors(pack, rows, engine, device)
    wrong = np.flatnonzero(~(np.abs(errors) <= TOLERANCE))
    return [f"{pack.describe(rows[place])} is {errors[place]:+.1f} levels off" for place in wrong.tolist()]


def spread(pack: Pack, count: int) -> NDArray[np.int64]:
    """At most so many rows, spread over the pack."""
    return np.arange(len(pack))[:: -(-len(pack) // count)]


def kinds(pack: Pack) -> dict[str, list[int]]:
    """The rows of each kind of file, among 2,048: format, colours, whether a JPEG is progressive."""
    found: dict[str, list[int]] = {}
    for row in spread(pack, 2048).tolist():
        found.setdefault(_kind(pack.encoded(row).tobytes()), []).append(row)
    return found


def _kind(data: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's about large pictures
            image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, Image.DecompressionBombError):
        return "unknown"
    return f"{image.format} {image.mode}{' progressive' if 'progressive' in image.info else ''}"


def of_every_kind(found: dict[str, list[int]], count: int) -> NDArray[np.int64]:
    """At most so many rows, ascending, as many of each kind as it has them; always the same."""
    drawn = random.Random(0)
    turns = itertools.zip_longest(*(drawn.sample(rows, len(rows)) for rows in found.values()))
    chosen = [row for turn in turns for row in turn if row is not None][:count]
    return np.array(sorted(chosen), dtype=np.int64)


def _whole_pictures(pack: Pack, rows: NDArray[np.int64]) -> Iterator[BatchSpec]:
    """Batches whose window is the whole picture, in levels, nothing changed."""
    for low in range(0, len(rows), _BATCH):
        ids = rows[low : low + _BATCH]
        geometry = np.zeros((len(ids), 1, 3, 3), dtype=np.float32)
        geometry[:, 0, 0, 0], geometry[:, 0, 1, 1] = pack.stored_sizes[ids].T / _SIZE
        geometry[..., 2, 2] = 1
        colour = np.tile(np.eye(3, 4, dtype=np.float32), (len(ids), 1, 1, 1))
        whole = np.zeros(len(ids), dtype=np.int32)
        yield BatchSpec(ids, geometry, colour, whole, epoch=0, stop=low + len(ids))


def main(job: Job) -> int:
    """Learn, judge, say."""
    facts = learn()
    findings = judge(facts) + ([try_decoder(Pack(job.pack))] if job.pack else [])
    if job.json:
        content = {"facts": asdict(facts), "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content))  # noqa: T201
    else:
        show(findings)
    return 1 if any(finding.verdict == "problem" for finding in findings) else 0


def show(findings: list[Finding]) -> None:
    """A table, below it what to do or why something is not known, and how many lines want a look."""
    console = Console()
    table = Table("about", "found", "")
    for finding in findings:
        table.add_row(finding.about, finding.found, finding.verdict)
    console.print(table)
    for finding in (finding for finding in findings if finding.advice):
        line = f"{finding.verdict}: {finding.about}: {finding.advice}"
        console.print(line, highlight=False, soft_wrap=True)
    counts = Counter(finding.verdict for finding in findings)
    summary = f"{counts['problem']} problems, {counts['note']} notes, {counts['unknown']} unknown"
    console.print(summary, highlight=False)


if __name__ == "__main__":
    run(lambda: main(JOB))
