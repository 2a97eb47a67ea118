"""Cross-validation: a run folder for each fold, and what they came to together.

Before it: train hands itself over, and `--folds 5`. After it: folds.json and a page beside the run folders.
The test images of the pack stay out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from greyhound.cache.cli import Stop, note
from greyhound.cache.folds import Fold
from greyhound.cache.machine import alone
from greyhound.cache.store import Pack
from greyhound.model import metrics
from greyhound.model.report import compare, report
from greyhound.model.run import FOLDS, Run, RunError
from greyhound.recipe import TrainOptions
from greyhound.session import open_pack
from greyhound.several import Train, begun, train_into

PAGE: Final = "folds.html"
SHARED: Final = "folds share training images, so the spread over folds is no standard error"
CHOSEN: Final = "where a fold chose among several results, it chose by the images that it is measured on here"


def cross_validate(asked: TrainOptions, stop: Stop, train: Train) -> int:
    """Train fold after fold, and say what they came to. The exit code. Raises UserError, Stopped."""
    alone(asked, "--folds")
    run, count, seed = Run(asked.out), asked.folds, asked.recipe.seed
    if asked.pack is None:
        raise RunError("--folds needs a pack: --pack PACK, made by: greyhound pack IMAGES --out PACK")
    folders = [asked.out / f"fold-{index}" for index in range(count)]
    closing = next_step(Pack(asked.pack))  # before the folds: the pack may be gone behind them
    pack = open_pack(asked.pack, asked.resources, Fold(0, count, seed))
    if not (pack.families >= 0).any():
        dealt = "has no groups and no twins, so each image is dealt out by itself"
        note(f"{pack.path} {dealt}; where several show the same thing, pack with --group")
    described = {"folds": count, "pack": pack.header.digest, "recipe": asdict(asked.recipe)}
    with begun(run, FOLDS, described, asked.resume) as content:
        run.write(FOLDS, content)
        results = []
        for index, folder in enumerate(folders):
            print(f"fold {index} of {count}", flush=True)
            options = replace(asked, folds=0, fold=Fold(index, count, seed))
            results.append(train_into(train, options, stop, folder, asked.recipe).result)
        found = summary(results)
        run.write(FOLDS, content | found)
        conclude(folders, found)
        print(closing)
    return 0


def summary(results: Sequence[Any]) -> dict[str, Any]:
    """Of validations with accuracy, n and cross entropy: each one's, and those of all images together."""
    counts = np.array([result["n"] for result in results])
    accuracies, losses = (np.array([result[key] for result in results]) for key in ("accuracy", "valid_loss"))
    n, right = int(counts.sum()), float((accuracies * counts).sum())
    return {
        "n": n,
        "accuracy": right / n,
        "interval": metrics.wilson(right, n),
        "cross_entropy": float((losses * counts).sum()) / n,
        "mean": float(accuracies.mean()),
        "least": float(accuracies.min()),
        "highest": float(accuracies.max()),
        "results": [{key: result[key] for key in ("n", "accuracy", "valid_loss")} for result in results],
    }


def next_step(pack: Pack) -> str:
    """What to do with what was learnt, in words. pack: as it is without folds."""
    pack_first = "" if len(pack.ids("val")) else "pack again into another file, with --val and --test; then "
    test = "; greyhound eval tests what comes of it" if len(pack.ids("test")) else ""
    return f"next: {pack_first}the same command without --folds, to another --out{test}"


def conclude(folders: Sequence[Path], found: dict[str, Any]) -> None:
    """The page, and the closing lines."""
    low, high = found["interval"]
    lines = [
        f"all {found['n']:,} images, each validated once: acc = {found['accuracy']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}), cross entropy = {found['cross_entropy']:.4f}",
        f"over {len(folders)} folds: mean acc = {found['mean']:.3f}, from {found['least']:.3f} to "
        f"{found['highest']:.3f}; {SHARED}",
    ]
    if any(map(report.has_chosen, folders)):
        lines.append(CHOSEN)
    sentences = [f"{line[0].upper()}{line[1:]}." for line in lines]
    page = compare.build(folders, folders[0].parent / PAGE, "Cross-validation", sentences).path
    print(*lines, f"page: {page}", sep="\n")
