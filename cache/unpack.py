"""Unpack: the images of a pack as folders again, SPLIT/CLASS/image.jpg, which `pack` and other tools read.

Before it: an open pack. After it: a folder that was not there, or was empty, whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from greyhound.cache.classes import label_order
from greyhound.cache.files import WriteError, folder_beside
from greyhound.cache.folder import SPLIT_FOLDERS, as_text, is_shown, raw_name
from greyhound.cache.scan import Progress, counted
from greyhound.cache.store import SPLITS, Pack

PNG: Final = ".png"
CLASS_LIST: Final = "classes.json"
"""The classes in the pack's order, beside the splits, where that is not the order that `pack` gives."""


def unpack(pack: Pack, out: Path, progress: Progress | None = None) -> None:
    """Write every image into the folder `out`, byte for byte as the pack has it.

    progress: called with (images written, images in all). Raises WriteError, PackError; then none is there.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise WriteError(f"{out} is there and is not an empty folder; name a new one: --export")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with folder_beside(out, "--export") as temporary:
            made = temporary / "images"
            for split in SPLITS:  # an empty one too: then a single one is seen to be a split
                (made / split).mkdir(parents=True)
            listed = _class_folders(pack)
            if listed != sorted(listed, key=label_order):
                (made / CLASS_LIST).write_text(json.dumps([*map(as_text, listed)]), "utf-8")
            for row, place in counted(enumerate(export_paths(pack)), len(pack), progress):
                file = made / place
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("xb") as stream:
                    stream.write(pack.encoded(row).data)
            made.rename(out.resolve())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise WriteError(f"{out} cannot be written ({why}); nothing was; name another: --export") from None


def export_paths(pack: Pack) -> Iterator[str]:
    """Where each image goes, below the folder: its split, its class, and its path without these two.

    Two never go to one place, and none leaves the folder, whatever their paths are. What is stored as PNG
    ends so.
    """
    splits = {row: split for split in SPLITS for row in pack.ids(split).tolist()}
    folders, converted = _class_folders(pack), {path for path, _ in pack.header.transcoded}
    files, above = set[str](), {f"{split}/{name}" for split in SPLITS for name in folders}
    for row, label in enumerate(pack.labels.tolist()):
        path, split, name = pack.image_path(row), splits[row], pack.classes[label] if label >= 0 else ""
        parts = path.split("/")
        skipped = 2 if len(parts) > 2 and SPLIT_FOLDERS.get(parts[0].lower()) == split else 0
        if parts[: max(1, skipped)][-1] == name and len(parts) > 1:
            parts = parts[max(1, skipped) :]
        inside = [_safe(part) for part in raw_name("/".join(parts)).split("/") if part] or ["image"]
        place = f"{split}/{folders[label]}" if label >= 0 else split
        for part in inside[:-1]:
            place = _free(f"{place}/{part}", files)
            above.add(place)
        ends = PNG if path in converted and not inside[-1].lower().endswith(PNG) else ""
        place = _free(f"{place}/{inside[-1]}{ends}", files, above)
        files.add(place)
        yield place


def _class_folders(pack: Pack) -> list[str]:
    """The name of each class's folder, in the order of the classes."""
    folders = dict[str, None]()  # in order
    for name in pack.classes:
        folders[_free(_safe(raw_name(name).replace("/", "_")), folders)] = None
    return [*folders]


def _safe(part: str) -> str:
    """A name that is no way out of its folder, and that `pack` does not leave alone."""
    part = part.replace("\0", "_") or "_"
    return part if is_shown(part) else f"_{part}"


def _free(place: str, *taken: Container[str]) -> str:
    """The place, or the same with a number before its suffix."""
    path, number, found = Path(place), 1, place
    while any(found in each for each in taken):
        number += 1
        found = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return found
