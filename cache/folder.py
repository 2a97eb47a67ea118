"""Class folders and files below an image folder.

Before it: a folder of images, with or without a subfolder a class. After it: `pack` and the survey scan them.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from greyhound.cache.classes import label_order, say_alike
from greyhound.cache.picture import UNREAD, named_as_read
from greyhound.cache.place import Place
from greyhound.cache.store import SPLITS, PackError

NO_LABEL: Final = -1
NAMED: Final = 5
"""Classes that a note names."""
MAX_CLASSES: Final = 10_000
"""As many as were packed, trained, evaluated and explained in one go (docs/reliability.md)."""


SPLIT_FOLDERS: Final = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What a folder of a split is called, in any case, and the split."""
SYSTEMS: Final = (
    {"__macosx", "__pycache__", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"}
    | {"$recycle.bin", "recycler", "system volume information", "lost+found", "found.000"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
)
"""Folders and files that systems make, in lower case; those that begin with a dot are hidden anyway."""


@dataclass(frozen=True)
class Sample:
    """One image to pack. path: relative to the packed folder, forward slashes. label: or NO_LABEL.

    split, group: those that its folder, or its line in a table, names; "" for none. weight: in training.
    """

    file: Place
    path: str
    label: int
    split: str = ""
    group: str = ""
    weight: float = 1.0


class ImageFolder:
    """An image folder: which folders in it are classes, which are splits, and what was left alone.

    class_at: the place of the class folder in a path, 0 or 1. split_at: that of the split's folder, or None.
    """

    split_at: int | None

    def __init__(self, images: Path) -> None:
        """Look at what lies directly in the folder. Raises PackError."""
        self.images, self._home = images, images.resolve()
        self.class_at, self.split_at = 0, None
        self._left_alone, self._links, self._filled = set[str](), dict[str, str](), set[str]()
        self._leaves = set[str]()  # folders with images in them
        if not images.is_dir():
            found = "a file" if images.exists() else "not there"
            raise PackError(f"{images} is {found}; expected a folder of images")
        folders, self.beside = self._list(images)
        back = [each for each in folders if self._home.is_relative_to(each.resolve())]
        self._links |= {relative(each, images): "leads back to where it lies" for each in back}
        self.folders = [each for each in folders if each not in back]

    def files(self) -> Iterator[Path]:
        """Those that lie in the folder, then those in each of its folders. Raises PackError."""
        yield from self.beside
        for folder in self.folders:
            yield from self.below(folder)

    def below(self, folder: Path) -> Iterator[Path]:
        """Every file below, sorted by name, hidden ones left alone. A linked folder is followed once."""
        waiting, seen = [folder], {folder.resolve()}
        while waiting:
            folders, files = self._list(waiting.pop())
            yield from files
            waiting += reversed([each for each in folders if self._is_new(each, seen)])

    def class_of(self, path: str) -> str:
        """The class that the folders of a path name, "" for none."""
        parts = path.split("/")
        return parts[self.class_at] if len(parts) > 1 + max(self.class_at, self.split_at or 0) else ""

    def split_of(self, path: str) -> str:
        """The split that the folders of a path name, "" for none."""
        named = self.split_at is not None and self.class_of(path)
        return SPLIT_FOLDERS[path.split("/")[self.split_at or 0].lower()] if named else ""

    def read_splits(self) -> None:
        """Find out whether folders are splits: SPLIT/CLASS or CLASS/SPLIT. Raises PackError."""
        named = [folder for folder in self.folders if _split(folder)]
        others = [folder for folder in self.folders if not _split(folder)]
        inside = {folder: self.inside(folder) for folder in self.folders}
        if len(named) > 1:
            for other in others:
                if any(map(named_as_image, self.below(other))):
                    self._refuse(f"has the splits {_names(named)} and, beside them, images in {other.name}")
                self._links[as_text(other.name)] = "holds no images"
            self.folders, self.class_at, self.split_at = named, 1, 0
            self._check_train(named)
        elif any(len({*map(_split, folders)} - {""}) > 1 for folders, _ in inside.values()):
            for folders, image in inside.values():
                loose = [each for each in folders if not _split(each)] + ([image] if image else [])
                if loose:
                    where = relative(loose[0], self.images)
                    self._refuse(f"has splits in its class folders, and {where} is in none of them")
            self.split_at = 1
            self._check_train([each for folders, _ in inside.values() for each in folders])
        elif named and others and not any(inside[other][0] for other in others):
            folders, image = inside[named[0]]
            if len(folders) > 1 and not image:
                what = f"has {named[0].name}, which has folders in it, beside {_names(others)} without any"
                self._refuse(what, f"pack {named[0]}, or rename that folder")

    def _check_train(self, splits: Sequence[Path]) -> None:
        if "train" not in map(_split, splits):
            self._refuse(f"has the splits {_names(splits)} and none for training")

    def _refuse(self, what: str, todo: str = "move or rename the one that is no split") -> NoReturn:
        wanted = f"expected splits ({', '.join(SPLITS)}) or one folder a class"
        raise PackError(f"{self.images} {what}; {wanted}: {todo}")

    def inside(self, folder: Path) -> tuple[list[Path], Path | None]:
        """The folders directly in a folder, and the first image beside them."""
        folders, files = self._list(folder)
        return folders, next(filter(named_as_image, files), None)

    def class_folders(self) -> list[Path]:
        """One a class; of SPLIT/CLASS one a class and split. Sorted by name without regard to case."""
        found = self.folders
        if self.class_at:
            found = [each for folder in self.folders for each in self.inside(folder)[0]]
        return sorted(found, key=_order)

    def notes(self) -> list[str]:
        """What was left alone, and what may be a slip: a sentence each, once the files were gone through."""
        counts = Counter(path.rpartition("/")[2] for path in self._left_alone)
        names = [name if count == 1 else f"{name} ({count} times)" for name, count in sorted(counts.items())]
        found = [f"left alone, because systems make them: {', '.join(names)}"] if names else []
        found += [f"the folder {path} is left alone: it {why}" for path, why in sorted(self._links.items())]
        names = list(dict.fromkeys(as_text(folder.name) for folder in self.class_folders()))
        if empty := [name for name in names if name not in self._filled]:
            more = f" and {len(empty) - NAMED} more" if len(empty) > NAMED else ""
            found.append(
                f"class folders without files, which are no classes: {', '.join(empty[:NAMED])}{more}"
            )
        return [*found, *say_alike(names, "class folders"), *self._say_deeper()]

    def _say_deeper(self) -> list[str]:
        """A guess from names: folders of the same names in several class folders may be the classes."""
        depth, deeper = 1 + max(self.class_at, self.split_at or 0), defaultdict[str, dict[str, str]](dict)
        for path in sorted(self._leaves):
            home = "/".join(path.split("/")[:depth])
            where, _, name = path.rpartition("/")
            if home != path and home not in self._leaves and name.lower() not in SPLIT_FOLDERS:
                deeper[name].setdefault(self.class_of(f"{path}/"), where)
        shared = {name: found for name, found in deeper.items() if len(found) > 1}
        if len(shared) < 2:
            return []
        (one, first), (other, second) = [*next(iter(shared.values())).items()][:2]
        what = f"{one} and {other} hold folders of the same names ({', '.join([*shared][:NAMED])})"
        todo = f"pack {self.images / first} or {self.images / second}"
        return [f"the class folders {what}; if those are the classes, move them up, or {todo}"]

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the files directly in a folder, sorted, what is hidden or a system's left alone."""
        try:
            with os.scandir(folder) as entries:
                shown = [(each.name, _is_folder(each)) for each in entries if each.name[0] != "."]
        except OSError as error:
            todo = "make it readable, or move it away"
            raise PackError(f"{error.filename} cannot be read ({error.strerror}); {todo}") from None
        found: tuple[list[Path], list[Path]] = ([], [])
        for name, is_folder in sorted(shown):
            if name.lower() in SYSTEMS:
                self._left_alone.add(relative(folder / name, self.images))
            else:
                found[not is_folder].append(folder / name)
        if any(map(named_as_image, found[1])):
            self._leaves.add(relative(folder, self.images))
        self._filled |= {self.class_of(relative(file, self.images)) for file in found[1][:1]}
        return found

    def _is_new(self, folder: Path, seen: set[Path]) -> bool:
        """Whether a folder is to be gone through: a linked one once, if it leads neither back nor beside."""
        target, linked = folder.resolve(), folder.is_symlink()
        why = ""
        if linked and folder.parent.resolve().is_relative_to(target):
            why = "leads back to where it lies"
        elif linked and (self._home.is_relative_to(target) or self._is_read(target)):
            why = "leads to what is read on its own"
        elif target in seen:
            why = "leads to what is read already"
        if why:
            self._links[relative(folder, self.images)] = why
        else:
            seen.add(target)
        return not why

    def _is_read(self, target: Path) -> bool:
        """Whether a folder lies in this one, and neither is nor lies in one that is left alone."""
        inside = target.is_relative_to(self._home)
        return inside and all(map(is_shown, target.relative_to(self._home).parts))


def read_image_folder(images: Path) -> ImageFolder:
    """The folder, its splits found. Raises PackError."""
    tree = ImageFolder(images)
    tree.read_splits()
    return tree


def find_labelled(images: Path) -> tuple[tuple[str, ...], list[Sample], list[str]]:
    """Class names, sorted without regard to case; every file below each, then unlabelled images; notes.

    What begins with a dot is hidden, and left alone, and so is what systems make. A class folder may be a
    link, but none that leads back to `images`; links below are followed once. Raises PackError.
    """
    tree = read_image_folder(images)
    classes = tuple(dict.fromkeys(as_text(folder.name) for folder in tree.class_folders()))
    if len(classes) < 2:
        where = "SPLIT/CLASS" if tree.class_at else "CLASS"
        kinds = "class folders in its splits" if tree.class_at else "subfolders"
        found = f"1 {kinds.replace('folders', 'folder')}" if classes else f"no {kinds}"
        wanted = f"expected one a class, at least 2: {images}/{where}/image.jpg"
        deeper = [each for each in tree.folders if not tree.class_at and len(tree.inside(each)[0]) > 1]
        hint = f"; if the classes lie in {deeper[0].name}, pack {deeper[0]}" if deeper else ""
        raise PackError(f"{images} has {found}; {wanted}{hint}")
    if len(classes) > MAX_CLASSES:
        wanted = f"expected one a class, at most {MAX_CLASSES:,}: put them together into fewer"
        raise PackError(f"{images} has {len(classes):,} subfolders; {wanted}")
    numbers = {name: label for label, name in enumerate(classes)}
    samples = []
    for folder in sorted(tree.folders, key=_order):
        for file in tree.below(folder):
            path = relative(file, images)
            samples.append(
                Sample(file, path, numbers.get(tree.class_of(path), NO_LABEL), tree.split_of(path))
            )
    if not samples:
        raise PackError(f"the {len(classes)} subfolders of {images} hold no files; expected images in them")
    beside = filter(named_as_image, tree.beside)
    samples += [Sample(file, relative(file, images), NO_LABEL) for file in beside]
    return classes, samples, tree.notes()


def find_unlabelled(images: Path) -> list[Sample]:
    """Every file below a folder, without labels; links as in `find_labelled`. Raises PackError."""
    samples = [Sample(file, relative(file, images), NO_LABEL) for file in ImageFolder(images).files()]
    if not samples:
        raise PackError(f"{images} holds no files; expected images")
    return samples


def find_images(tree: ImageFolder) -> Iterator[str]:
    """The path of every file below a folder, in order, as in `find_labelled`. Raises PackError."""
    for file in tree.files():
        if file.parent != tree.images or named_as_image(file):
            yield relative(file, tree.images)


def find_file(images: Path, path: str) -> Path:
    """The file whose path `as_text` writes as `path`."""
    file = images / raw_name(path)
    return file if file.exists() else images / path  # as a person writes it


def raw_name(text: str) -> str:
    """The name that `as_text` writes so."""
    written = text.encode("utf-8", "replace")
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), written))


def check_outside(out: Path, images: Path) -> None:
    """Refuse to write to where the next look at the images would find it. Raises PackError."""
    if out.resolve().is_relative_to(images.resolve()):
        why = "where it would be taken for an image the next time"
        raise PackError(f"--out {out} lies inside {images}, {why}; name a place outside")


def check_writable(place: Path) -> None:
    """Check that a folder can be written to, or made, without making it. Raises OSError."""
    nearest = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_shown(name: str) -> bool:
    """Whether it is neither hidden nor a system's."""
    return name[0] != "." and name.lower() not in SYSTEMS


def _order(folder: Path) -> tuple[str, str]:
    return label_order(folder.name)


def _split(folder: Path) -> str:
    """The split that a folder's name says, "" for none."""
    return SPLIT_FOLDERS.get(folder.name.lower(), "")


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(dict.fromkeys(as_text(folder.name) for folder in folders))


def named_as_image(file: Place) -> bool:
    """Whether a file's name ends as that of a picture, be it one that is not read here."""
    return file.suffix.lower() in UNREAD or named_as_read(file.suffix)


def relative(file: Path, images: Path) -> str:
    """The path of a file below a folder, as `as_text` writes it, with forward slashes."""
    return as_text(file.relative_to(images).as_posix())


def as_text(name: str) -> str:
    r"""A name as valid Unicode: a byte that is no text as \xff, a backslash before such text as \x5c"""
    escaped = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(name))
    return escaped.decode("utf-8", "backslashreplace")
