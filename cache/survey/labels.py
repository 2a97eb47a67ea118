"""Label issues: images whose label another class explains better, as the review finds them.

Before it: the review, which needs a network. After it: it marks the rows of a survey, and the page
shows each issue with its nearest neighbours in both classes.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from greyhound.cache.classes import label_order
from greyhound.cache.cli import plain
from greyhound.cache.folder import Sample, find_file
from greyhound.cache.pack import Options, write
from greyhound.cache.scan import ImageInfo, Progress
from greyhound.cache.selection import FINDINGS
from greyhound.cache.store import PackError
from greyhound.cache.survey.table import Row, Rows


@dataclass(frozen=True)
class Neighbour:
    """An image that looks alike. path: as in the ranking. cosine: of the two images' features, -1..1."""

    path: str
    cosine: float


@dataclass(frozen=True)
class Ranked:
    """One image, as a network sees it that was not fitted to it.

    path: as in the pack. likelier: the likeliest class beside the label. probability: of the label, by which
    images are ranked. is_issue: whether it is above the cut; only then it has neighbours of either class, the
    nearest first, and, from a trained run, a saliency map, JPEG in base64. sha256: of the pack's bytes.
    """

    path: str
    label: str
    likelier: str
    probability: float
    likelier_probability: float
    is_issue: bool
    of_label: tuple[Neighbour, ...] = ()
    of_likelier: tuple[Neighbour, ...] = ()
    saliency: str = ""
    sha256: str = ""

    @property
    def reason(self) -> str:
        """In words for a person."""
        looks = f"looks like {self.likelier} ({self.likelier_probability:.3f})"
        return f"labelled {self.label} (probability {self.probability:.3f}), {looks}"


@dataclass(frozen=True)
class Review:
    """Every image that could be ranked, the most suspicious first.

    judge: what ranked them, in words. accuracy: of that judge, on these images. not_ranked: how many images
    it was fitted to.
    """

    judge: str
    accuracy: float
    not_ranked: int
    ranking: tuple[Ranked, ...]

    @property
    def label_issues(self) -> list[Ranked]:
        """Those above the cut, the most suspicious first."""
        return [image for image in self.ranking if image.is_issue]

    def describe(self, most: int = 10) -> list[str]:
        """What was found, in lines for the terminal, with at most so many label issues."""
        issues, images = self.label_issues, len(self.ranking)
        agreed = f"of which the judge takes {self.accuracy:.3f} for what their label says"
        lines = [f"judge: {self.judge}", f"{len(issues)} label issues among {images} images, {agreed}"]
        if self.not_ranked:
            seen = "the run has seen them and their labels"
            lines.append(f"{self.not_ranked} training images are not ranked: {seen}")
        lines += [plain(f"  {image.path}: {image.reason}") for image in issues[:most]]
        return lines + ([f"  ... and {len(issues) - most} more"] if len(issues) > most else [])


def with_survey_paths(review: Review, rows: Iterable[Row]) -> Review:
    """Of the review the label issues and neighbours that a survey has, under their paths there.

    A run's pack may have been made of another folder: images are told by content. One that was packed as PNG
    has not the content of its file, and is told by its path.
    """
    near = {other.path for image in review.label_issues for other in (*image.of_label, *image.of_likelier)}
    images = {image.path: image for image in review.ranking if image.is_issue or image.path in near}
    contents = {image.sha256 for image in images.values()} - {""}
    homes: dict[str, str] = {}
    copies: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        image = images.get(row.path)
        if image and (image.sha256 in ("", row.sha256) or "transcoded" in row.findings):
            homes[row.path] = row.path
        if row.sha256 in contents:
            copies[row.sha256].append(row)
    for path, image in images.items():
        found = sorted(copies[image.sha256], key=lambda row: row.label != image.label)
        if path not in homes and found:
            homes[path] = found[0].path

    def move(others: Iterable[Neighbour]) -> tuple[Neighbour, ...]:
        return tuple(replace(other, path=homes[other.path]) for other in others if other.path in homes)

    moved = [replace(one, path=homes[one.path]) for one in review.label_issues if one.path in homes]
    moved = [replace(one, of_label=move(one.of_label), of_likelier=move(one.of_likelier)) for one in moved]
    return replace(review, ranking=tuple(moved))


def mark_label_issues(rows: Iterable[Row], review: Review) -> Iterator[Row]:
    """The rows of a survey, with the label issues marked; a person decides, so the verdict stays."""
    issues = {image.path: image for image in review.label_issues}
    for row in rows:
        if image := issues.get(row.path):
            findings = tuple(name for name in FINDINGS if name in (*row.findings, "label-issue"))
            row = replace(row, findings=findings, reason="; ".join(filter(None, (row.reason, image.reason))))
        yield row


def pack_surveyed(images: Path, survey: Path, out: Path, progress: Progress) -> None:
    """Pack all valid images of the class folders, by what the survey found. Raises PackError."""
    unusable = {"undecodable", "truncated", "bomb"}
    rows = [row for row in Rows(survey / "survey.csv") if row.label and not unusable & set(row.findings)]
    classes = sorted({row.label for row in rows}, key=label_order)
    if len(classes) < 2:
        raise PackError(f"{survey} has {len(classes)} class folders with images; expected at least 2")
    numbers = {name: number for number, name in enumerate(classes)}
    sources = [Sample(find_file(images, row.path), row.path, numbers[row.label]) for row in rows]
    infos = map(_reread, sources, rows)
    write(
        sources,
        tuple(classes),
        out,
        Options(grayscale="keep", duplicates="keep"),
        progress,
        split="train",
        infos=infos,
    )


def _reread(source: Sample, row: Row) -> ImageInfo:
    """What the survey's scan found of a file. Raises PackError where it is another file now."""
    try:
        data = source.file.read_bytes()
    except OSError as error:
        raise PackError(f"{source.file} cannot be read ({error.strerror}); survey the folder again") from None
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise PackError(f"{source.file} changed since the survey; survey the folder again")
    names = ("width", "height", "orientation", "mean_luma", "sha256")
    measured = {name: getattr(row, name) for name in names}
    transcode = row.reason if "transcoded" in row.findings else ""
    return ImageInfo(**measured, crc32=zlib.crc32(data), transcode=transcode)
