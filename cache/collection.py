"""What a source of labelled images holds: the same for a folder, a manifest, tars and Parquet files.

Before it: `folder`, `manifest`, `tars` and `parquet` name images and their classes. After it: `pack` scans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from greyhound.cache.classes import label_order, say_alike
from greyhound.cache.folder import MAX_CLASSES, NO_LABEL, SPLIT_FOLDERS, Sample
from greyhound.cache.place import Place
from greyhound.cache.store import SPLITS, Excluded, PackError

SPLIT_WORDS: Final = SPLIT_FOLDERS | {"dev": "val", "eval": "test", "evaluation": "test"}
"""What a split is called in a table, or in the name of a tar or Parquet file, in lower case."""
LeftOut = tuple[Sample, Excluded]


@dataclass(frozen=True)
class Collection:
    """Images with labels. classes: names, index = label. left_out: what cannot be packed, and why.

    notes: what a person should know. split_by: how the splits came about, if there are any. renamed: class ->
    its shorter name, which `classes` has.
    """

    classes: tuple[str, ...]
    samples: Sequence[Sample]
    notes: Sequence[str] = ()
    left_out: Sequence[LeftOut] = ()
    split_by: str = "as the folders say"
    renamed: Mapping[str, str] = field(default_factory=dict)


NOTHING: Final = Collection((), ())


@dataclass
class Collector:
    """Images as they are met, with the names of their classes.

    name: of what they are in, for messages. home: the folder below which paths were sought, if they were.
    """

    name: str
    home: str = ""
    _places: dict[str, tuple[Place, str, str, str, float]] = field(default_factory=dict)
    _left_out: list[tuple[Sample, str, Excluded]] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def add(
        self,
        place: Place,
        path: str,
        label: str,
        split: str = "",
        group: str = "",
        weight: float = 1.0,
        where: str = "it",
    ) -> None:
        """One image. A path that came before is left out, if it says the same. Raises PackError.

        split: if it is none of SPLIT_WORDS, the image is left out. where: the split is named, for messages.
        """
        if split and split.lower() not in SPLIT_WORDS:
            why = f"{where} says {split!r}; expected {', '.join(SPLITS)}"
            self.leave_out(place, path, label, "unknown split", why)
            return
        row = (place, _as_unicode(label), SPLIT_WORDS.get(split.lower(), ""), group, weight)
        first = self._places.setdefault(path, row)
        if first is row:
            return
        for what, one, other in zip(("class", "split", "group", "weight"), first[1:], row[1:], strict=True):
            if one != other:
                said = f"names {path!r} twice, with the {what} {one!r} and with {other!r}"
                raise PackError(f"{self.name} {said}; expected one line a file: delete one of the two")
        self.leave_out(place, path, label, "duplicate path", "named before")

    def leave_out(self, place: Place, path: str, label: str, reason: str, detail: str = "") -> None:
        """One image that cannot be used. label: "" for none."""
        excluded = Excluded(path, reason, _as_unicode(detail))
        self._seen.add(path)
        self._left_out.append((Sample(place, path, NO_LABEL), _as_unicode(label), excluded))

    def knows(self, path: str) -> bool:
        """Whether an image of this path was added or left out."""
        return path in self._places or path in self._seen

    def collect(self, notes: Sequence[str], split_by: str) -> Collection:
        """All of them, their classes sorted without regard to case. Raises PackError.

        If one names a split, those that name none are left out.
        """
        if any(split for _, _, split, *_ in self._places.values()):
            for path, (place, label, split, *_) in [*self._places.items()]:
                if not split:
                    del self._places[path]
                    self.leave_out(place, path, label, "unknown split", "it names none")
        if not self._places:
            raise PackError(f"{self.name} names no image that can be packed; {self._first_left_out()}")
        names = {label for _, label, *_ in self._places.values()}
        names |= {label for _, label, _ in self._left_out if label}
        classes = tuple(sorted(names, key=label_order))
        if not 2 <= len(classes) <= MAX_CLASSES:
            few = ", ".join(map(repr, classes[:3])) + (", ..." if len(classes) > 3 else "")
            found = (
                f"{self.name} names {len(classes):,} {'class' if len(classes) == 1 else 'classes'} ({few})"
            )
            todo = "if another column has the classes, name it: --label COLUMN"
            raise PackError(f"{found}; expected 2 to {MAX_CLASSES:,}; {todo}")
        numbers = {"": NO_LABEL} | {name: label for label, name in enumerate(classes)}
        samples = [
            Sample(place, path, numbers[label], split, group, weight)
            for path, (place, label, split, group, weight) in self._places.items()
        ]
        self._check_splits({each.split for each in samples} - {""})
        left_out = [(replace(each, label=numbers[label]), row) for each, label, row in self._left_out]
        return Collection(
            classes, samples, [*map(_as_unicode, notes), *say_alike(classes, "classes")], left_out, split_by
        )

    def _check_splits(self, said: set[str]) -> None:
        """Raises PackError for splits without one for training."""
        if said and "train" not in said:
            found = f"names the splits {', '.join(sorted(said))} and none for training"
            raise PackError(f"{self.name} {found}; expected {', '.join(SPLITS)}: name some images train")

    def _first_left_out(self) -> str:
        if not self._left_out:
            return "expected a line or a sample for each"
        _, _, row = self._left_out[0]
        where = f"; paths are sought below {self.home}" if row.reason == "missing file" and self.home else ""
        return f"the first: {row.path}: {row.reason}" + (f" ({row.detail})" if row.detail else "") + where


def _as_unicode(text: str) -> str:
    r"""With \ud800 for a lone surrogate, which JSON may hold and no pack can."""
    return text.encode("utf-8", "backslashreplace").decode()
