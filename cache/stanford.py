"""Stanford Dogs' layout: class folders in Images, and beside them the lists of its training and test images.

Before it: the folder that holds all of that. After it: `collection.Collection`.
Sample: Khosla et al., "Novel Dataset for Fine-Grained Image Categorization", 2011.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from greyhound.cache.collection import Collection, LeftOut
from greyhound.cache.errors import one_line
from greyhound.cache.folder import NO_LABEL, Sample, find_labelled
from greyhound.cache.store import Excluded, PackError

IMAGES: Final = "Images"
_PLACES: Final = (".", "lists")


def lists_in(folder: Path) -> dict[str, Path]:
    """The list of each split, if the folder has Images and both lists; else none."""
    found = {}
    for split in ("train", "test"):
        files = [folder / place / f"{split}_list{ending}" for place in _PLACES for ending in (".mat", ".txt")]
        if there := [file for file in files if file.is_file()]:
            found[split] = there[0]
    return found if len(found) == 2 and (folder / IMAGES).is_dir() else {}


def read(folder: Path, lists: Mapping[str, Path]) -> Collection:
    """The images of the class folders, split by the lists. Raises PackError."""
    classes, samples, notes = find_labelled(folder / IMAGES)
    splits: dict[str, str] = {}
    for split, file in lists.items():
        for path in _read_list(file):
            if splits.setdefault(path, split) != split:
                raise PackError(f"{file} lists {path!r}, which is for training too; expected it in one list")
    names = f"{lists['train'].name} and {lists['test'].name}"
    kept = [replace(each, split=splits[each.path]) for each in samples if each.path in splits]
    if not kept:
        what = f"{names} in {folder} list none of the images, for example not {samples[0].path!r}"
        raise PackError(f"{what}; expected paths below {IMAGES}")
    left_out: list[LeftOut] = [
        (each, Excluded(each.path, "not listed", f"neither in {names}"))
        for each in samples
        if each.path not in splits
    ]
    for path in sorted(splits.keys() - {each.path for each in samples}):
        missing = Sample(folder / IMAGES / path, path, NO_LABEL)
        left_out.append((missing, Excluded(path, "missing file", f"in {lists[splits[path]].name}")))
    return Collection(classes, kept, notes, left_out, f"as {names} say")


def _read_list(file: Path) -> list[str]:
    """Paths below Images: the cells of `file_list`, or the first word of each line. Raises PackError."""
    try:
        if file.suffix == ".txt":
            return [line.split()[0] for line in file.read_text("utf-8").splitlines() if line.strip()]
        from scipy.io import loadmat

        return [str(cell.item()) for cell in loadmat(file)["file_list"].ravel()]
    except ImportError:
        todo = f"pip install scipy, or pack {file.parent / IMAGES} for a split that is drawn"
        raise PackError(f"{file} is a list of MATLAB's, which scipy reads; {todo}") from None
    except Exception as error:  # scipy raises whatever a file makes it raise
        why = one_line(error)
        raise PackError(f"{file} is no list of images ({why}); expected Stanford Dogs' own") from None
