"""Plan: what a pack takes in each tier, what of it fits, and what a training would wait for.

    python -m pipelines.plan --pack PACK                      (--gpu-memory 80GB --cores 16 for a machine not here)

Before it: a pack. After it: two tables and the choice that `--tier auto` makes, by the code that makes it. Every figure
says where it is from: counted from the pack, measured here a moment ago, given on the command line, or from the literature.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cache.command import parse, run
from cache.machine import available_cores, available_memory
from cache.store import Pack, PackError
from pipelines import tier
from pipelines.augment import Augment, halvings
from pipelines.loader import Loader, Resources
from pipelines.request import ResourcesError, StreamError
from pipelines.tier import SHARE, TierName, parse_bytes, say_bytes

_SAMPLED: Final = 256
"""Images that are measured, spread over the pack: the decoder's cost follows their size."""


@dataclass(frozen=True)
class Figure:
    """Images a second, and where that is from."""

    value: float
    origin: str


GPU_DECODER: Final = Figure(7000, "literature: an A100, roughly, by others; its first source was not traced")
TRAINING: Final = Figure(
    979, "literature: EfficientNet-B2, 256 px, AMP, channels_last, RTX 3090; timm's benchmark results"
)
LINK: Final = 32e9
"""Bytes a second from host to GPU. Literature: PCIe 4.0, 16 lanes, as specified; what is reached is less."""


@dataclass(frozen=True)
class Footprint:
    """A tier of a pack. room: bytes that it may take where it lies, or None where there is no such place. fitting: images."""

    name: str
    place: str
    nbytes: int
    room: int | None
    fitting: int
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """A part of a route, and the images a second that it lets through."""

    name: str
    rate: Figure


@dataclass(frozen=True)
class Route:
    """A way from the pack to the network: engine and tier. The slowest stage decides."""

    name: str
    stages: tuple[Stage, ...]

    @property
    def slowest(self) -> Stage:
        """What images wait for on this route."""
        return min(self.stages, key=lambda stage: stage.rate.value)


@dataclass(frozen=True)
class Machine:
    """What is planned for. memory, gpu_memory: bytes free; no GPU: None."""

    cores: int
    memory: int
    gpu_memory: int | None


@dataclass(frozen=True)
class Costs:
    """Core-milliseconds an image of the threads engine, from encoded and from decoded originals."""

    encoded: float
    decoded: float


def footprints(pack: Pack, rows: NDArray[np.int64], batch_nbytes: int, machine: Machine) -> list[Footprint]:
    """The tiers of these rows of a pack. batch_nbytes: of all batches that are prepared ahead."""
    sizes = tier.decoded_sizes(pack, rows, halvings(Augment(), pack.sizes[rows]))
    half = int(SHARE * machine.memory)
    on_gpu = None if machine.gpu_memory is None else int(SHARE * machine.gpu_memory)

    def decoded(name: str, place: str, room: int | None, note: str) -> Footprint:
        fitting = 0 if room is None else int((np.cumsum(sizes) <= room).sum())
        return Footprint(name, place, int(sizes.sum()), room, fitting, note)

    def whole(name: str, place: str, nbytes: int, note: str) -> Footprint:
        fitting = len(rows) if nbytes <= machine.memory else 0
        return Footprint(name, place, nbytes, machine.memory, fitting, note)

    return [
        whole("encoded, mmap", "page cache", pack.nbytes, "given back where others need the memory"),
        whole("encoded, ram", "private memory", pack.nbytes, "--residency ram"),
        whole("batches", "pinned memory", batch_nbytes, "prepared ahead; pinned where there is a GPU"),
        decoded("decoded, host", "private memory", half, f"--tier decoded; {SHARE:.0%} of what is free"),
        decoded("decoded, GPU", "GPU memory", on_gpu, "no engine keeps pixels there yet: for comparison"),
    ]


def routes(pack: Pack, costs: Costs, machine: Machine) -> list[Route]:
    """Every way to the network, with what each stage lets through: on a machine without a GPU, no link and no decoder."""
    size = Augment().size
    link = "literature: PCIe 4.0, 16 lanes"
    floats = Stage("floats to the GPU", Figure(LINK / (3 * size * size * 4), link))
    encoded = Stage("encoded bytes to the GPU", Figure(LINK / (pack.nbytes / len(pack)), link))
    gpu = machine.gpu_memory is not None

    def host(name: str, cost: float) -> Stage:
        rate = Figure(
            1000 * machine.cores / cost, f"measured here: {cost:.2f} core-ms, {machine.cores} cores"
        )
        return Stage(name, rate)

    found = [
        Route("threads, encoded", (host("decode, warp and colour on cores", costs.encoded),)),
        Route("threads, decoded", (host("warp and colour on cores", costs.decoded),)),
    ]
    if gpu:
        found = [Route(route.name, (*route.stages, floats)) for route in found]
        found.append(Route("dali on the GPU, encoded", (Stage("the GPU's decoder", GPU_DECODER), encoded)))
    return found


def core_ms(pack: Pack, rows: NDArray[np.int64], name: TierName, seconds: float) -> float:
    """Core-milliseconds of this process for an image by the threads engine: one epoch to warm up, then whole epochs."""
    resources = Resources("threads", "cpu", tier=name)
    with Loader(pack, Augment(), rows, resources, shuffle=True) as loader:
        for _ in loader.epoch():
            pass
        spent, started, images = time.process_time(), time.perf_counter(), 0
        while not images or time.perf_counter() - started < seconds:
            images += sum(len(batch.ids) for batch in loader.epoch())
        return 1000 * (time.process_time() - spent) / images


def verdict(found: list[Route], training: Figure) -> str:
    """What a training would wait for, by the best route, in a sentence."""
    best = max(found, key=lambda route: route.slowest.rate.value)
    data, stage = best.slowest.rate.value, best.slowest.name
    if data < training.value:
        return (
            f"bottleneck: the data. By {best.name}, the best route, {stage} lets {data:.0f} images a second through, and "
            f"the training takes {training.value:.0f} ({training.origin})"
        )
    return (
        f"bottleneck: the training, {training.value:.0f} images a second ({training.origin}). By {best.name} the data "
        f"come {data / training.value:.1f} times as fast"
    )


@dataclass(frozen=True)
class Job:
    """What to plan, and for which machine; the one here where nothing else is said."""

    pack: Path
    """The pack."""
    gpu_memory: str = ""
    """Of a GPU that is not here, such as 80GB."""
    cores: int | None = None
    """Of a machine that is not here; their speed is taken to be that of the cores here."""
    memory: str = ""
    """Free memory of a machine that is not here, such as 128GB."""
    training: float | None = None
    """Images a second that your training step takes, if you know it."""
    batch_size: int = 32
    """Images a step."""
    seconds: float = 2.0
    """How long each of the two measurements takes."""
    json: bool = False
    """Print JSON, and nothing else."""

    def __post_init__(self) -> None:
        """Refuse numbers that no machine could have."""
        for name in ("cores", "training", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected more than 0")
        if not 0 < self.seconds < 1e6:
            raise ValueError(f"seconds is {self.seconds}; expected more than 0")
        for name in ("gpu_memory", "memory"):
            if getattr(self, name):
                parse_bytes(getattr(self, name), name)


def machine(job: Job) -> Machine:
    """The one that is planned for."""
    here = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return Machine(
        cores=job.cores or available_cores(),
        memory=parse_bytes(job.memory, "memory") if job.memory else available_memory(),
        gpu_memory=parse_bytes(job.gpu_memory, "gpu_memory") if job.gpu_memory else here,
    )


def main() -> int:
    """Count, measure, say."""
    try:
        job = parse(lambda: tyro.cli(Job, prog="python -m pipelines.plan"))
    except ValueError as error:  # a job that refuses its numbers
        raise ResourcesError(str(error)) from None
    pack, planned = Pack(job.pack), machine(job)
    rows = pack.ids("train")
    rows = rows if len(rows) else np.arange(len(pack))
    sampled = rows[:: -(-len(rows) // _SAMPLED)]
    names: tuple[Literal["encoded"], Literal["decoded"]] = ("encoded", "decoded")
    costs = Costs(*(core_ms(pack, sampled, name, job.seconds) for name in names))
    training = Figure(job.training, "given") if job.training else TRAINING
    ahead = (Resources().prefetch + 2) * job.batch_size * 3 * Augment().size ** 2 * 4
    tiers, found = footprints(pack, rows, ahead, planned), routes(pack, costs, planned)
    auto = tier.plan(
        "auto", pack, rows, halvings(Augment(), pack.sizes[rows]), int(SHARE * planned.memory), None
    )
    if job.json:
        content = {
            "machine": asdict(planned),
            "costs": asdict(costs),
            "tiers": [asdict(each) for each in tiers],
        }
        content |= {"routes": [asdict(route) for route in found], "training": asdict(training)}
        print(json.dumps(content | {"auto": auto.why, "verdict": verdict(found, training)}))  # noqa: T201
    else:
        show(len(rows), tiers, found, [auto.why, verdict(found, training)])
    return 0


def show(images: int, tiers: list[Footprint], found: list[Route], lines: list[str]) -> None:
    """Both tables, and what follows from them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    table = Table(
        "tier", "lies in", "bytes", "room", "images that fit", "", title=f"{images} images, counted"
    )
    for each in tiers:
        room = "no GPU: --gpu-memory" if each.room is None else say_bytes(each.room)
        table.add_row(each.name, each.place, say_bytes(each.nbytes), room, str(each.fitting), each.note)
    console.print(table)
    table = Table("route", "stage", "images a second", "from", title=f"at {Augment().size} px")
    for route in found:
        for stage in route.stages:
            slow = " (slowest)" if stage is route.slowest and len(route.stages) > 1 else ""
            table.add_row(route.name, stage.name + slow, f"{stage.rate.value:.0f}", stage.rate.origin)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main, PackError, ResourcesError, StreamError)
