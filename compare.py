"""Compare: run folders in, one page out that shows them side by side, and its answer on the terminal.

    greyhound compare runs/fast runs/fine --out compare.html

Before it: `greyhound train`, best with `greyhound eval` of each run. After it: a reader with a browser.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.machine import alone
from greyhound.cache.options import read_options


@dataclass(frozen=True)
class Job:
    """Show runs side by side on one page: what each reached, what differs, and where they disagree."""

    runs: tuple[Path, ...] = field(default=(), metadata={"bare": True})
    """Two run folders or more."""
    out: Path = Path("compare.html")
    """The page."""

    def __post_init__(self) -> None:
        """Refuse what cannot be compared. Raises ValueError."""
        if len(self.runs) < 2:
            inside = bool(self.runs) and any(self.runs[0].glob("*/recipe.json"))
            runs = f"{self.runs[0]}/*" if inside else "RUN RUN"
            raise ValueError(f"name two run folders or more: greyhound compare {runs} --out compare.html")


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: alone(read_options(Job, sys.argv[1:], "greyhound compare"), "compare"))

from greyhound.cache.cli import note, plain, run
from greyhound.model.report import compare


def main() -> None:
    """Write the page; print its answer."""
    page = compare.build(JOB.runs, JOB.out, "Runs side by side")
    if page.verdict:
        print(plain(page.verdict.replace("\N{NARROW NO-BREAK SPACE}", " ")))
    for line in page.notes:
        note(line)
    print(f"page: {page.path}")


if __name__ == "__main__":
    run(main)
