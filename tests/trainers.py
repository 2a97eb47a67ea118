"""Compare `fast` with other trainers from the same weights on the same splits: accuracy, core-seconds and memory.

    taskset -c 0 python tests/trainers.py OUT --packs clothing-0.arrow,clothing-1.arrow

Before it: `greyhound pack`, once for each split, and `pip install -e .[bench,weights]`. After it: OUT/rows.jsonl, a
table and OUT/trainers.png, for docs/benchmarks.md. Rows that this machine has measured are not measured again. Every
training is a process of its own, one after the other. On one core: threads that wait for each other burn as much again.
Core-seconds are of the whole training, with imports and validation and without the test. Memory is the most that the
training's process held. The test is the centre window of every test image, once; and, of ours, ten crops of each too.

The other trainers are given what costs them least on one core: tensors in channels_last (a step of timm's took 130
core-ms an image, and 236 without: torch 2.14.1, one core of an Intel Xeon, family 6, model 207, 2026-11-30, 4 steps of
32), and no worker processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from greyhound.cache.cli import note, run
from greyhound.cache.errors import UserError
from greyhound.cache.machine import describe_machine, installed
from greyhound.cache.options import read_call
from greyhound.cache.store import Pack
from greyhound.cache.unpack import unpack
from greyhound.recipe import FAST

SIZE: Final = 224
"""Of fastai's and timm's inputs, pixels: the usual one. Ours is the recipe's."""
BATCH: Final = 32
METHODS: Final = ("fast", "fine", "fastai-1", "fastai-3", "timm-1", "timm-3")
"""Ours; fastai's `fine_tune(1)` and `(3)` at its defaults; AdamW with a cosine over 1 and 3 epochs, as timm's train.py."""
EARLIER: Final = ("fast 91d14f8", "fast e4a6b3b")
"""`fast` as it was at these commits, by their own commands: rows that were measured by hand."""
NAMES: Final = (METHODS[0], *EARLIER, *METHODS[1:])
CHILD, WEIGHTS = "--child", "--weights"
"""What a process of its own is asked for: a training; the weights' file. This one must stay small: Linux counts what a
process held before it became the command."""
TIMM_RATE: Final = 3e-4
"""The learning rate of AdamW: a usual one for fine-tuning, not chosen on these sets."""


@dataclass(frozen=True)
class Row:
    """One training. core_seconds, memory (bytes): of it, not of its test. accuracy, cross_entropy (nats): on n test images.

    machine: see `this_machine`; costs are compared on one. ten_accuracy, ten_cross_entropy: by the mean of ten
    crops, of ours.
    """

    pack: str
    method: str
    accuracy: float
    cross_entropy: float
    n: int
    core_seconds: float
    memory: int
    machine: str
    ten_accuracy: float | None = None
    ten_cross_entropy: float | None = None


def save_weights(path: str) -> int:
    """Write the weights that Greyhound starts from, with the names of timm. The exit code."""
    import torch

    from greyhound.model.network import build

    torch.save(build(FAST.network, 1000).state_dict(), path)
    return 0


def train_fastai(images: Path, weights: Path, epochs: int, seed: int) -> Callable[[], tuple[Any, Any]]:
    """`vision_learner(...).fine_tune(epochs)`. Returns what predicts the test images: log-probabilities, labels."""
    import torch
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner

    set_seed(seed)
    data = ImageDataLoaders.from_folder(
        images,
        train="train",
        valid="val",
        item_tfms=Resize(SIZE),
        batch_tfms=aug_transforms(),
        seed=seed,
        num_workers=0,
    )
    learner = vision_learner(data, FAST.network, pretrained_cfg_overlay={"file": str(weights)})
    learner.model.to(memory_format=torch.channels_last)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)

    def predict() -> tuple[Any, Any]:
        files = sorted((images / "test").glob("*/*"))
        with learner.no_bar():
            probabilities, _ = learner.get_preds(dl=data.test_dl(files))
        return probabilities.log(), [list(data.vocab).index(file.parent.name) for file in files]

    return predict


def train_timm(images: Path, weights: Path, epochs: int, seed: int) -> Callable[[], tuple[Any, Any]]:
    """All of the network by AdamW and a cosine, with timm's default augmentation. As `train_fastai`."""
    import timm
    import torch
    from timm.data import create_transform
    from torch.nn import functional
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    torch.manual_seed(seed)
    network = timm.create_model(
        FAST.network, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": str(weights)}
    )
    numbers = {key: network.pretrained_cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")}

    def load(split: str, training: bool) -> DataLoader[Any]:
        files = ImageFolder(images / split, create_transform(SIZE, is_training=training, **numbers))
        return DataLoader(files, BATCH, shuffle=training, num_workers=0, drop_last=training)

    loader = load("train", training=True)
    network.reset_classifier(len([*(images / "train").iterdir()]))
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=TIMM_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    network.train()
    for _ in range(epochs):
        for pictures, labels in loader:
            optimizer.zero_grad()
            pictures = pictures.to(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(pictures), labels, label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def predict() -> tuple[Any, Any]:
        network.eval()
        parts = [
            (network(pictures).log_softmax(1), labels) for pictures, labels in load("test", training=False)
        ]
        logs, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return logs, labels

    return predict


def measured(command: Sequence[str]) -> tuple[str, float, int]:
    """What the command printed, its core-seconds, and the peak memory of its largest process, in bytes.

    Raises UserError if it fails.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0), errors.seek(0)
        said, wrong = output.read(), errors.read()
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {wrong.strip()[-400:]}")
    return said, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def ours(pack: Path, method: str, seed: int, folder: Path) -> Row:
    """Train by the command line, and evaluate by it. Raises UserError."""
    made, greyhound = folder / "run", [sys.executable, "-m", "greyhound"]
    train = [*greyhound, "train", method, "--pack", str(pack), "--out", str(made), "--seed", str(seed)]
    _, seconds, memory = measured(train)
    found = []
    for crops in ("1", "10"):
        measured([*greyhound, "eval", "--run", str(made), "--crops", crops])
        found.append(json.loads((made / "eval.json").read_text(encoding="utf-8")))
    centre, ten = ((each["ensemble_accuracy"], each["cross_entropy"]) for each in found)
    return Row(pack.stem, method, *centre, found[0]["n"], seconds, memory, this_machine(), *ten)


def theirs(pack: Path, method: str, seed: int, folder: Path) -> Row:
    """Unpack for them, then train and test in a process of its own. Raises UserError."""
    unpack(Pack(pack), folder)
    own, weights = [sys.executable, __file__], str(folder / "weights.pth")
    measured([*own, WEIGHTS, weights])
    said, _, memory = measured([*own, CHILD, method, str(folder), weights, str(seed)])
    found = json.loads(said.splitlines()[-1])
    return Row(pack.stem, method, memory=memory, machine=this_machine(), **found)


def child(method: str, images: str, weights: str, seed: str) -> int:
    """Train, and print what the test images give, as JSON. The exit code."""
    name, epochs = method.split("-")
    train = {"fastai": train_fastai, "timm": train_timm}[name]
    predict = train(Path(images), Path(weights), int(epochs), int(seed))
    seconds = sum(os.times()[:4])
    logs, labels = (np.asarray(each) for each in predict())
    rows = np.arange(len(labels))
    print(
        json.dumps(
            {
                "accuracy": float((logs.argmax(1) == labels).mean()),
                "cross_entropy": -float(logs[rows, labels].astype(np.float64).mean()),
                "n": len(labels),
                "core_seconds": seconds,
            }
        )
    )
    return 0


def tabulate(rows: Sequence[Row]) -> list[str]:
    """A Markdown table: for each set and method the mean over the splits, and the range; of ten crops the means.

    The core-seconds are those of the same machine's `fast`, times so much, a column for each machine.
    """
    costs, machines = relative_costs(rows), sorted({row.machine for row in rows})
    names = ["set", "trainer", "splits", "accuracy", "cross entropy", "ten crops", *machines, "peak GB"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for (name, method), some in grouped(rows).items():
        splits = {row.pack: row for row in some}.values()  # of one that ran on two machines, the last
        accuracy = [row.accuracy for row in splits]
        spread = f"{fmean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
        entropy, tens = fmean(row.cross_entropy for row in splits), [tens_of(row) for row in splits]
        of_ten = ", ".join(f"{fmean(column):.3f}" for column in zip(*tens, strict=True)) if all(tens) else ""
        cells = [name, method, f"{len(splits)}", spread, f"{entropy:.3f}", of_ten]
        for machine in machines:
            times = [costs[row] for row in some if row.machine == machine and row in costs]
            cells.append(f"{fmean(times):.1f}" if times else "")
        cells.append(f"{max(row.memory for row in some) / 1e9:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def relative_costs(rows: Sequence[Row]) -> dict[Row, float]:
    """A row's core-seconds over the mean of `fast` on the same set and machine, for the rows that have one."""
    of_fast: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.method == METHODS[0]:
            of_fast[set_of(row), row.machine].append(row.core_seconds)
    keys = {row: (set_of(row), row.machine) for row in rows}
    return {row: row.core_seconds / fmean(of_fast[key]) for row, key in keys.items() if key in of_fast}


def set_of(row: Row) -> str:
    """A set is a pack's name up to the last hyphen."""
    return row.pack.rpartition("-")[0]


def tens_of(row: Row) -> tuple[float, ...]:
    """Accuracy and cross entropy by ten crops, where they were measured."""
    return tuple(each for each in (row.ten_accuracy, row.ten_cross_entropy) if each is not None)


def grouped(rows: Sequence[Row]) -> Mapping[tuple[str, str], list[Row]]:
    """(set, method) -> its rows, one a split and machine."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (set_of(row), NAMES.index(row.method))):
        groups[set_of(row), row.method].append(row)
    return groups


def draw(rows: Sequence[Row], file: Path) -> None:
    """Accuracy over core-seconds, those of `fast` as one, a panel for each set: every split, and means by machine.

    Without rows of `fast` there is nothing to draw, and no file.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    costs = relative_costs(rows)
    if not costs:
        return
    groups = grouped(list(costs))
    sets = list(dict.fromkeys(name for name, _ in groups))
    figure = Figure(figsize=(4.5 * len(sets), 4), layout="constrained")
    panels = dict(zip(sets, figure.subplots(1, len(sets), squeeze=False, sharex=True)[0], strict=True))
    for name, method, some in [
        (*key, [row for row in group if row.machine == machine])
        for key, group in groups.items()
        for machine in dict.fromkeys(row.machine for row in group)
    ]:
        cost, accuracy = [costs[row] for row in some], [row.accuracy for row in some]
        colour = f"C{NAMES.index(method)}"
        panels[name].scatter(cost, accuracy, s=12, color=colour, alpha=0.4, linewidths=0)
        panels[name].scatter(fmean(cost), fmean(accuracy), s=60, color=colour, label=method, marker="D")
    for name, panel in panels.items():
        panel.set(
            title=name,
            xscale="log",
            xlabel="core-seconds of the training, times fast",
            ylabel="test accuracy",
        )
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(alpha=0.3)
    named = {
        label: mark
        for panel in panels.values()
        for mark, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    figure.savefig(file, dpi=110)


def main() -> int:
    """Measure what is asked for and not there yet; then the table and the picture. The exit code."""

    def command(out: Path, packs: str = "", methods: str = ",".join(METHODS)) -> int:
        """Compare trainers on packs.

        Args:
            out: The folder of rows.jsonl, which is added to.
            packs: Packs, by commas; a pack's name ends in a hyphen and its seed.
            methods: Trainers, by commas.
        """
        out.mkdir(parents=True, exist_ok=True)
        file = out / "rows.jsonl"
        rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
        there = {(row.pack, row.method) for row in rows if row.machine == this_machine()}
        for pack in map(Path, filter(None, packs.split(","))):
            for method in methods.split(","):
                if (pack.stem, method) in there:
                    continue
                note(f"{pack.stem}, {method}")
                with tempfile.TemporaryDirectory(prefix="greyhound-") as folder:
                    train = ours if "-" not in method else theirs
                    rows.append(train(pack, method, int(pack.stem.rpartition("-")[2]), Path(folder)))
                with file.open("a") as lines:
                    lines.write(json.dumps(vars(rows[-1])) + "\n")
        print("\n".join([*tabulate(rows), "", f"{describe_machine()}; {conditions()}"]))
        draw(rows, out / "trainers.png")
        return 0

    return read_call(command, sys.argv[1:], "python tests/trainers.py")()


def this_machine() -> str:
    """`describe_machine` without its cores, of which one is used."""
    return describe_machine().rpartition(",")[0]


def conditions() -> str:
    """Versions that the rows depend on."""
    return ", ".join(f"{name} {version}" for name, version in installed("torch", "timm", "fastai").items())


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        sys.exit(child(*sys.argv[2:]))
    if sys.argv[1:2] == [WEIGHTS]:
        sys.exit(save_weights(*sys.argv[2:]))
    run(main)
