"""What a run depends on, whether it is still so, and the checkpoint to go on from.

Before it: a run folder that a training left. After it: train goes on as if nothing had happened, or says what differs.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from model.checkpoint import DamagedCheckpointError, load, numbered
from model.progress import Progress
from model.run import AVERAGED, LAST, Run, RunError
from model.shapes import INTERPOLATION, PACK, RECIPE, SWA, VERSIONS

Forcible: TypeAlias = Literal["recipe", "pack", "versions"]
"""What may differ from the run's own where it is forced."""
Say: TypeAlias = Callable[[str], None]
"""Says a line to the user."""


def describe(
    folder: Run, recipe: Mapping[str, Any], pack: Mapping[str, Any], used: Mapping[str, str]
) -> None:
    """pack.json, versions.json and recipe.json; the last one makes the folder a run."""
    folder.write(PACK, pack)
    folder.write(VERSIONS, used)
    folder.write(RECIPE, recipe)


def differences(then: dict[str, Any], now: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every field in which `now` differs from `then`: its dotted name, the one value and the other."""
    for name, was in then.items():
        if isinstance(was, dict) and isinstance(now.get(name), dict):
            yield from differences(was, now[name], f"{place}{name}.")
        elif was != now.get(name):
            yield f"{place}{name}", was, now.get(name)


def check_recipe(folder: Run, then: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse another recipe, as values, than the run's own. Raises RunError."""
    for name, was, now in differences(then, asked):
        raise RunError(
            f"{folder.folder / RECIPE} has {name} = {was}, not {now}; resume with the same recipe, or take this one all "
            "the same: --force recipe"
        )


def check_same(folder: Run, pack: Path, digest: str, used: dict[str, str], force: Sequence[Forcible]) -> None:
    """Refuse to go on with another pack, or with other versions of what computes; `force` names what may differ.

    digest: of the pack. used: `run.versions` of here. Raises RunError.
    """
    if "pack" not in force and folder.read(PACK)["digest"] != digest:
        raise RunError(
            f"{folder.folder} was trained on another pack than {pack}; give it the same one, or go on all the same: "
            "--force pack"
        )
    for name, was, now in other_versions(folder, used) if "versions" not in force else ():
        raise RunError(
            f"{folder.folder} was trained with {name} {was}, and here is {now}; use that one, or go on all the same: "
            "--force versions"
        )


def other_versions(folder: Run, used: dict[str, str]) -> list[tuple[str, Any, Any]]:
    """What a result depends on and is not as it was when the run began: name, then, now."""
    then = folder.read(VERSIONS)
    named = {name: then.get(name, "none") for name in used if name not in ("date", "machine")}
    return list(differences(named, used))


def newest(folder: Run, mend: bool, say: Say) -> dict[str, Any] | None:
    """The newest checkpoint that is not damaged, or None where there is none. Raises CheckpointError.

    mend: give it the name last.ckpt, so that it is kept as the one before the next; a damaged one is not worth its place.
    """
    last = folder.folder / LAST
    paths = list(itertools.takewhile(Path.exists, (numbered(last, age) for age in itertools.count())))
    for path in paths:
        try:
            content = load(path)
        except DamagedCheckpointError as error:
            say(f"{error}; looking at the one before it")
            continue
        if path != last:
            say(f"going on from {path.name}")
        if path != last and mend:
            path.replace(last)
        return content
    return load(last) if paths else None  # every one is damaged: the newest is named


def write_down_forced(
    folder: Run,
    recipe: dict[str, Any],
    pack: Mapping[str, Any],
    used: dict[str, str],
    progress: Progress,
    say: Say,
) -> None:
    """What the run depends on from here, beside what it depended on until now."""
    until = {f"{name} until epoch {progress.epoch}": was for name, was, _ in other_versions(folder, used)}
    before = {name: was for name, was in folder.read(VERSIONS).items() if " until epoch " in name}
    for name, was, now in differences(folder.read(RECIPE), json.loads(json.dumps(recipe))):
        say(f"{name} was {was}, and is {now} from here")
    describe(folder, recipe, pack, used | before | until)


def forget_best(folder: Run, progress: Progress) -> None:
    """What was best, and what was averaged, was so by another recipe or pack."""
    progress.best = -math.inf
    for name in (INTERPOLATION, SWA, AVERAGED):
        (folder.folder / name).unlink(missing_ok=True)
