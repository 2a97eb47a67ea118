"""Fuzz: the readers of `fuzzed`, with inputs that atheris mutates towards code that no input reached before.

    python tests/fuzz.py --minutes 13        (make fuzz MINUTES=13)

Before it: `fuzzed` draws the first inputs. After it: one JSON line a target, the corpus and every input that broke a
reader under `fuzz/`, and exit code 0 only if there is none. Not a test that `make test` runs; it needs `[fuzz]`.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fuzzed import Target

INSTRUMENTED: Final = ["greyhound", "json", "csv", "zipfile", "PIL"]
"""Packages whose branches count as coverage, each imported by the targets and not before."""
LIMIT: Final = 60
"""Seconds for one input, after which it counts as a hang."""
MEMORY: Final = 6000
"""MiB for one process."""


@dataclass(frozen=True)
class Fuzz:
    """How long, and which readers."""

    minutes: float = 13.0
    """Of all targets together."""
    targets: tuple[str, ...] = ()
    """Names in `fuzzed.TARGETS`; all where none is named."""
    folder: Path = Path("fuzz")
    """Where corpora and findings are kept; the next time goes on from there."""


def main() -> int:
    """Each target in a process of its own, one after the other."""
    targets = import_targets()
    from greyhound.cache.cli import read_or_exit
    from greyhound.cache.options import read_options

    fuzz = read_or_exit(lambda: read_options(Fuzz, sys.argv[1:], "python tests/fuzz.py"))
    unknown = set(fuzz.targets) - set(targets)
    if unknown:
        raise SystemExit(f"there is no target {min(unknown)!r}; expected some of {', '.join(targets)}")
    chosen = fuzz.targets or tuple(targets)
    seconds = round(60 * fuzz.minutes / len(chosen))
    findings = [disturb(fuzz.folder / name, targets[name], seconds) for name in chosen]
    return 1 if any(findings) else 0


def import_targets() -> dict[str, Target]:
    """The targets, instrumented: what INSTRUMENTED names must not be imported before."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from fuzzed import TARGETS
    absent = [name for name in INSTRUMENTED if name not in sys.modules]
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in INSTRUMENTED}
    plain = [name for name, module in ours.items() if type(module.__loader__) is SourceFileLoader]
    if absent or plain:
        raise SystemExit(f"not instrumented: {', '.join(absent + plain)}")
    return TARGETS


def disturb(folder: Path, target: Target, seconds: int) -> list[str]:
    """Fuzz one target for so long, or until something breaks it; prints what came of it, and returns the findings.

    folder: of the target; gets `corpus`, `findings`, and what libFuzzer said in `log`.
    """
    import json  # not before the targets: its branches count too

    for name in ("corpus", "findings"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=work, args=(folder, target, seconds))
    child.start()
    child.join()
    said = (folder / "log").read_text(errors="replace")
    units = re.search(r"stat::number_of_executed_units:\s+(\d+)", said)
    findings = sorted(str(file) for file in (folder / "findings").iterdir())
    if child.exitcode:
        print(said[-4000:], file=sys.stderr)
        findings = findings or [str(folder / "log")]
    result = {
        "target": folder.name,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - started),
        "executions": int(units[1]) if units else 0,
        "corpus": len(list((folder / "corpus").iterdir())),
        "findings": findings,
    }
    print(json.dumps(result), flush=True)
    return findings


def work(folder: Path, target: Target, seconds: int) -> None:
    """The child: hand the process over to libFuzzer, which ends it."""
    import atheris

    os.dup2(os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
    place = Path(tempfile.mkdtemp(prefix="greyhound-fuzz-"))
    (place / "seeds").mkdir()
    for seed in target.seeds(place / "seeds"):
        (folder / "corpus" / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    (place / "read").mkdir()
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={LIMIT}",
        f"-report_slow_units={LIMIT}",
        f"-rss_limit_mb={MEMORY}",
        f"-artifact_prefix={folder / 'findings'}/",
        "-print_final_stats=1",
    ]

    def attempt(data: bytes) -> None:
        try:
            target.attempt(place / "read", data)
        except BaseException:
            (folder / "findings" / hashlib.sha1(data).hexdigest()).write_bytes(data)
            raise

    atheris.Setup([__file__, *options, str(folder / "corpus")], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
