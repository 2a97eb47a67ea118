"""What a run depends on, whether it is still so, and the checkpoint to go on from.

Before it: a run folder that a training left. After it: train goes on as if nothing had happened, or says what
differs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from greyhound.model.checkpoint import CorruptCheckpointError, kept, load, save
from greyhound.model.run import (
    AVERAGED,
    BEST,
    DIVERGED,
    DIVERGED_PICTURE,
    LAST,
    METRICS,
    PACK,
    PROBE,
    RECIPE,
    SWA,
    THREADS,
    VERSIONS,
    Run,
    RunError,
    score_of,
)

Say: TypeAlias = Callable[[str], None]
"""Says a line to the user."""

_SETTLED: Final = ("network", "weights", "linear_probe", "probe_grids")
"""Fields of a recipe that only the start of a run looks at."""
_UNTIL: Final = " until epoch "


def write_description(
    folder: Run, recipe: Mapping[str, Any], pack: Mapping[str, Any], used: Mapping[str, str]
) -> None:
    """pack.json, versions.json and recipe.json; the last one makes the folder a run.

    pack.json says also where the pack lies seen from the run, so that both may be moved together.
    """
    folder.write(PACK, {**pack, "beside": beside(Path(pack["path"]), folder.folder)})
    folder.write(VERSIONS, used)
    folder.write(RECIPE, recipe)


def beside(path: Path, folder: Path) -> str:
    """The path seen from a folder; empty on another drive."""
    path, folder = path.resolve(), folder.resolve()
    return os.path.relpath(path, folder) if path.anchor == folder.anchor else ""


def differences(then: dict[str, Any], now: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every field in which `now` differs from `then`: its dotted name, the one value and the other.

    Phases are compared one by one where there are as many.
    """
    for name, was in then.items():
        before, after = _numbered(was), _numbered(now.get(name))
        both = isinstance(before, dict) and isinstance(after, dict)
        if both and (isinstance(was, dict) or len(before) == len(after)):
            yield from differences(before, after, f"{place}{name}.")
        elif was != now.get(name):
            yield f"{place}{name}", was, now.get(name)


def _numbered(value: Any) -> Any:
    """Of a list of dicts a dict, by their numbers; anything else as it is."""
    several = isinstance(value, list | tuple) and value and all(isinstance(each, dict) for each in value)
    return {str(index): each for index, each in enumerate(value)} if several else value


def check_same(
    folder: Run,
    recipes: tuple[dict[str, Any], dict[str, Any]],
    pack: Path,
    digest: str,
    used: dict[str, str],
    force: Sequence[str],
) -> None:
    """Refuse to go on with another recipe, pack or version of what computes; `force` names what may differ.

    recipes: the run's own and the one asked for, as values. digest: of the pack. used: `run.versions` of
    here. Raises RunError, which says all that differs.
    """
    found = {
        "recipe": other_recipe(folder, *recipes),
        "pack": other_pack(folder, pack, digest),
        "versions": say_other_versions(folder, used),
    }
    refused = [text for name, text in found.items() if text and name not in force]
    if refused:
        raise RunError("; and ".join(refused))


def other_recipe(folder: Run, then: dict[str, Any], asked: dict[str, Any]) -> str:
    """In which fields another recipe was asked for than the run's own, in words; empty where in none."""
    found = list(differences(then, asked))
    if not found:
        return ""
    listed = "; ".join(f"{name} = {was}, not {now}" for name, was, now in found)
    force = "" if any(name in _SETTLED for name, *_ in found) else ", or --force recipe"
    return f"{folder.folder / RECIPE} has {listed}; resume with the same recipe{force}"


def other_pack(folder: Run, pack: Path, digest: str) -> str:
    """That the pack is not the one that the run was trained on, in words; empty where it is."""
    was = folder.read(PACK)["digest"]
    if was == digest:
        return ""
    digests = f"of digest {was[:16]} and not {digest[:16]}"
    found = f"{folder.folder} was trained on another pack than {pack}, {digests}"
    return f"{found}; give it the same one, or --force pack"


def say_other_versions(folder: Run, used: dict[str, str]) -> str:
    """Which versions of what computes are others than the run's, in words; empty where none is."""
    found = other_versions(folder, used)
    if not found:
        return ""
    listed = "; ".join(f"{name} {was}, and here is {now}" for name, was, now in found)
    those = "that one" if len(found) == 1 else "those"
    return f"{folder.folder} was trained with {listed}; use {those}, or --force versions"


def other_versions(folder: Run, used: dict[str, str]) -> list[tuple[str, str, str]]:
    """What a result depends on and has changed since the run began: name, then, now; "none": not there."""
    then = {name: was for name, was in folder.read(VERSIONS).items() if _UNTIL not in name}
    names = [name for name in then | used if name not in ("date", "machine")]
    # Of several ranks, or on a GPU, threads decide nothing, or not alone.
    if not (THREADS in then and THREADS in used):
        names = [name for name in names if name != THREADS]
    pairs = [(name, then.get(name, "none"), used.get(name, "none")) for name in names]
    return [(name, was, now) for name, was, now in pairs if was != now]


def refuse_settled(folder: Run, then: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse a recipe that no run under way can follow, forced or not. Raises RunError."""
    found = [f"{name} = {was}, not {now}" for name, was, now in differences(then, asked) if name in _SETTLED]
    if found:
        settled = f"{'; '.join(found)}, which was settled before the first step"
        raise RunError(f"{folder.folder / RECIPE} has {settled}; leave it, or train into another folder")


def latest_checkpoint(folder: Run, repair: bool, say: Say) -> dict[str, Any] | None:
    """The latest checkpoint that is not corrupt; None where there is none: the training starts anew.

    repair: give it the name last.ckpt, so that it is kept as the one before the next; a corrupt one is not
    worth its place. Raises CheckpointError where every one is corrupt, RunError where there was one.
    """
    last = folder.folder / LAST
    paths = kept(last)
    if not paths:
        refuse_lost(folder)
        say(f"{folder.folder} has no {LAST}: the training starts anew")
        return None
    if last not in paths:
        say(f"{last} is not there; looking at the one before it")
    for path in paths:
        try:
            content = load(path)
        except CorruptCheckpointError as error:
            say(f"{error}; looking at the one before it" if path != paths[-1] else str(error))
            continue
        if path != last:
            say(f"going on from {path.name}")
        if path != last and repair:
            path.replace(last)
        return content
    names = ", ".join(path.name for path in paths)
    todo = "put back a copy of one, or train into another folder: --out"
    raise CorruptCheckpointError(f"{folder.folder} has no checkpoint that can be read ({names}); {todo}")


def refuse_lost(folder: Run) -> None:
    """Refuse to start anew where results are lost by it. Raises RunError.

    best.ckpt is none of them, nor what eval and explain make of it: it is there once a probe is fitted.
    """
    found = [AVERAGED] if (folder.folder / AVERAGED).exists() else []
    # A kill may leave the first epoch's row and no last.ckpt yet; behind a probe last.ckpt comes first.
    without_checkpoint = 0 if (folder.folder / PROBE).exists() else 1
    if len(folder.rows(METRICS)) > without_checkpoint:
        found.append(METRICS)
    if found:
        results = f"{folder.folder} has results ({', '.join(found)}) and no {LAST} to go on from"
        raise RunError(f"{results}; put it back, or train into another folder: --out")


def record_forced(
    folder: Run, recipe: dict[str, Any], pack: Mapping[str, Any], used: dict[str, str], epoch: int, say: Say
) -> None:
    """What the run depends on from here, beside what it depended on until now."""
    until = {f"{name}{_UNTIL}{epoch}": was for name, was, _ in other_versions(folder, used)}
    before = {name: was for name, was in folder.read(VERSIONS).items() if _UNTIL in name}
    was = folder.read(PACK)["digest"]
    if was != pack["digest"]:
        until[f"pack{_UNTIL}{epoch}"] = was
        say(f"the pack was {was[:16]}, and is {pack['digest'][:16]} from here")
    for name, was, now in (
        *differences(folder.read(RECIPE), json.loads(json.dumps(recipe))),
        *other_versions(folder, used),
    ):
        say(f"{name} was {was}, and is {now} from here")
    write_description(folder, recipe, pack, used | before | until)


def clear_end(folder: Run) -> None:
    """Remove what comes after the last step, of a training that is not there, and where it diverged."""
    for name in (SWA, AVERAGED, DIVERGED, DIVERGED_PICTURE):
        (folder.folder / name).unlink(missing_ok=True)


def invalidate_best(folder: Run, say: Say) -> None:
    """After a change of recipe or pack: the best is scored again, and averaged again.

    best.ckpt itself says so, in case the process is killed before that is done.
    """
    clear_end(folder)
    content = find_best(folder, say)
    if content is not None:
        save(folder.folder / BEST, content | {"score": -math.inf})


def find_best(folder: Run, say: Say) -> dict[str, Any] | None:
    """best.ckpt with its score, -inf where it must be scored again; None where none can be read."""
    path = folder.folder / BEST
    if not path.exists():
        return None
    try:
        content = load(path)
    except CorruptCheckpointError as error:
        say(f"{error}; the best is looked for from here")
        return None
    return content | {"score": score_of(content)}
