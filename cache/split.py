"""Which images are for training, for validation and for the test.

Before it: what `pack` keeps, and a person's --group or --split. After it: a split for every image, and what a
person should know of how it came about. What belongs together stays together: twins, and images of one group.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from greyhound.cache.collection import SPLIT_WORDS
from greyhound.cache.folder import NAMED, Sample, as_text
from greyhound.cache.scan import ImageInfo
from greyhound.cache.store import SPLITS, PackError
from greyhound.cache.tables import read_table, unique_by_path
from greyhound.cache.thumbnail import closeup_reader
from greyhound.cache.twins import find_roots, find_twins, join

if TYPE_CHECKING:
    from greyhound.cache.pack import Options

Kept: TypeAlias = tuple[Sample, ImageInfo]
HELD_OUT: Final = ("test", "val")
SWAPPED: Final = 150
"""Of at most so many families, also pairs are swapped for nearer shares: their number squared is tried."""
FAR: Final = 0.05
"""A share that differs by more than this from the one asked for is said. A guess."""


@dataclass(frozen=True)
class Table:
    """A person's own split. splits, groups: path -> split, or the group that stays in one, "" for none."""

    file: Path
    splits: Mapping[str, str]
    groups: Mapping[str, str]

    def check(self, paths: Iterable[str]) -> None:
        """Refuse images that no line gives a split. Raises PackError."""
        missing = [path for path in paths if path not in self.splits] if self.splits else []
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            todo = "expected a line for every image; leave others out with --exclude"
            raise PackError(f"{self.file} has no line for {missing[0]!r}{more}; {todo}")


@dataclass(frozen=True)
class Assigned:
    """splits: one for each image. how, notes: sentences. empty: split without images -> why, what helps.

    families: of each image, a number that those have in common that stay in one split; -1: it is alone.
    """

    splits: list[str]
    families: list[int]
    how: str = ""
    notes: tuple[str, ...] = ()
    empty: dict[str, str] = field(default_factory=dict)


def read_split(file: Path) -> Table:
    """A CSV with the columns path and split, or group, or both. Raises PackError."""

    def check(names: Sequence[str]) -> None:
        if "path" not in names or not {"split", "group"} & set(names):
            raise PackError(
                f"{file} has the columns {', '.join(names)[:100]}; expected path, and split or group"
            )

    expected = "a CSV with the columns path and split, or path and group"
    rows = unique_by_path(read_table(file, expected, ("path", "split", "group"), check), file)
    splits = {}
    for path, row in rows.items():
        if (said := row.cells.get("split")) is not None:
            if not (split := SPLIT_WORDS.get(said.strip().lower())):
                what = f"has {said!r} as the split in line {row.number}"
                raise PackError(f"{file} {what}; expected {', '.join(SPLITS)}")
            splits[path] = split
    groups = {path: row.cells["group"].strip() for path, row in rows.items() if "group" in row.cells}
    return Table(file, splits, groups)


def assign(
    kept: Sequence[Kept], classes: Sequence[str], asked: Options, split_by: str = "as the folders say"
) -> Assigned:
    """A split for every image: as a table or the source says, or drawn. Raises PackError.

    A drawn split is stratified by class, and a pure function of seed, content and groups: file names play no
    other part. Of a split that is given without val, the images of train are drawn from for it. split_by: how
    the splits of the source came about.
    """
    table, paths = asked.table, [source.path for source, _ in kept]
    if table:
        table.check(paths)
    said = table.splits if table else {}
    given = [said.get(path, source.split) for path, (source, _) in zip(paths, kept, strict=True)]
    groups, notes = _groups([source for source, _ in kept], asked)
    shares = {"test": asked.test, "val": asked.val}
    if drawn := not any(given):
        how = f"drawn by seed {asked.seed}: {asked.val:g} of each class for val, {asked.test:g} for test"
    else:
        given = [split or "train" for split in given]
        _check_shared(given, [classes[source.label] for source, _ in kept])
        how = f"as {as_text(table.file.name)} says" if table and said else split_by
        shares = {} if "val" in given or not asked.val else {"val": asked.val}
        notes += _say_unused(asked, given, shares, how)
        how += (
            f"; val is {asked.val:g} of each class, drawn from train by seed {asked.seed}" if shares else ""
        )
    families = _families(kept, groups, asked.background)
    stratified = _Stratified(kept, given, families, bool(any(groups)), asked.seed)
    splits = stratified(shares)
    if any(groups):
        how += f"; images of a group together ({len({*groups} - {''}):,} groups)"
        notes += _say_far(splits, shares) if drawn else ()
    elif drawn and (hint := _series(paths, [source.label for source, _ in kept])):
        notes.append(hint)
    notes += _say_crossing(families, given, paths)
    missing = dict(_missing(splits, classes, stratified, shares))
    notes += [f"{split} has {text}" for split, text in missing.items()]
    empty = {split: text for split, text in missing.items() if split not in splits}
    return Assigned(splits, _numbers(families, len(kept)), how, tuple(notes), empty)


def _check_shared(splits: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a split without one class of train, as where train's are names and test's numbers."""
    of = {
        split: sorted({name for each, name in zip(splits, names, strict=True) if each == split})
        for split in SPLITS
    }
    for split in HELD_OUT:
        if of["train"] and of[split] and not {*of["train"]} & {*of[split]}:
            few, other = (", ".join(of[each][:NAMED]) for each in ("train", split))
            what = f"train and {split} have no class in common: train has {few}, and {split} has {other}"
            raise PackError(f"{what}; expected the same names in both")


def _groups(sources: Sequence[Sample], asked: Options) -> tuple[list[str], list[str]]:
    """The group of each image, "" for none; and what is to be said of it. Raises PackError."""
    paths = [source.path for source in sources]
    own = {source.path: source.group for source in sources if source.group}
    named = asked.table.groups if asked.table and asked.table.groups else own
    if asked.group and any(named.values()):
        whose = "the source" if named is own else "--split"
        raise PackError(f"--group and the column group of {whose} both name groups; expected one of them")
    if not (asked.group or named):
        return [""] * len(paths), []
    if asked.group:
        found = [re.search(asked.group, path) for path in paths]
        groups = ["\0".join(map(str, each.groups() or [each[0]])) if each else "" for each in found]
    else:
        groups = [named.get(path, "") for path in paths]
    alone = [path for path, group in zip(paths, groups, strict=True) if not group]
    whose = f"--group {asked.group!r}" if asked.group else "the column group"
    if not (asked.group or any(groups)):
        return groups, [f"{whose} is blank in every line, so no groups are named"]
    if len(alone) == len(paths):
        todo = "expected it to match a part of each image's path in the folder"
        raise PackError(f"{whose} names no group, for example none for {paths[0]!r}; {todo}")
    if len({*groups} - {""}) == len(paths) - len(alone):
        return [""] * len(paths), [f"{whose} groups nothing: every image is a group of its own"]
    if not alone:
        return groups, []
    said = f"{whose} names no group for {len(alone):,} of {len(paths):,} images, {alone[0]} for example"
    return groups, [f"{said}: each of them is a group of its own"]


@dataclass(frozen=True)
class _Family:
    """What stays in one split. rows: of the images. trains: two classes claim one picture of it."""

    rows: list[int]
    trains: bool


def _families(kept: Sequence[Kept], groups: Sequence[str], background: str) -> list[_Family]:
    """Twins, exact and near, and images of one group: what hangs together, directly or through others."""
    closeup = closeup_reader(lambda index: kept[index][0].file, background=background)
    twins = find_twins([info for _, info in kept], closeup)
    parents = twins.groups()
    of_twins, first = parents.tolist(), dict[str, int]()
    for row, group in enumerate(groups):
        if group:
            join(parents, row, first.setdefault(group, row))
    labels: dict[int, set[int]] = defaultdict(set)
    rows: dict[int, list[int]] = defaultdict(list)
    for row, (twin, root) in enumerate(zip(of_twins, find_roots(parents).tolist(), strict=True)):
        labels[twin].add(kept[row][0].label)
        rows[root].append(row)
    return [_Family(each, any(len(labels[of_twins[row]]) > 1 for row in each)) for each in rows.values()]


def _numbers(families: Sequence[_Family], images: int) -> list[int]:
    """See `Assigned.families`: numbered in the order of their first images."""
    found = [-1] * images
    for number, family in enumerate(each for each in families if len(each.rows) > 1):
        for row in family.rows:
            found[row] = number
    return found


@dataclass(frozen=True)
class _Stratified:
    """A random split, stratified by class. given: what a person said, "" for none. grouped: by groups too."""

    kept: Sequence[Kept]
    given: Sequence[str]
    families: Sequence[_Family]
    grouped: bool
    seed: int

    def __call__(self, shares: Mapping[str, float]) -> list[str]:
        """train, val or test for every image. shares: of each class, for the splits that are drawn.

        Images are sorted by sha256(seed, content). A picture that two classes claim is for training, because
        a wrong label would measure wrongly.
        """
        splits = [split or "train" for split in self.given]
        free = [
            each
            for each in self.families
            if shares and not each.trains and {splits[row] for row in each.rows} == {"train"}
        ]
        if not free:
            return splits
        sizes = Counter(self.label(row) for row, split in enumerate(splits) if split == "train")
        room = _wanted(sizes, shares)
        free.sort(key=lambda family: min(map(self._key, family.rows)))
        counts = [Counter(map(self.label, family.rows)) for family in free]
        places = _nearest(counts, sizes, room) if self.grouped else _first_fit(counts, room)
        for family, place in zip(free, places, strict=True):
            for row in family.rows:
                splits[row] = place
        return splits

    def label(self, row: int) -> int:
        """Of an image."""
        return self.kept[row][0].label

    def _key(self, row: int) -> bytes:
        return hashlib.sha256(f"{self.seed}:{self.kept[row][1].sha256}".encode()).digest()


Room: TypeAlias = dict[str, Counter[int]]
"""Images wanted in each held-out split, by label."""


def _wanted(sizes: Mapping[int, int], shares: Mapping[str, float]) -> Room:
    """The shares of each class in whole images: test first, and one at least is left for training."""
    room: Room = {split: Counter() for split in HELD_OUT}
    for label, size in sizes.items():
        left = size - 1
        for split in HELD_OUT:
            room[split][label] = min(round(shares.get(split, 0.0) * size), left)
            left -= room[split][label]
    return room


def _first_fit(families: Sequence[Counter[int]], room: Room) -> list[str]:
    """Each family, of one class, in the first split with room for all of it."""
    left = {split: room[split].copy() for split in HELD_OUT}
    places = []
    for family in families:
        fits = (split for split in HELD_OUT if all(left[split][label] >= n for label, n in family.items()))
        place = next(fits, "train")
        if place in left:
            left[place].subtract(family)
        places.append(place)
    return places


def _nearest(families: Sequence[Counter[int]], sizes: Mapping[int, int], room: Room) -> list[str]:
    """Each family in the split that brings every class's shares nearest, until no move and no swap helps.

    Nearest: the least sum of squared differences in images, each divided by its class's size. Every class
    keeps an image in train.
    """
    held = {label: sum(room[split][label] for split in HELD_OUT) for label in sizes}
    wanted = room | {"train": Counter({label: sizes[label] - held[label] for label in sizes})}
    counts = {"train": Counter(sizes)} | {split: Counter[int]() for split in HELD_OUT}
    places = ["train"] * len(families)

    def move(place: int, there: str) -> float:
        """Move one; how much farther that is."""
        here, change = places[place], 0.0
        for label, images in families[place].items():
            for split, by in ((here, -images), (there, images)):
                off = counts[split][label] - wanted[split][label]
                change += ((off + by) ** 2 - off**2) / sizes[label]
                counts[split][label] += by
        places[place] = there
        emptied = here == "train" and not all(counts["train"][label] for label in families[place])
        return float("inf") if emptied else change

    def keep(moves: Sequence[tuple[int, str]]) -> bool:
        """Make the moves, and take them back unless they bring the shares nearer."""
        before = [(place, places[place]) for place, _ in moves]
        nearer = sum(move(*each) for each in moves) < -1e-9
        if not nearer:
            for each in before:
                move(*each)
        return nearer

    few = len(families) if len(families) <= SWAPPED else 0
    changed = True
    while changed:
        changed = False
        for one, split in itertools.product(range(len(families)), (*HELD_OUT, "train")):
            changed |= places[one] != split and keep([(one, split)])
        for one in range(0 if changed else few):
            for other in range(one):
                if places[one] != places[other]:
                    changed |= keep([(one, places[other]), (other, places[one])])
    return places


def _say_unused(asked: Options, given: Sequence[str], drawn: Collection[str], how: str) -> Iterator[str]:
    """Shares that a person asked for, of splits that are given."""
    for split in HELD_OUT:
        share, default = getattr(asked, split), getattr(type(asked), split)
        if split not in drawn and share != default and (share or split in given):
            yield f"--{split} {share:g} changes nothing: the split is {how}"


def _say_far(splits: Sequence[str], shares: Mapping[str, float]) -> Iterator[str]:
    got = {split: splits.count(split) / len(splits) for split in shares}
    far = [split for split in shares if abs(got[split] - shares[split]) > FAR]
    if far:
        parts = " and ".join(
            f"{split} has {got[split]:.2f} of all images, not {shares[split]:g}" for split in far
        )
        yield f"with whole groups, {parts}"


def _say_crossing(families: Sequence[_Family], given: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    """What lies on both sides of a person's split."""
    crossing = [each.rows for each in families if len({given[row] for row in each.rows}) > 1]
    if crossing:
        one = crossing[0][0]
        other = next(row for row in crossing[0] if given[row] != given[one])
        pair = f"{paths[one]} in {given[one]} and {paths[other]} in {given[other]}"
        what = f"{len(crossing):,} pictures or groups lie in more than one split, as {pair}"
        yield f"{what}: what is measured on them is too good"


def _missing(
    splits: Sequence[str], classes: Sequence[str], stratified: _Stratified, shares: Mapping[str, float]
) -> Iterator[tuple[str, str]]:
    """Each split that lacks classes, unless it was to be empty: which, why, and the share that would help."""
    labels = [source.label for source, _ in stratified.kept]
    images = Counter(labels)
    units = Counter(label for each in stratified.families for label in {labels[row] for row in each.rows})
    there = {name: {labels[row] for row, at in enumerate(splits) if at == name} for name in SPLITS}
    hinted = dict(shares)  # a hint must hold beside the one before it
    for split in SPLITS:
        asked = shares.get(split, None if any(stratified.given) else 0.0)
        lacking = sorted((images.keys() if asked is None else there["train"]) - there[split])
        if not lacking or asked == 0:
            continue
        if asked is None and not there[split]:
            yield split, f"no image: {_GIVEN}"
            continue
        sizes = {label: images[label] for label in lacking}
        named = [
            f"{classes[label]} ({_say_images(size, units[label])})"
            for label, size in [*sizes.items()][:NAMED]
        ]
        more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
        why, hinted = (_GIVEN, hinted) if asked is None else _remedy(split, sizes, stratified, hinted)
        if not why:
            beside = [f"--{name} {share:g}" for name, share in hinted.items() if share != shares[name]]
            why = f"no --{split} gives them one{' beside '.join(['', *beside])}, because "
            if any(stratified.given):
                why += "train, as you gave it, has none to spare"
            elif any(units[label] < size for label, size in sizes.items()):
                why += "images that look alike, or are of one group, stay together"
            else:
                why += "they are too few"
        yield split, f"no image of {', '.join(named)}{more}: {why}"


def _say_images(images: int, units: int) -> str:
    """How many images a class has, and in how many parts a split can take them."""
    said = "1 image" if images == 1 else f"{images} images"
    if units == images:
        return said
    return f"{said}, kept together" + (f" in {units} sets" if units > 1 else "")


_GIVEN: Final = "the split that you gave has none"


def _remedy(
    split: str, sizes: Mapping[int, int], stratified: _Stratified, shares: dict[str, float]
) -> tuple[str, dict[str, float]]:
    """The least share tried with which most of the classes that lack an image have one; "" if none does.

    sizes: images of each of those classes, by label. A share that takes a class out of another split is
    not taken. Returns also the shares with it.
    """

    def labels(splits: Sequence[str], name: str) -> set[int]:
        return {stratified.label(row) for row, at in enumerate(splits) if at == name}

    now = stratified(shares)
    least = min((size for size in sizes.values() if size > 1), default=1)
    others = sum(share for name, share in shares.items() if name != split)
    tried = {-(-100 // least) / 100, 0.25, 0.3, 0.4, 0.5}
    most, best, hinted = 0, "", shares
    for share in sorted(each for each in tried if shares[split] < each <= 0.5 and each + others < 1):
        found = stratified({**shares, split: share})
        gained = len(labels(found, split).intersection(sizes))
        if gained > most and all(
            labels(found, name) >= labels(now, name) for name in shares if name != split
        ):
            who = "each" if gained == len(sizes) else f"{gained:,} of them"
            most, hinted = gained, shares | {split: share}
            best = (
                f"{shares[split]:g} of so few is none; pack with --{split} {share:g}, which gives {who} one"
            )
        if most == len(sizes):
            break
    return best, hinted


def _series(paths: Sequence[str], labels: Sequence[int]) -> str:
    """A hint where names look as if several pictures show one thing: dog12_1.jpg, dog12_2.jpg, dog13_1.jpg.

    Chosen to be silent rather than wrong: the numbers begin anew in each series, as a camera's do not; most
    images are in a series; a class has several. It is a guess from names alone.
    """
    series: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
    for path, label in zip(paths, labels, strict=True):
        if found := re.fullmatch(r"(.*/)?([^/]*\d[^/]*?)([-_ .])\(?(\d{1,6})\)?\.\w+", path):
            series[label, found[2]].append((path, found[4]))
    some = {key: each for key, each in series.items() if len(each) > 1}
    inside = [number for each in some.values() for _, number in each]
    several = len(some) >= 2 * len({label for label, _ in some})
    if len(some) < 4 or not several or 2 * len(inside) < len(paths) or 2 * len({*inside}) > len(inside):
        return ""
    one, other = (path for path, _ in next(iter(some.values()))[:2])
    separator = next(each for each in reversed(one.rpartition(".")[0]) if each in "-_ .").replace(".", r"\.")
    guess = f"names such as {one} and {other} look like series of one thing each (a guess)"
    return f"{guess}; to keep each in one split, name groups: --group '(.*){separator}'"
