"""GPU check: everything that this project promises of a GPU and could not see where it was written, in one run.

    python tests/gpu_check.py [--pack PACK]        (make gpu-check)

Before it: a machine with an NVIDIA GPU. After it: a certificate, gpu-report.md and gpu-report.json, with driver, versions
and figures; exit code 0 only if every check passed. Without a GPU it says so, exit code 2. `--device cpu` rehearses
it: the same checks on the CPU, and a certificate that says so.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does, before torch starts OpenMP

import numpy as np
import psutil
import torch
from reads import host_reads, syncs_raise, walk
from torch import nn
from watermark import overwritten

from greyhound import begin, train
from greyhound.cache.cli import run
from greyhound.cache.machine import available_cores, has_dali
from greyhound.cache.options import read_options
from greyhound.cache.store import Pack
from greyhound.model.network import set_train_mode
from greyhound.model.precision import compiled, forward
from greyhound.model.run import METRICS, Run
from greyhound.model.state import TrainState
from greyhound.model.step import smoothed_cross_entropy
from greyhound.pipelines import dali, doctor, threads
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.benchmark.measure import sample
from greyhound.pipelines.engine import Device, Resources, ResourcesError
from greyhound.pipelines.loader import Loader, torch_device
from greyhound.recipe import FINE, Recipe, TrainOptions
from greyhound.session import open_state

ROOT: Final = Path(__file__).parents[1]
APART: Final = 1.0
"""Mean levels of 255 by which the two devices may differ on the same draws."""
GROWTH: Final = 64 * 2**20
"""Bytes that memory may grow by between an early epoch and the last."""
STILL: Final = Augment(size=128).centre()
CHANGES: Final = {
    "decode": STILL,
    "warp": replace(STILL, rotation=15.0, shear=10.0, placement="random", scale=(0.8, 1.2)),
    "colour": replace(STILL, brightness=0.25, contrast=0.25, saturation=0.25, hue=0.1),
    "downsample": replace(STILL, size=32),
}
"""An augmentation for each operator, which changes nothing else."""
MEASURED: Final = 2048
"""Images whose pixels the decoded tier keeps while it is measured: half a gigabyte, however large the pack is."""
BATCH: Final = 64
LINKED: Final = 2**28
"""Bytes that are copied to the GPU at once, to see how fast its link is."""


@dataclass(frozen=True)
class Setup:
    """What is checked, and how long. job: the training. folder: takes what the checks write."""

    pack: Pack
    device: Device
    folder: Path
    job: TrainOptions
    images: int = 64
    """Of the pack, where a check goes over images again and again."""
    batches: int = 10_000
    epochs: int = 50
    seconds: float = 5.0


@dataclass(frozen=True)
class Outcome:
    """What a check came to. figures: its numbers, each named with its unit."""

    passed: bool
    found: str
    figures: dict[str, float] = field(default_factory=dict)


def driver(setup: Setup) -> Outcome:
    """The driver says its version, without which a certificate is of no use."""
    facts = doctor.learn()
    if setup.device == "cpu":
        return Outcome(True, "none is needed")
    return Outcome(facts.driver is not None, facts.driver or "not known")


def decoder(setup: Setup) -> Outcome:
    """Pictures of the pack, decoded whole, have the mean luma that they were packed with."""
    rows = doctor.spread(setup.pack, doctor.SAMPLES)
    worst = float(np.abs(doctor.luma_errors(setup.pack, rows, dali.stream, setup.device)).max())
    found = f"{len(rows)} pictures, at most {worst:.2f} levels off what was packed"
    return Outcome(worst <= doctor.TOLERANCE, found, {"levels": worst})


def operators(setup: Setup) -> Outcome:
    """Operator by operator: DALI on the device against libjpeg-turbo and OpenCV, on the same draws."""
    return _parity({name: levels_apart(setup, augment) for name, augment in CHANGES.items()})


def batches(setup: Setup) -> Outcome:
    """Whole batches of every role, as training and evaluation ask for them."""
    recipe = Augment()
    roles = {"training": recipe, "four views": recipe, "evaluation": recipe.centre(), "crops": recipe.crops()}
    views = {"four views": 4, "crops": 4}
    return _parity(
        {name: levels_apart(setup, augment, views.get(name, 1)) for name, augment in roles.items()}
    )


def _parity(apart: dict[str, float]) -> Outcome:
    worst = max(apart, key=lambda name: apart[name])
    passed = all(levels <= APART for levels in apart.values())
    return Outcome(passed, f"at most {apart[worst]:.3f} levels apart on average ({worst})", apart)


def levels_apart(setup: Setup, augment: Augment, views: int = 1) -> float:
    """Mean levels of 255 between DALI on the device and the threads engine, over the second epoch of some rows."""
    rows, sides = doctor.spread(setup.pack, setup.images), []
    options: dict[str, Any] = {"batch_size": 16, "views": views, "epochs": 2, "shuffle": True}
    for resources in (Resources("dali", setup.device), Resources("threads", "cpu")):
        with Loader(setup.pack, augment, rows, resources, **options) as loader:
            sides.append(torch.cat([batch.images.cpu() for batch in loader]))
    return float(255 * (sides[0] - sides[1]).abs().mean())


def hand_over(setup: Setup) -> Outcome:
    """Watermarked batches: none is overwritten while it is held; on a GPU one that is gets found."""
    wrong, found = 0, True
    for engine in (dali.stream, threads.stream):
        wrong += overwritten(setup.pack, engine, setup.device, setup.batches)
        if setup.device == "gpu":
            found &= overwritten(setup.pack, engine, "gpu", setup.batches // 10, careless=True) > 0
    said = f"{setup.batches} batches by each engine, {wrong} values overwritten"
    said += "" if found else "; but a careless consumer is not found"
    return Outcome(wrong == 0 and found, said, {"values": wrong})


def memory(setup: Setup) -> Outcome:
    """Memory at the end of many epochs is what it was after the first tenth of them."""
    rows, taken = doctor.spread(setup.pack, setup.images), []
    resources, epochs = Resources("dali", setup.device), setup.epochs
    with Loader(setup.pack, Augment(), rows, resources, shuffle=True, epochs=epochs) as loader:
        for _ in range(epochs):
            deque(loader.epoch(), maxlen=0)
            taken.append(memory_in_use(setup.device))
    early, last = taken[epochs // 10], taken[-1]
    grown = {f"{place}, MiB": (last[place] - early[place]) / 2**20 for place in last}
    found = ", ".join(f"{place} {mib:+.1f}" for place, mib in grown.items())
    passed = max(grown.values()) <= GROWTH / 2**20
    return Outcome(passed, f"{found} from epoch {epochs // 10} to {epochs - 1}", grown)


def memory_in_use(device: Device) -> dict[str, int]:
    """Bytes: of this process, and of the GPU, by whoever."""
    found = {"host": int(psutil.Process().memory_info().rss)}
    if device == "gpu":
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        found["GPU"] = total - free
    return found


def waiting(setup: Setup) -> Outcome:
    """The step loop reads nothing from the device: torch raises where it would wait, or counts where it reads."""
    try:
        found = walk(setup.pack, setup.device, syncs_raise if setup.device == "gpu" else host_reads)
    except RuntimeError as error:  # what the debug mode raises
        return Outcome(False, " ".join(str(error).split())[:200])
    return Outcome(not found, f"{len(found)} reads in the step loop")


def throughput(setup: Setup) -> Outcome:
    """Images a second of every tier on the device, its copies included, and of what no loader can pass: the ceilings."""
    rates = {}
    for engine, tier in itertools.product(("threads", "dali"), ("encoded", "decoded")):
        resources = Resources(engine, setup.device, image_cache=tier)  # type: ignore[arg-type]
        rates[f"{engine}, {tier}"] = loader_rate(setup, resources)
    turbo = sample("decode-only", setup.pack.path, setup.seconds)
    rates["ceiling: libjpeg-turbo on all cores"] = turbo.images_per_second
    rates["ceiling: DALI's decoder alone"] = decoder_rate(setup)
    if setup.device == "gpu":
        size = 4 * 3 * setup.job.recipe.augment.size**2
        rates["ceiling: floats over the link"] = link_rate() / size
    return Outcome(min(rates.values()) > 0, "images a second, below", rates)


def per_second(setup: Setup, steps: Iterator[int]) -> float:
    """Images a second of a stream that says how many each of its steps had; what the GPU has not done does not count."""
    for _ in range(3):
        next(steps)
    settle(setup.device)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < setup.seconds:
        images += next(steps)
    settle(setup.device)
    return images / (time.perf_counter() - started)


def settle(device: Device) -> None:
    """Wait for the GPU."""
    if device == "gpu":
        torch.cuda.synchronize()


def loader_rate(setup: Setup, resources: Resources) -> float:
    """Of training batches on the device, once a tier that keeps pixels has them."""
    rows, augment = doctor.spread(setup.pack, MEASURED), setup.job.recipe.augment
    with Loader(setup.pack, augment, rows, resources, batch_size=BATCH, shuffle=True) as loader:
        deque(loader.epoch(), maxlen=0)
        return per_second(setup, (len(batch.ids) for batch in loader))


def decoder_rate(setup: Setup) -> float:
    """Of DALI's decoder without anything behind it, by the parameters that the graph gives it."""
    from nvidia.dali import fn, pipeline_def

    order = itertools.cycle(doctor.spread(setup.pack, MEASURED).tolist())
    place = torch.cuda.current_device() if setup.device == "gpu" else None

    @pipeline_def(batch_size=BATCH, num_threads=available_cores(), device_id=place, exec_dynamic=True)  # type: ignore[untyped-decorator]
    def decoding() -> Any:
        encoded = fn.external_source(
            lambda: [setup.pack.encoded(next(order)) for _ in range(BATCH)], batch=True
        )
        return dali.decode(setup.device == "gpu", encoded)

    pipeline = decoding()
    return per_second(setup, (BATCH for _ in iter(pipeline.run, None)))


def link_rate() -> float:
    """Bytes a second from pinned memory to the GPU."""
    source = torch.empty(LINKED, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(source, device="cuda")
    seconds = []
    for _ in range(5):
        settle("gpu")
        started = time.perf_counter()
        there.copy_(source, non_blocking=True)
        settle("gpu")
        seconds.append(time.perf_counter() - started)
    return LINKED / min(seconds)


def step(setup: Setup) -> Outcome:
    """Images a second of the step alone, from one batch again and again; on a GPU also in CUDA graphs, which must work."""
    where, recipe = torch_device(setup.device), begin.resolve(setup.job.recipe, torch_device(setup.device))
    rates, faults = {}, []
    for name in ("as it is", "compiled")[: 2 if setup.device == "gpu" else 1]:
        state = open_state(recipe, len(setup.pack.classes), where, 0.0, pretrained=False)
        set_train_mode(state.network, recipe.freeze_bn)
        called: nn.Module = state.network
        if name == "compiled":
            called, fault = compiled(state.network, [recipe.batch_size], recipe.augment.size, recipe.bf16)
            faults += [fault] if fault else []
        rates[name] = per_second(setup, steps(recipe, state, called, len(setup.pack.classes)))
    return Outcome(not faults, faults[0] if faults else f"images a second of {recipe.network}, below", rates)


def steps(recipe: Recipe, state: TrainState, called: nn.Module, classes: int) -> Iterator[int]:
    """Steps at a rate that changes nothing, each with its images."""
    count, size, where = recipe.batch_size, recipe.augment.size, state.device
    images = torch.rand(count, 3, size, size, device=where).to(memory_format=torch.channels_last)
    labels = torch.arange(count, device=where) % classes
    loss = smoothed_cross_entropy(recipe.label_smoothing, classes)
    while True:
        state.optimizer.zero_grad(set_to_none=True)
        loss(forward(called, images, recipe.bf16), labels).backward()
        state.optimizer.step()
        yield count


def training(setup: Setup) -> Outcome:
    """One whole run, better than chance."""
    started = time.perf_counter()
    train.train(setup.job, lambda: None)
    row = Run(setup.job.out).rows(METRICS)[-1]
    seconds, chance = time.perf_counter() - started, 1 / len(setup.pack.classes)
    passed = math.isfinite(row["valid_loss"]) and row["accuracy"] > chance
    found = f"validation accuracy {row['accuracy']:.3f} of n = {row['n']} after {seconds:.0f} s, the last epoch's network"
    return Outcome(passed, found, {"accuracy": row["accuracy"], "seconds": seconds})


def tests(_: Setup) -> Outcome:
    """The tests that are marked for the GPU; a skipped one has failed."""
    arguments = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    environment = os.environ | {"REQUIRE_GPU": "1"}
    answer = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return Outcome(answer.returncode == 0, (answer.stdout.strip().splitlines() or ["nothing"])[-1])


Check = Callable[[Setup], Outcome]
ALL = (driver, decoder, operators, batches, hand_over, memory, waiting, throughput, step, training, tests)
CHECKS: Final[dict[str, Check]] = {check.__name__: check for check in ALL}


def examine(setup: Setup, checks: dict[str, Check] = CHECKS) -> dict[str, Outcome]:
    """Every check in turn, each said as it ends; one that raises has failed, and the others still run."""
    outcomes = {}
    for name, check in checks.items():
        try:
            with redirect_stdout(sys.stderr):
                outcomes[name] = check(setup)
        except Exception as error:  # whatever a device comes up with belongs into the certificate
            outcomes[name] = Outcome(False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        verdict = "passed" if outcomes[name].passed else "FAILED"
        print(f"{verdict}: {name}: {outcomes[name].found}", flush=True)
    return outcomes


def certify(setup: Setup, outcomes: dict[str, Outcome], folder: Path) -> bool:
    """Write gpu-report.json and gpu-report.md; whether all passed."""
    passed = all(outcome.passed for outcome in outcomes.values())
    content: dict[str, Any] = {
        "device": setup.device,
        "passed": passed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": f"{setup.pack.path.name}: {len(setup.pack)} images, {setup.pack.nbytes / len(setup.pack) / 1000:.0f} kB each",
        "facts": asdict(doctor.learn()),
        "checks": {name: asdict(outcome) for name, outcome in outcomes.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu-report.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "gpu-report.md").write_text("\n".join(as_markdown(content)) + "\n")
    return passed


def as_markdown(content: dict[str, Any]) -> list[str]:
    """The certificate for a reader, line by line."""
    facts, rehearsed = content["facts"], content["device"] == "cpu"
    gpus = ", ".join(facts["gpus"]) or "none"
    title = "# GPU check" + (
        ", rehearsed on the CPU: nothing here was measured on a GPU" if rehearsed else ""
    )
    verdict = "All checks passed" if content["passed"] else "NOT all checks passed"
    driver = facts["driver"] or "not known"
    summary = (
        f"{verdict}, {content['date']}. {facts['machine']}; GPU: {gpus}; driver {driver}. {content['data']}."
    )
    versions = "; ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [title, "", summary, "", f"{versions}.", "", "| check | | found |", "|---|---|---|"]
    figures = ["", "| check | figure | |", "|---|---|---|"]
    for name, outcome in content["checks"].items():
        lines.append(f"| {name} | {'passed' if outcome['passed'] else '**failed**'} | {outcome['found']} |")
        figures += [f"| {name} | {figure} | {value:.4g} |" for figure, value in outcome["figures"].items()]
    return lines + figures


@dataclass(frozen=True)
class Job:
    """What to check."""

    pack: Path | None = None
    """A pack of photographs; without it 720 drawn dogs, whose throughput says little."""
    out: Path = Path()
    """Where gpu-report.md and gpu-report.json go."""
    device: Device = "gpu"
    """cpu: rehearse where there is no GPU."""


def main() -> int:
    """Check the device, and certify what came of it."""
    job = read_options(Job, sys.argv[1:], "python tests/gpu_check.py")
    if job.device == "gpu" and not torch.cuda.is_available():
        raise ResourcesError(
            "gpu-check: torch finds no CUDA GPU here, so nothing was checked; greyhound doctor says what there "
            "is, and --device cpu rehearses"
        )
    if not has_dali():
        raise ResourcesError("gpu-check: DALI is not installed; pip install nvidia-dali-cuda120")
    with tempfile.TemporaryDirectory(prefix="greyhound-gpu-") as temporary:
        folder = Path(temporary)
        pack = Pack(job.pack or draw(folder))
        resources = Resources(device=job.device)
        fast = TrainOptions(pack=pack.path, out=folder / "run", recipe=FINE, resources=resources)
        setup = Setup(pack, job.device, folder, fast)
        passed = certify(setup, examine(setup), job.out)
    print(f"certificate: {job.out / 'gpu-report.md'}")
    return 0 if passed else 1


def draw(folder: Path) -> Path:
    """A pack of drawn dogs."""
    images, pack = folder / "images", folder / "dogs.arrow"
    for arguments in (["demo", str(images)], ["pack", str(images), "--out", str(pack)]):
        subprocess.run([sys.executable, "-m", "cache", *arguments], cwd=ROOT, check=True)
    return pack


if __name__ == "__main__":
    run(main)
