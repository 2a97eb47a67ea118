"""Doctor: what this machine has for training, and what of it is known not to work together.

    greyhound doctor [--pack PACK]          (--json for programs)

Before it: an installation. After it: a table, and a line for each thing to do or not known. Exit code 1
if something is known to be wrong, else 0, also without a GPU. With a pack, some of its pictures are decoded:
black ones, half ones and those with swapped colours have another mean luma than the pack says. A shifted one
may have the same; the GPU check compares pixels.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.options import read_options


@dataclass(frozen=True)
class Job:
    """Say what this machine has for training, and what of it does not work together."""

    pack: Path | None = None
    """Also decode some of this pack's pictures, and compare them with what was packed; default: none."""
    json: bool = False
    """Print facts and findings as JSON, and nothing else."""


if __name__ == "__main__":  # --help and a slip are answered before the slow imports
    end_quietly()
    JOB = read_or_exit(lambda: read_options(Job, sys.argv[1:], "greyhound doctor"))

import numpy as np
import torch
from numpy.typing import NDArray
from rich import filesize
from rich.console import Console
from rich.table import Table

from greyhound.cache.cli import run
from greyhound.cache.decode import LUMA
from greyhound.cache.errors import one_line
from greyhound.cache.machine import available_cores, available_memory, describe_machine, installed
from greyhound.cache.store import Pack
from greyhound.pipelines.decoded import ImageCache
from greyhound.pipelines.engine import BatchSpec, Device, Engine, EngineConfig, StreamError
from greyhound.pipelines.loader import ENGINES, choose

_SHARED_MEMORY: Final = Path("/dev/shm")
_KERNEL_MODULE: Final = Path("/proc/driver/nvidia/version")
TOLERANCE: Final = 4.0
"""Levels of 255 by which a mean luma may be off: not all pixels are sampled, and decoders differ a little."""
SAMPLES: Final = 1024
"""Pictures of a pack that are decoded: enough to meet its rarer kinds of files."""
_SIZE: Final = 128  # samples a side of each picture
_BATCH: Final = 16
_LUMA: Final = np.array(LUMA, dtype=np.float32)  # as the pack's
_LEAST_FILES: Final = 1024
# The driver that a CUDA version needs at least: docs.nvidia.com/deploy/cuda-compatibility, "Minor Version
# Compatibility", table 1.
_LEAST_DRIVER: Final = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class Facts:
    """What was learnt. cores: of all `processors` those that this process may use.

    memory, shared_memory: bytes free; None where there is no shared memory. open_files: as many as allowed.
    versions: of packages, and `torch's CUDA` and `DALI's CUDA`. gpus: name and memory, as torch
    says. driver: its version, where known.
    """

    machine: str
    cores: int
    processors: int
    memory: int
    shared_memory: int | None
    open_files: int
    versions: dict[str, str]
    gpus: tuple[str, ...]
    driver: str | None


@dataclass(frozen=True)
class Finding:
    """One line: what it is about, what was found, what it means, and what to do or why it is not known."""

    about: str
    found: str
    verdict: Literal["ok", "note", "problem", "unknown"] = "ok"
    advice: str = ""


def learn() -> Facts:
    """Look at this machine; nothing is changed."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return Facts(
        machine=describe_machine(),
        cores=available_cores(),
        processors=os.cpu_count() or 1,
        memory=available_memory(),
        shared_memory=shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        versions=_versions(),
        gpus=tuple(map(_describe_gpu, gpus)),
        driver=kernel_driver(),
    )


def _describe_gpu(place: int) -> str:
    free, memory = map(filesize.decimal, torch.cuda.mem_get_info(place))
    return f"{torch.cuda.get_device_name(place)}, {free} free of {memory}"


def kernel_driver() -> str | None:
    """The version of NVIDIA's kernel module, where one is loaded, as it says it itself on Linux."""
    text = _KERNEL_MODULE.read_text() if _KERNEL_MODULE.exists() else ""
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", text)
    return found[1] if found else None


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
    return [*_judge_machine(facts), *_judge_gpus(facts), *_judge_packages(facts.versions)]


def _judge_machine(facts: Facts) -> Iterator[Finding]:
    yield Finding("machine", facts.machine)
    advice = "what affinity and the container's quota leave; loader threads are counted from these"
    cores = f"{facts.cores} of {facts.processors}"
    yield _note_if(facts.cores < facts.processors, "cores", cores, advice)
    yield Finding("free memory", filesize.decimal(facts.memory))
    if facts.shared_memory is None:
        yield Finding("shared memory", "-", "unknown", f"there is no {_SHARED_MEMORY} on this system")
    else:
        advice = "the loader needs none, but NCCL and torch's DataLoader do: docker run --shm-size=8g"
        small, found = facts.shared_memory < 2**30, filesize.decimal(facts.shared_memory)
        yield _note_if(small, "shared memory", found, advice)
    advice = f"raise it: ulimit -n {_LEAST_FILES}"
    yield _note_if(facts.open_files < _LEAST_FILES, "open files", str(facts.open_files), advice)


def _note_if(holds: bool, about: str, found: str, advice: str) -> Finding:
    return Finding(about, found, "note", advice) if holds else Finding(about, found)


def _judge_gpus(facts: Facts) -> Iterator[Finding]:
    if not facts.gpus:
        yield Finding("GPU", "none", "note", f"training runs on the CPU, by engine {choose()[0]}")
    advice = "an instance of MIG: memory, multiprocessors and JPEG engines are its own"
    for place, gpu in enumerate(facts.gpus):
        yield _note_if(" MIG " in gpu, f"GPU {place}", gpu, advice)
    if facts.driver is None:
        why = f"there is no {_KERNEL_MODULE}: no driver of NVIDIA is loaded"
        yield Finding("driver", "-", "unknown", why)
        return
    yield Finding("driver", facts.driver)
    for name in ("torch's CUDA", "DALI's CUDA"):
        major = _major(facts.versions.get(name, "0"))
        least = _LEAST_DRIVER.get(major, 0)
        if _major(facts.driver) < least:
            advice = f"CUDA {major} needs driver {least} or later: update it, or use a build for older CUDA"
            yield Finding(f"driver and {name}", f"{facts.driver} under CUDA {major}", "problem", advice)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _judge_packages(versions: dict[str, str]) -> Iterator[Finding]:
    yield from (Finding(name, version) for name, version in versions.items())
    if not any(name.startswith("nvidia-dali") for name in versions):
        advice = "engine threads needs none; pip install nvidia-dali-cuda120"
        yield Finding("DALI", "not installed", "note", advice)
    for name, version in versions.items():
        if name.startswith("nvidia-nvimgcodec") and version.startswith("0.9."):
            advice = (
                "regions of a JPEG fail or crash (NVIDIA/nvImageCodec#55): decode whole images, then crop"
            )
            yield Finding(f"{name} and regions", version, "note", advice)
    if find_spec("torchvision") and (fault := torchvision_fault()):
        advice = "let pip choose both: pip install --force-reinstall torch torchvision"
        yield Finding("torch and torchvision", fault, "problem", advice)


def torchvision_fault() -> str:
    """Why torchvision does not work with this torch, or nothing: a wrong pair fails when it is imported."""
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return one_line(error)
    return ""


def try_decoder(pack: Pack) -> Finding:
    """Whether the engine that training would choose here decodes pictures of the pack to what was packed."""
    name, device = choose()
    rows = spread(pack, SAMPLES)
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
    """By how much each picture's mean luma, as the engine decodes it, is off the pack's: levels of 255.

    It is sampled at `_SIZE` x `_SIZE` places. Returns float32 `[n]`. Raises StreamError.
    """
    cache = ImageCache(pack, np.zeros(len(pack), dtype=bool), np.zeros((len(pack), 2), dtype=np.int32))
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


def _whole_pictures(pack: Pack, rows: NDArray[np.int64]) -> Iterator[BatchSpec]:
    """Batches whose window is the whole picture, in levels, nothing changed."""
    for low in range(0, len(rows), _BATCH):
        ids = rows[low : low + _BATCH]
        geometry = np.zeros((len(ids), 1, 3, 3), dtype=np.float32)
        geometry[:, 0, 0, 0], geometry[:, 0, 1, 1] = pack.stored_sizes[ids].T / _SIZE
        geometry[..., 2, 2] = 1
        colour = np.tile(np.eye(3, 4, dtype=np.float32), (len(ids), 1, 1, 1))
        whole = np.zeros((len(ids), 2), dtype=np.int32)
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
    console, table = Console(markup=False, emoji=False, highlight=False), Table("about", "found", "")
    for finding in findings:
        table.add_row(finding.about, finding.found, finding.verdict)
    console.print(table)
    for finding in findings:
        if finding.advice:
            console.print(f"{finding.verdict}: {finding.about}: {finding.advice}", soft_wrap=True)
    counts = Counter(finding.verdict for finding in findings)
    console.print(f"{counts['problem']} problems, {counts['note']} notes, {counts['unknown']} unknown")


if __name__ == "__main__":
    run(lambda: main(JOB))
