"""The command line of the room: greyhound demo | survey | pack | info | verify.

Functions import what they need: `--help` and a slip are answered before anything slow is loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final, Literal

from greyhound.cache.cli import note, progress_bar, run
from greyhound.cache.options import check_command, read_call


def demo(out: Path, classes: int = 12, per_class: int = 60, seed: int = 0) -> int:
    """Draw a synthetic fine-grained data set: cartoon dogs, with planted faults and their ground truth.

    Args:
        out: The folder to make; one subfolder a breed, truth.csv and boxes.csv.
        classes: Breeds to draw.
        per_class: Images of each breed.
        seed: Another seed draws other dogs.
    """
    from greyhound.cache.demo.faults import draw_demo

    with progress_bar("drawing") as update:
        found = draw_demo(out, classes, per_class, seed, update)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(found.items()))
    print(f"{out}: {classes * per_class} images of {classes} breeds; planted: {faults or 'no faults'}")
    return 0


def survey(images: Path, out: Path) -> int:
    """Look at every image once, and write down what a careful eye would find, with a page to decide on it.

    Into OUT: survey.csv, every image and its findings; excluded.csv, for pack --exclude; survey.html, the
    page. Afterwards, greyhound review --images IMAGES --survey OUT looks for wrong labels, and adds them to
    all three.

    Args:
        images: The folder, with one subfolder a class; without labels, images alone will do.
        out: The folder to write to, outside of it.
    """
    from greyhound.cache import show
    from greyhound.cache.survey import page, table
    from greyhound.cache.survey.findings import inspect
    from greyhound.cache.twins import LOOKED_AT

    table.check_place(images, out)

    def crowded(count: int) -> None:
        where = f"near twins were sought among the {LOOKED_AT} most alike"
        note(f"{count:,} images look like {LOOKED_AT} others or more from afar: {where}")

    with progress_bar("looking at every image") as update, inspect(images, update, crowded, note) as rows:
        table.write(rows, out)
    found = table.Rows(out / "survey.csv")
    replaced = page.is_of_another(out / "survey.html", images)
    page.draw(found, images, out)
    note(f"{out} replaces the survey of another folder that was there" if replaced else "")
    show.summarise(found, out)
    return 0


def pack(
    source: Path,
    out: Path,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    grayscale: Literal["auto", "keep", "exclude", "exclude-tinted"] = "auto",
    duplicates: Literal["exclude", "keep"] = "exclude",
    exclude: Path | None = None,
    decisions: Path | None = None,
    shards: int = 1,
    group: str | None = None,
    split: Path | None = None,
    background: str | None = None,
    label: str = "",
    class_order: str = "",
    class_names: Literal["auto", "as-is"] = "auto",
) -> int:
    """Pack labelled photographs, SOURCE/CLASS/image.jpg or what lists them, into one file or several.

    Args:
        source: A folder with one subfolder a class, a manifest, tars or Parquet files; see docs/data.md.
        out: The pack to write.
        val: Share of each class held out for validation, 0 to below 1.
        test: Share of each class held out for the final test, 0 to below 1.
        seed: Another seed makes another split.
        grayscale: Leave out images without colour; auto: where they are few; exclude-tinted: tinted ones too.
        duplicates: Leave out copies of a file, all of them where their classes differ.
        exclude: A CSV with the columns path and reason: images to leave out; default: none.
        decisions: The decisions.csv that the survey's page saved; default: none.
        background: Colour under transparent pixels, as #808080; predictions use the same; default: white.
        shards: Files to divide the pack into, OUT-00000-of-00004 and so on; name them all as OUT.
        group: A pattern on the path, as in '(.*)_': images that match alike, in its brackets, share a split.
        split: A CSV of your own with the columns path and split, or path and group; default: none.
        label: The column of the classes in a manifest or Parquet file, or the field in a tar's .json.
        class_order: sorted, natural, or a file that lists the classes; default: sorted ignoring case.
        class_names: auto calls a class Chihuahua where all are named as n02085620-Chihuahua.
    """
    from greyhound.cache import pack as packing
    from greyhound.cache import show
    from greyhound.cache.scan import WHITE
    from greyhound.cache.selection import read_decisions, read_exclusions
    from greyhound.cache.source import SourceOptions
    from greyhound.cache.split import read_split
    from greyhound.cache.store import Pack

    options = packing.Options(
        val=val,
        test=test,
        seed=seed,
        grayscale=grayscale,
        duplicates=duplicates,
        exclude=read_exclusions(exclude) if exclude else {},
        exclude_file=str(exclude),
        decisions=read_decisions(decisions) if decisions else [],
        shards=shards,
        group=group,
        table=read_split(split) if split else None,
        background=WHITE if background is None else background,
        source=SourceOptions(label, class_order, class_names),
    )
    old = show.name_old(out)
    with progress_bar("looking at every image") as update:
        packing.pack(source, out, options, update)
    note(old and f"{out} replaces {old}")
    show.describe(Pack(out), most=50)
    return 0


def info(pack: Path, files: bool = False, json_: bool = False, export: Path | None = None) -> int:
    """Say what is in a pack.

    Args:
        pack: The pack.
        files: List every file that was left out, with its reason, that was relabelled, or stored as PNG.
        json_: Print it as JSON, and nothing else.
        export: A new folder to write the images to, byte for byte, as SPLIT/CLASS/image.jpg; default: none.
    """
    from greyhound.cache import show
    from greyhound.cache.store import Pack

    opened = Pack(pack)
    if export:
        from greyhound.cache.unpack import unpack

        with progress_bar("writing images") as update:
            unpack(opened, export, update)
        show.say_unpacked(opened, export)
    elif json_:
        print(json.dumps(opened.summary(thumbnails=False), indent=1))
    else:
        show.describe(opened, None if files else 0)
    return 0


def verify(pack: Path) -> int:
    """Check every image of a pack against its checksum; exit code 1 if any is corrupt.

    Args:
        pack: The pack.
    """
    from greyhound.cache.store import Pack

    opened = Pack(pack)
    corrupt = opened.corrupt()
    for index in corrupt:
        print(f"corrupt: {opened.describe(index)}")
    print(f"{pack}: {len(opened) - len(corrupt)} of {len(opened)} images are as they were packed")
    return 1 if corrupt else 0


COMMANDS: Final = {command.__name__: command for command in (demo, survey, pack, info, verify)}


def main() -> int:
    """Run the command that the command line names. The exit code."""
    name = next(iter(sys.argv[1:]), "--help")
    if name in ("-h", "--help"):
        print(f"usage: greyhound {{{','.join(COMMANDS)}}} ...; greyhound --help says what each is for")
        return 0
    check_command(name, list(COMMANDS))
    return read_call(COMMANDS[name], sys.argv[2:], f"greyhound {name}")()


if __name__ == "__main__":
    run(main)
