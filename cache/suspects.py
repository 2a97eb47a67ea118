"""Label suspects: images whose label another class explains better, as review.py wrote them down.

Before it: review.py, which needs a network and therefore runs as a child process. After it: the survey marks its rows,
and its page shows each suspect with its nearest neighbours in both classes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cache.findings import FINDINGS, Row
from cache.store import PackError
from cache.values import from_json

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

    path: relative to the images' folder. likelier: the likeliest class beside the label. probability: of the label;
    the ranking is by this, ascending. suspect: whether it is above the cut; only then it has neighbours, the nearest
    first, of its own label and of the likelier class, and, from a trained run, a saliency map, JPEG in base64.
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


def review_labels(images: Path, out: Path, run: Path | None = None) -> int:
    """Start review.py on the folder `images`, or on what `run` was trained with; its exit code, 0 when `out` is written.

    It packs the folder for itself and so looks at every file a second time: 24 of the 119 seconds of a processor that it
    takes for 3,629 crops (docs/log.md), for which a review stands alone and sees nothing but verified bytes. Its progress, and its one line where something is missing, are on our standard error.
    """
    source = ["--images", str(images)] if run is None else ["--run", str(run)]
    command = [sys.executable, str(PROGRAM), *source, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:  # let it take away what is its own
            child.terminate()
            child.wait()
            raise


def read_review(file: Path) -> Review:
    """What review.py wrote. Raises PackError."""
    again = "make it again: python review.py --images IMAGES --out FILE"
    try:
        return from_json(Review, json.loads(file.read_text(encoding="utf-8")), str(file))
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); {again}") from None
    except (ValueError, RecursionError) as error:
        raise PackError(f"{file} is no review of labels ({error}); {again}") from None


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
