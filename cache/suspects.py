"""Label suspects: images whose label another class explains better, as review.py wrote them down.

Before it: review.py, which needs a network and therefore runs as a child process. After it: the survey marks its rows,
and its page shows each suspect with its nearest neighbours in both classes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from greyhound.cache.cli import from_json
from greyhound.cache.findings import FINDINGS, Row
from greyhound.cache.store import PackError

REVIEW: Final = "labels.json"
"""The review's file beside survey.csv."""
PROGRAM: Final = Path(__file__).resolve().parent.parent / "review.py"


@dataclass(frozen=True)
class Neighbour:
    """An image that looks alike. path: as in the ranking. cosine: of the two images' features, -1..1."""

    path: str
    cosine: float


@dataclass(frozen=True)
class Ranked:
    """One image, as a network sees it that was not fitted to it.

    path: as in the pack. likelier: the likeliest class beside the label. probability: of the label; the ranking is by
    this, ascending. suspect: whether it is above the cut; only then it has neighbours, the nearest first, of its own
    label and of the likelier class, and, from a trained run, a saliency map, JPEG in base64. sha256: of the pack's bytes.
    """

    path: str
    label: str
    likelier: str
    probability: float
    likelier_probability: float
    suspect: bool
    of_label: tuple[Neighbour, ...] = ()
    of_likelier: tuple[Neighbour, ...] = ()
    saliency: str = ""
    sha256: str = ""

    @property
    def reason(self) -> str:
        """In words for a person."""
        return (
            f"labelled {self.label} (probability {self.probability:.3f}), "
            f"looks like {self.likelier} ({self.likelier_probability:.3f})"
        )


@dataclass(frozen=True)
class Review:
    """Every image that could be ranked, the most suspicious first.

    judge: what ranked them, in words. accuracy: of that judge, on these images. not_ranked: how many images it was
    fitted to, about which it can therefore say nothing.
    """

    judge: str
    accuracy: float
    not_ranked: int
    ranking: tuple[Ranked, ...]

    @property
    def suspects(self) -> list[Ranked]:
        """Those above the cut, the most suspicious first."""
        return [image for image in self.ranking if image.suspect]


def check(run: Path | None) -> None:
    """Find out before the images are looked at, which takes long, that they can be reviewed. Raises PackError."""
    require_cleanlab()
    if run is not None and not run.is_dir():
        raise PackError(f"--run {run} is no folder; expected a run folder, as train.py makes it")


def require_cleanlab() -> None:
    """Find out, before anything that takes long, that labels can be reviewed at all. Raises PackError."""
    if find_spec("cleanlab") is None:
        raise PackError("cleanlab is not installed, which finds wrong labels; pip install -e .[review]")


def review_labels(out: Path, pack: Path, run: Path | None = None) -> int:
    """Start review.py on a pack, or instead on what `run` was trained with; its exit code, 0 when `out` is written.

    A code below 0 is the signal that ended it. Its progress, and its one line where something is missing, are on our
    standard error.
    """
    source = ["--pack", str(pack)] if run is None else ["--run", str(run)]
    command = [sys.executable, str(PROGRAM), *source, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:  # let it take away what is its own
            child.terminate()
            child.wait()
            raise


def describe_end(code: int) -> str:
    """In words, how a review ended that was killed."""
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = ", as it is where memory runs out" if name == "SIGKILL" else ""
    return f"the review of the labels was ended by {name}{why}: no label suspects; the other findings are complete"


def read_review(file: Path) -> Review:
    """What review.py wrote. Raises PackError."""
    again = "make it again: greyhound review --images IMAGES --out FILE"
    try:
        return from_json(Review, json.loads(file.read_text(encoding="utf-8")), str(file), partly=True)
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); {again}") from None
    except (ValueError, RecursionError) as error:
        raise PackError(f"{file} is no review of labels ({error}); {again}") from None


def bring_home(review: Review, rows: Iterable[Row]) -> Review:
    """Of the review the suspects that a survey has, under their paths there, told by content.

    A run's pack may have been made of another folder than the one that was surveyed. A picture that was packed as PNG has
    no content in common with its file, and is known by its path. Neighbours that the survey does not have are left out.
    """
    near = {other.path for image in review.suspects for other in (*image.of_label, *image.of_likelier)}
    homes = _find_homes([image for image in review.ranking if image.suspect or image.path in near], rows)

    def move(others: Iterable[Neighbour]) -> tuple[Neighbour, ...]:
        return tuple(replace(other, path=homes[other.path]) for other in others if other.path in homes)

    moved = (
        replace(
            image,
            path=homes[image.path],
            of_label=move(image.of_label),
            of_likelier=move(image.of_likelier),
        )
        for image in review.suspects
        if image.path in homes
    )
    return replace(review, ranking=tuple(moved))


def _find_homes(images: Sequence[Ranked], rows: Iterable[Row]) -> dict[str, str]:
    """The path in a survey of each image that it has: its own path, or a file of its content, best one of its class."""
    by_path = {image.path: image for image in images}
    contents = {image.sha256 for image in images} - {""}
    homes: dict[str, str] = {}
    copies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        image = by_path.get(row.path)
        if image and (image.sha256 in ("", row.sha256) or "transcoded" in row.findings):
            homes[row.path] = row.path
        if row.sha256 in contents:
            copies[row.sha256].append(row)
    for image in images:
        found = sorted(copies[image.sha256], key=lambda row: row.label != image.label)
        if image.path not in homes and found:
            homes[image.path] = found[0].path
    return homes


def mark(rows: Iterable[Row], review: Review) -> Iterator[Row]:
    """The rows of a survey, with the suspects marked; a person decides, so the verdict stays."""
    suspects = {image.path: image for image in review.suspects}
    return (_marked(row, suspects[row.path]) if row.path in suspects else row for row in rows)


def _marked(row: Row, image: Ranked) -> Row:
    return replace(
        row,
        findings=tuple(name for name in FINDINGS if name in (*row.findings, "label-suspect")),
        reason="; ".join(filter(None, (row.reason, image.reason))),
    )
