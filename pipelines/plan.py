"""Plan: what a pack takes in each tier, what of it fits, and what a training would wait for.

    greyhound plan --pack PACK                      (--gpu-memory 80GB --cores 16 for a machine not here)

Before it: a pack. After it: two tables; the choice that `--engine auto --tier auto` makes, by the code that makes it; and
what a training would wait for then. Every figure says where it is from: counted from the pack, measured here a moment
ago, given on the command line, or from the literature.
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

from greyhound.cache.cli import parse, run
from greyhound.cache.machine import available_cores, available_memory
from greyhound.cache.store import Pack
from greyhound.cache.validate import available
from greyhound.pipelines import tier
from greyhound.pipelines.augment import Augment, halvings
from greyhound.pipelines.loader import Loader, Resources, automatic
from greyhound.pipelines.request import ResourcesError
from greyhound.pipelines.tier import SHARE, EngineChosen, TierName, parse_bytes, say_bytes

_SAMPLED: Final = 256
"""Images that are measured, spread over the pack: the decoder's cost follows their size."""


@dataclass(frozen=True)
class Figure:
    """Images a second, and where that is from."""

    value: float
    origin: str


GPU_DECODER: Final = Figure(7000, "literature: an A100, roughly, by others; its first source was not traced")
TRAININGS: Final = {
    "efficientnet_b2": (979.0, 256),
    "tf_efficientnet_lite2": (1121.0, 260),
    "tf_efficientnet_lite0": (2135.0, 224),
}
"""Images a second and their side, of the recipes' networks on an RTX 3090, AMP, channels_last. Literature: timm's
results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv.
"""
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
    """A way from the pack to the network: engine, and whether it keeps pixels. The slowest stage decides."""

    name: str
    stages: tuple[Stage, ...]
    engine: EngineChosen = "threads"
    keeps: bool = False

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


def footprints(
    pack: Pack, augment: Augment, rows: NDArray[np.int64], batch_nbytes: int, machine: Machine
) -> list[Footprint]:
    """The tiers of these rows of a pack. batch_nbytes: of all batches that are prepared ahead."""
    sizes = tier.decoded_sizes(pack, rows, halvings(augment, pack.sizes[rows]))
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


def routes(pack: Pack, augment: Augment, costs: Costs, machine: Machine, kept: float = 1.0) -> list[Route]:
    """Every way to the network, with what each stage lets through: on a machine without a GPU, no link and no decoder.

    kept: the share of the images whose pixels fit into the host's memory; of none there is no decoded tier.
    """
    size = augment.size
    link = "literature: PCIe 4.0, 16 lanes"
    floats = Stage("floats to the GPU", Figure(LINK / (3 * size * size * 4), link))
    encoded = Stage("encoded bytes to the GPU", Figure(LINK / (pack.nbytes / len(pack)), link))
    gpu = machine.gpu_memory is not None

    def host(name: str, cost: float) -> Stage:
        rate = Figure(
            1000 * machine.cores / cost, f"measured here: {cost:.2f} core-ms, {machine.cores} cores"
        )
        return Stage(name, rate)

    to_gpu = (floats,) if gpu else ()
    found = [Route("threads, encoded", (host("decode, warp and colour on cores", costs.encoded), *to_gpu))]
    if kept:
        name = "threads, decoded" if kept == 1 else f"threads, {kept:.0%} decoded"
        cost = kept * costs.decoded + (1 - kept) * costs.encoded
        found.append(Route(name, (host("warp and colour on cores", cost), *to_gpu), keeps=True))
    if gpu:
        stages = (Stage("the GPU's decoder", GPU_DECODER), encoded)
        found.append(Route("dali on the GPU, encoded", stages, "dali"))
    return found


def route_of(engine: EngineChosen, plan: tier.Plan, found: list[Route]) -> Route:
    """The way that images take by this engine, with what the plan keeps."""
    keeps = bool(plan.kept.any())
    return next(route for route in found if (route.engine, route.keeps) == (engine, keeps))


def core_ms(pack: Pack, augment: Augment, rows: NDArray[np.int64], name: TierName, seconds: float) -> float:
    """Core-milliseconds of this process for an image by the threads engine: one epoch to warm up, then whole epochs."""
    resources = Resources("threads", "cpu", tier=name)
    with Loader(pack, augment, rows, resources, shuffle=True) as loader:
        for _ in loader.epoch():
            pass
        spent, started, images = time.process_time(), time.perf_counter(), 0
        while not images or time.perf_counter() - started < seconds:
            images += sum(len(batch.ids) for batch in loader.epoch())
        return 1000 * (time.process_time() - spent) / images


def verdict(auto: Route, found: list[Route], training: Figure) -> str:
    """What a training would wait for on the route that `auto` takes, and a faster one where there is one, in a sentence."""
    data, stage = auto.slowest.rate.value, auto.slowest.name
    if data < training.value:
        said = (
            f"bottleneck: the data. By {auto.name}, which auto takes, {stage} lets {data:.0f} images a second through, and "
            f"the training takes {training.value:.0f} ({training.origin})"
        )
    else:
        said = (
            f"bottleneck: the training, {training.value:.0f} images a second ({training.origin}). By {auto.name}, which "
            f"auto takes, the data come {data / training.value:.1f} times as fast"
        )
    best = max(found, key=lambda route: route.slowest.rate.value)
    if best.slowest.rate.value > data:
        said += f". The fastest route is {best.name}, {best.slowest.rate.value:.0f} images a second: "
        said += f"--engine {best.engine} --tier {'auto' if best.keeps else 'encoded'}"
    return said


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
    network: str = "efficientnet_b2"
    """What is trained; of another one than the recipes' say how fast it is: --training."""
    size: int = 256
    """Pixels a side that it sees."""
    batch_size: int = 32
    """Images a step."""
    seconds: float = 2.0
    """How long each of the two measurements takes."""
    json: bool = False
    """Print JSON, and nothing else."""

    def __post_init__(self) -> None:
        """Refuse numbers that no machine could have."""
        for name in ("cores", "training", "size", "batch_size"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected more than 0")
        if not 0 < self.seconds < 1e6:
            raise ValueError(f"seconds is {self.seconds}; expected more than 0")
        for name in ("gpu_memory", "memory"):
            if getattr(self, name):
                parse_bytes(getattr(self, name), name)
        if self.training is None and self.network not in TRAININGS:
            raise ValueError(
                f"how fast {self.network} trains is not known here; give its images a second: --training, or name "
                f"one of {', '.join(TRAININGS)}: --network"
            )

    @property
    def rate(self) -> Figure:
        """Images a second that the training takes; of another size in proportion to its pixels."""
        if self.training is not None:
            return Figure(self.training, "given")
        value, side = TRAININGS[self.network]
        origin = (
            f"literature: {self.network}, {side} px, AMP, channels_last, RTX 3090; timm's benchmark results"
        )
        scaled = "" if side == self.size else f", scaled to {self.size} px by the pixels"
        return Figure(value * (side / self.size) ** 2, origin + scaled)


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
        job = parse(lambda: tyro.cli(Job, prog="greyhound plan"))
    except ValueError as error:  # a job that refuses its numbers
        raise ResourcesError(str(error)) from None
    pack, planned, augment = Pack(job.pack), machine(job), Augment(size=job.size)
    rows = pack.ids("train")
    rows = rows if len(rows) else np.arange(len(pack))
    sampled = rows[:: -(-len(rows) // _SAMPLED)]
    names: tuple[Literal["encoded"], Literal["decoded"]] = ("encoded", "decoded")
    costs = Costs(*(core_ms(pack, augment, sampled, name, job.seconds) for name in names))
    ahead = (Resources().prefetch + 2) * job.batch_size * 3 * job.size**2 * 4
    tiers = footprints(pack, augment, rows, ahead, planned)
    halved, budget = halvings(augment, pack.sizes[rows]), int(SHARE * planned.memory)
    fitting = tier.plan("auto", pack, rows, halved, budget, None).kept.sum() / len(rows)
    found = routes(pack, augment, costs, planned, fitting)
    engine = automatic(planned.gpu_memory is not None, bool(job.gpu_memory) or available())
    auto = tier.plan("auto", pack, rows, halved, budget, None, engine)
    lines = [f"engine: {engine}; {auto.why}", verdict(route_of(engine, auto, found), found, job.rate)]
    if job.json:
        content = {
            "machine": asdict(planned),
            "costs": asdict(costs),
            "tiers": [asdict(each) for each in tiers],
        }
        content |= {"routes": [asdict(route) for route in found], "training": asdict(job.rate)}
        print(json.dumps(content | dict(zip(("auto", "verdict"), lines, strict=True))))  # noqa: T201
    else:
        show(job, len(rows), tiers, found, lines)
    return 0


def show(job: Job, images: int, tiers: list[Footprint], found: list[Route], lines: list[str]) -> None:
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
    table = Table("route", "stage", "images a second", "from", title=f"at {job.size} px")
    for route in found:
        for stage in route.stages:
            slow = " (slowest)" if stage is route.slowest and len(route.stages) > 1 else ""
            table.add_row(route.name, stage.name + slow, f"{stage.rate.value:.0f}", stage.rate.origin)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
