"""Benchmark: the same augmentation by every engine, every tier and the loaders that people use instead, in one run.

    python -m pipelines.benchmark --images FOLDER --json out.json --chart out.png
    python -m pipelines.benchmark --compare old.json new.json

Before it: a folder of photographs, or a pack. After it: a table, a chart, and as the last line the JSON. Before anything
is timed, rows that claim equal pixels are compared. Every sample runs in a process of its own, rows take turns, and
figures are medians: a machine that others use too is only fair to rows that are measured beside each other. The unit
to trust is core-milliseconds an image: user and system time of the row's process and all its workers.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from cache.command import parse, run
from cache.machine import available_cores, describe_machine
from cache.pack import Options, find_unlabelled, write
from cache.store import Pack, PackError
from cache.survey import SurveyError
from cache.values import ValueFormatError, from_json
from pipelines import peers, threads
from pipelines.augment import halvings
from pipelines.loader import EngineName, Loader, Resources
from pipelines.request import Device, ResourcesError, StreamError
from pipelines.tier import Tier, TierName

BATCH_SIZE: Final = 64
VIEWS: Final = 10
AGREEMENT: Final = 1.0
"""Mean levels of 255 by which rows that claim equal pixels may differ."""
PACKAGES: Final = (
    "torch",
    "torchvision",
    "nvidia-dali-cuda120",
    "opencv-python-headless",
    "simplejpeg",
    "pillow",
    "albumentations",
)
"""Whose versions a figure depends on."""
_WARM_UP: Final = 3
"""Batches before the clock starts: pools, plugins and prefetching are in place then."""

Pass = Callable[[Pack, int], Iterator[int]]
"""Works through a pack without end, on so many threads or workers; yields how many images each batch had."""


class BenchmarkError(ValueError):
    """Nothing can be measured as asked; the message is one line for the user."""


@dataclass(frozen=True)
class Row:
    """One thing to measure. needs: an importable module. package: what pip calls it. note: what it does not do."""

    run: Pass
    needs: str = ""
    package: str = ""
    note: str = ""
    device: Device = "cpu"


@dataclass(frozen=True)
class Sample:
    """One measurement of one row."""

    images_per_second: float
    core_ms_per_image: float
    peak_mib: float


@dataclass(frozen=True)
class Result:
    """A row's medians over its samples. spread: lowest and highest core-milliseconds an image."""

    name: str
    images_per_second: float
    core_ms_per_image: float
    peak_mib: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class Account:
    """Where the core time of the threads engine goes: core-milliseconds an image, each part measured by itself.

    hand_over: drawing, ordering and lending batches, in the main thread. waiting: share of their time, 0..1, that the
    loader's threads had nothing to do. total: of the process, by the kernel.
    """

    decode: float
    warp: float
    colour: float
    hand_over: float
    total: float
    waiting: float

    @property
    def parts(self) -> float:
        """The sum of the parts."""
        return self.decode + self.warp + self.colour + self.hand_over


def decode_only(pack: Pack, workers: int) -> Iterator[int]:
    """The floor: libjpeg-turbo alone, as the engine calls it, on as many threads."""
    tier = Tier(pack, np.zeros(len(pack), dtype=bool), halvings(peers.AUGMENT, pack.sizes))
    yield from _on_threads(workers, lambda row: tier.pixels(row % len(pack)))


def copy_only(pack: Pack, workers: int) -> Iterator[int]:
    """The other floor: a batch of floats is written to memory, whatever is in it."""
    source = np.zeros((peers.AUGMENT.size, peers.AUGMENT.size, 3), dtype=np.float32)
    batch = np.empty((BATCH_SIZE, *source.shape), dtype=np.float32)
    yield from _on_threads(workers, lambda row: np.copyto(batch[row % BATCH_SIZE], source))


def _on_threads(workers: int, work: Callable[[int], Any]) -> Iterator[int]:
    """Batches of calls `work(0)`, `work(1)`, ... on a pool whose threads take them off a common counter."""

    def some(rows: Iterator[int]) -> None:
        for row in rows:
            work(row)

    with ThreadPoolExecutor(workers) as pool:
        start = 0
        while True:
            rows = iter(range(start, start + BATCH_SIZE))
            for task in [pool.submit(some, rows) for _ in range(workers)]:
                task.result()
            start += BATCH_SIZE
            yield BATCH_SIZE


def engine(name: EngineName, tier: TierName, views: int = 1, device: Device = "cpu") -> Pass:
    """One of ours; with more than one view each view counts."""

    def work(pack: Pack, workers: int) -> Iterator[int]:
        with open_loader(pack, Resources(name, device, workers, tier=tier), views) as loader:
            if tier == "decoded":
                for _ in loader.epoch():  # which decodes every image, once
                    pass
            for batch in loader:
                yield len(batch.ids) * views

    return work


def open_loader(pack: Pack, resources: Resources, views: int = 1) -> Loader:
    """Training batches of every image of the pack."""
    ids = np.arange(len(pack))
    size = max(1, BATCH_SIZE // views)
    return Loader(pack, peers.AUGMENT, ids, resources, batch_size=size, shuffle=True, views=views)


def train_step(with_loader: bool) -> Pass:
    """The paper's network, EfficientNet-B2, forward and backward with SGD in float32, from batches of 8 images.

    Without the loader: one batch again and again, the ceiling of what any loader could reach.
    """

    def work(pack: Pack, workers: int) -> Iterator[int]:
        from torchvision.models import efficientnet_b2

        network = efficientnet_b2(num_classes=25).to(memory_format=torch.channels_last)
        optimiser = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        labels = torch.zeros(8, dtype=torch.int64)
        ids = np.arange(len(pack))
        with Loader(
            pack, peers.AUGMENT, ids, Resources("threads", "cpu", workers), batch_size=8, shuffle=True
        ) as loader:
            stream = iter(loader)
            images = next(stream).images
            while True:
                loss = torch.nn.functional.cross_entropy(network(images), labels[: len(images)])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                yield len(images)
                if with_loader:
                    images = next(stream).images

    return work


def in_workers(finish: Callable[[], Callable[[Any], torch.Tensor]]) -> Pass:
    """A peer in torch's worker processes."""
    return lambda pack, workers: peers.in_workers(pack, finish(), BATCH_SIZE, workers)


_DALI: Final[tuple[str, str]] = ("nvidia.dali", "nvidia-dali-cuda120")
ROWS: Final[dict[str, Row]] = {
    "copy-only": Row(copy_only, note="ceiling: memory alone"),
    "decode-only": Row(decode_only, note="ceiling: libjpeg-turbo alone"),
    "threads-encoded": Row(engine("threads", "encoded")),
    "threads-decoded": Row(engine("threads", "decoded"), note="originals decoded before"),
    "threads-ten-views": Row(engine("threads", "encoded", VIEWS), note="each view counts"),
    "dali-cpu-encoded": Row(engine("dali", "encoded"), *_DALI),
    "dali-cpu-decoded": Row(engine("dali", "decoded"), *_DALI, "originals decoded before"),
    "dali-cpu-ten-views": Row(engine("dali", "encoded", VIEWS), *_DALI, "each view counts"),
    "dali-gpu-encoded": Row(engine("dali", "encoded", device="gpu"), *_DALI, device="gpu"),
    "dali-gpu-decoded": Row(engine("dali", "decoded", device="gpu"), *_DALI, device="gpu"),
    "albumentations": Row(
        in_workers(peers.albumentations), "albumentations", "albumentations", "colour and geometry one by one"
    ),
    "torchvision-pil": Row(
        in_workers(peers.torchvision_pil), "torchvision", "torchvision", "the seed's own way"
    ),
    "dali-naive": Row(
        lambda pack, workers: peers.dali_naive(pack, BATCH_SIZE, workers), *_DALI, "no scale below 1"
    ),
    "model-only": Row(train_step(with_loader=False), note="EfficientNet-B2, float32, batch 8"),
    "train-step": Row(train_step(with_loader=True), note="the same with its loader"),
}
UNTRIED: Final = {
    "ffcv": "it builds from source and does not build here (Python 3.11, OpenCV 5), so nothing was written for it"
}


@dataclass(frozen=True)
class Job:
    """What to measure."""

    images: Path | None = None
    """A folder of photographs."""
    pack: Path | None = None
    """Or a pack."""
    seconds: float = 5.0
    """How long each sample runs."""
    repeats: int = 3
    """Samples of each row."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Which rows."""
    json: Path | None = None
    """Write the JSON here too."""
    chart: Path | None = None
    """Draw the core-milliseconds here, a PNG."""
    compare: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="OLD NEW")] = None
    """Measure nothing: say what became slower between two JSON files."""
    table: Path | None = None
    """Measure nothing: print a JSON file as the README's table."""

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        unknown = [name for name in self.rows if name not in ROWS]
        if unknown:
            hint = UNTRIED.get(unknown[0], f"expected some of {', '.join(ROWS)}")
            raise ValueError(f"there is no row {unknown[0]!r}; {hint}")
        if not 0 < self.seconds < 1e6:
            raise ValueError(f"seconds is {self.seconds}; expected more than 0")
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; expected at least 1")


def main() -> int:
    """Measure, compare or tabulate, as the command line says."""
    try:
        job = parse(lambda: tyro.cli(Job, prog="python -m pipelines.benchmark"))
    except ValueError as error:  # a job that refuses its numbers
        raise BenchmarkError(str(error)) from None
    if job.compare:
        return compare(*map(read, job.compare))
    if job.table:
        print(as_markdown(read(job.table)))  # noqa: T201
        return 0
    with tempfile.TemporaryDirectory(prefix="greyhound-") as temporary:
        report(job, measure(job, open_pack(job, Path(temporary))))
    return 0


def open_pack(job: Job, temporary: Path) -> Pack:
    """The pack, or one made of the folder; resident."""
    if (job.pack is None) == (job.images is None):
        raise BenchmarkError(
            "name either --images FOLDER or --pack PACK; photographs, since drawn images decode too fast"
        )
    if job.images:
        out = temporary / "images.arrow"
        write(find_unlabelled(job.images), (), out, Options(keep_grayscale=True), split="train")
    pack = Pack(job.pack or temporary / "images.arrow")
    pack.make_resident()
    return pack


def measure(job: Job, pack: Pack) -> dict[str, Any]:
    """Check that the engines agree, then sample every row, each in turn; everything that the JSON says."""
    check_agreement(pack)
    missing = {name: why for name in job.rows if (why := lacking(ROWS[name]))}
    names = [name for name in job.rows if name not in missing]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for _ in range(job.repeats):
        for name in names:
            samples[name].append(_in_a_process(sample, name, pack.path, job.seconds))
    account = _in_a_process(take_account, pack.path, job.seconds)
    return conditions(job, pack) | {
        "rows": [asdict(summarise(name, taken)) for name, taken in samples.items()],
        "missing": missing,
        "account": asdict(account),
    }


def lacking(row: Row) -> str:
    """What this machine lacks for a row, or nothing."""
    if row.needs and find_spec(row.needs.partition(".")[0]) is None:
        return f"pip install {row.package}"
    return "needs an NVIDIA GPU" if row.device == "gpu" and not torch.cuda.is_available() else ""


def check_agreement(pack: Pack) -> None:
    """Rows that claim equal pixels must have them, or no time of theirs means anything. Raises BenchmarkError."""
    expected = first_batch(pack, "threads", "encoded")
    others: list[tuple[EngineName, TierName]] = [("threads", "decoded")]
    if not lacking(ROWS["dali-cpu-encoded"]):
        others += [("dali", "encoded"), ("dali", "decoded")]
    for name, tier in others:
        apart = float((first_batch(pack, name, tier) - expected).abs().mean() * 255)
        if apart > AGREEMENT:
            raise BenchmarkError(
                f"{name}, {tier}, differs from threads, encoded, by {apart:.3f} levels on the same draws; "
                "nothing was timed"
            )


def first_batch(pack: Pack, name: EngineName, tier: TierName) -> torch.Tensor:
    """Images of the second epoch, where a tier is in use."""
    ids = np.arange(min(len(pack), BATCH_SIZE))
    resources = Resources(name, "cpu", tier=tier)
    with Loader(pack, peers.AUGMENT, ids, resources, batch_size=len(ids), epochs=2) as loader:
        *_, last = loader
    return last.images


def _in_a_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a fresh process, so that no row inherits another's memory, threads or caches."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def sample(name: str, path: Path, seconds: float) -> Sample:
    """Run a row for so long, once it is warm."""
    pack = Pack(path)
    pack.make_resident()
    stream = ROWS[name].run(pack, available_cores())
    for _ in range(_WARM_UP):
        next(stream)
    done, started, before = 0, time.perf_counter(), core_seconds()
    while time.perf_counter() - started < seconds:
        done += next(stream)
    elapsed, spent = time.perf_counter() - started, core_seconds() - before
    found = Sample(done / elapsed, 1000 * spent / done, _resident_mib())
    stream.close()  # type: ignore[attr-defined]
    return found


def core_seconds() -> float:
    """User and system time so far of this process and of all its workers."""
    import psutil

    times = [process.cpu_times() for process in _family(psutil.Process())]
    return float(sum(spent.user + spent.system for spent in times))


def _resident_mib() -> float:
    """Memory of this process and of all its workers, what they share counted once."""
    import psutil

    return float(sum(process.memory_full_info().pss for process in _family(psutil.Process()))) / 2**20


def _family(process: Any) -> list[Any]:
    return [process, *process.children(recursive=True)]


def take_account(path: Path, seconds: float) -> Account:
    """The account of the threads engine, encoded: every step is timed where it is called, in its thread's core time."""
    pack = Pack(path)
    pack.make_resident()
    spent: dict[str, float] = {"decode": 0.0, "warp": 0.0, "colour": 0.0}
    lock = threading.Lock()

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return step(*arguments)
            finally:
                elapsed = time.thread_time() - started
                with lock:
                    spent[name] += elapsed

        return call

    steps = {"warp": (threads, "warp"), "colour": (threads, "colour"), "decode": (Tier, "pixels")}
    workers = available_cores()
    with (
        _replaced({place: timed(name, getattr(*place)) for name, place in steps.items()}),
        open_loader(pack, Resources("threads", "cpu", workers, tier="encoded")) as loader,
    ):
        stream = iter(loader)
        for _ in range(_WARM_UP):
            next(stream)
        spent.update(dict.fromkeys(spent, 0.0))
        done, started, before, main = 0, time.perf_counter(), time.process_time(), time.thread_time()
        while time.perf_counter() - started < seconds:
            done += len(next(stream).ids)
        elapsed, total, main = (
            time.perf_counter() - started,
            time.process_time() - before,
            time.thread_time() - main,
        )
    per_image = {name: 1000 * value / done for name, value in spent.items()}
    busy = sum(spent.values()) / (elapsed * workers)
    return Account(
        **per_image, hand_over=1000 * main / done, total=1000 * total / done, waiting=max(0.0, 1 - busy)
    )


@contextmanager
def _replaced(steps: dict[tuple[Any, str], Callable[..., Any]]) -> Iterator[None]:
    """Functions of a module or class exchanged for as long as the block runs."""
    before = {place: getattr(*place) for place in steps}
    try:
        for (owner, name), step in steps.items():
            setattr(owner, name, step)
        yield
    finally:
        for (owner, name), step in before.items():
            setattr(owner, name, step)


def summarise(name: str, samples: list[Sample]) -> Result:
    """Medians, and the spread of what is to be trusted."""
    costs = [taken.core_ms_per_image for taken in samples]
    return Result(
        name,
        statistics.median(taken.images_per_second for taken in samples),
        statistics.median(costs),
        statistics.median(taken.peak_mib for taken in samples),
        (min(costs), max(costs)),
    )


def conditions(job: Job, pack: Pack) -> dict[str, Any]:
    """What a figure depends on."""
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "machine": describe_machine(),
        "versions": versions,
        "date": datetime.now(UTC).date().isoformat(),
        "data": f"{len(pack)} images of {(job.images or pack.path).name}, {pack.nbytes / len(pack) / 1000:.0f} kB each",
        "seconds": job.seconds,
        "repeats": job.repeats,
    }


def report(job: Job, result: dict[str, Any]) -> None:
    """The table, the account, the chart; and the JSON as the last line."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    floor = _costs(result).get("decode-only")
    table = Table(caption="ratio: core-milliseconds to decode-only's")
    for column in ("row", "img/s", "core-ms/img", "range", "ratio", "MiB", ""):
        table.add_column(column, justify="left" if column in ("row", "") else "right")
    for row in result["rows"]:
        low, high = row["spread"]
        table.add_row(
            row["name"],
            f"{row['images_per_second']:.0f}",
            f"{row['core_ms_per_image']:.2f}",
            f"{low:.2f}..{high:.2f}",
            f"{row['core_ms_per_image'] / floor:.2f}" if floor else "-",
            f"{row['peak_mib']:.0f}",
            ROWS[row["name"]].note,
        )
    for name, why in result["missing"].items():
        table.add_row(name, "-", "-", "-", "-", "-", why)
    console.print(table)
    account = Account(**result["account"])
    console.print(
        f"threads, encoded, core-ms an image: decode {account.decode:.2f} + warp {account.warp:.2f} + colour "
        f"{account.colour:.2f} + hand-over {account.hand_over:.2f} = {account.parts:.2f} of {account.total:.2f}; "
        f"its threads waited {account.waiting:.1%} of the time",
        highlight=False,
        soft_wrap=True,
    )
    text = json.dumps(result)
    if job.chart:
        draw(job.chart, result)
    if job.json:
        _write(job.json, text + "\n")
    console.file.write(text + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be written ({error.strerror}); name another file") from None


def _costs(result: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: row["core_ms_per_image"] for row in result["rows"]}


def draw(path: Path, result: dict[str, Any]) -> None:
    """Core-milliseconds an image of every loader as bars with their spread, the cheapest on top; ours in blue."""
    from matplotlib.figure import Figure

    models = ("model-only", "train-step")
    rows = sorted(
        (row for row in result["rows"] if row["name"] not in models), key=lambda row: row["core_ms_per_image"]
    )
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    ceilings, ours = ("copy-only", "decode-only"), ("threads", "dali-cpu", "dali-gpu")
    for place, row in enumerate(rows):
        own = row["name"].startswith(ours)
        colour = "#1c5d7a" if own else "#b9b3a6" if row["name"] in ceilings else "#a5421c"
        cost, (low, high) = row["core_ms_per_image"], row["spread"]
        axes.barh(place, cost, color=colour, height=0.62)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2)
        axes.text(max(cost, high), place, f"  {cost:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "core-milliseconds an image; less is better. The line spans the lowest and highest sample"
    )
    axes.set_title(f"{result['data']}; {result['machine']}; {result['date']}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be drawn ({error}); name a PNG file") from None


@dataclass(frozen=True)
class Measured:
    """As much of a JSON file of ours as comparing needs."""

    machine: str
    date: str
    data: str
    rows: list[dict[str, Any]]


def read(path: Path) -> dict[str, Any]:
    """A JSON file that a measurement wrote. Raises BenchmarkError."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}); expected what --json wrote") from None
    from_json(Measured, content, str(path), partly=True)
    return dict(content)


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print how each row's cost changed; 1 if any became slower beyond both spreads, else 0."""
    console = Console()
    if old["machine"] != new["machine"] or old["data"] != new["data"]:
        console.print("the machine or the data is another: ratios say little", highlight=False)
    table = Table("row", "old", "new", "ratio", "")
    before = {row["name"]: row for row in old["rows"]}
    slower = []
    for row in new["rows"]:
        was = before.get(row["name"])
        if was is None:
            continue
        apart = row["spread"][0] > was["spread"][1]
        verdict = (
            "slower" if apart else "faster" if row["spread"][1] < was["spread"][0] else "within the noise"
        )
        slower += [row["name"]] if apart else []
        costs = (was["core_ms_per_image"], row["core_ms_per_image"])
        table.add_row(row["name"], *(f"{cost:.2f}" for cost in costs), f"{costs[1] / costs[0]:.2f}", verdict)
    console.print(table)
    return 1 if slower else 0


def as_markdown(result: dict[str, Any]) -> str:
    """The README's table: costs, and what they are of decoding alone and of torchvision."""
    costs = _costs(result)
    lines = [
        "| row | images a second | core-ms an image | lowest to highest | of decoding alone | of torchvision's |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cost, (low, high) = row["core_ms_per_image"], row["spread"]
        ratios = [
            f"{cost / costs[base]:.2f}" if base in costs else "-"
            for base in ("decode-only", "torchvision-pil")
        ]
        cells = (
            f"`{row['name']}`",
            f"{row['images_per_second']:.0f}",
            f"{cost:.2f}",
            f"{low:.2f} to {high:.2f}",
        )
        lines.append(f"| {' | '.join((*cells, *ratios))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, PackError, SurveyError, BenchmarkError, ResourcesError, StreamError, ValueFormatError)
