"""Table: what a measurement found, as a table, a chart, JSON, the README's markdown, and beside an older one.

Before it: `measure`'s dictionary, fresh or from a file. After it: a reader.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from greyhound.cache.cli import ValueFormatError, from_json
from greyhound.pipelines.benchmark.measure import Result
from greyhound.pipelines.benchmark.rows import ROWS, BenchmarkError

_COLUMNS: Final = (
    "row", "images a second", "core-ms an image", "lowest to highest",
    "of decoding alone", "of torchvision's",
)  # fmt: skip


def _cells(result: dict[str, Any]) -> Iterator[list[str]]:
    """Each row's `_COLUMNS`: the last two are its cost as a share of another row's."""
    costs = {row["name"]: row["core_ms_per_image"] for row in result["rows"]}
    bases = [costs.get(base) for base in ("decode-only", "torchvision-pil")]
    for row in result["rows"]:
        cost, (low, high) = row["core_ms_per_image"], row["spread"]
        shares = [f"{cost / base:.2f}" if base else "-" for base in bases]
        speed, spread = f"{row['images_per_second']:.0f}", f"{low:.2f} to {high:.2f}"
        yield [row["name"], speed, f"{cost:.2f}", spread, *shares]


def report(result: dict[str, Any], file: Path | None = None, chart: Path | None = None) -> None:
    """Print the table, and as the last line the JSON; write that to `file`, and draw the chart.

    Raises BenchmarkError where a file cannot be written.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table()
    for column in (*_COLUMNS, "MiB", ""):
        table.add_column(column, justify="left" if column in ("row", "") else "right")
    for row, cells in zip(result["rows"], _cells(result), strict=True):
        table.add_row(*cells, f"{row['peak_mib']:.0f}", ROWS[row["name"]].note)
    for name, why in result["missing"].items():
        table.add_row(name, *["-"] * len(_COLUMNS), why)
    console.print(table)
    text = json.dumps(result) + "\n"
    console.file.write(text)  # before what may fail: a measurement takes minutes
    if file:
        try:
            file.write_text(text)
        except OSError as error:
            raise BenchmarkError(f"{file} cannot be written ({error.strerror}); name another file") from None
    if chart:
        draw(chart, result)


def draw(path: Path, result: dict[str, Any]) -> None:
    """Core-milliseconds an image of every loader as bars with their spread, cheapest on top; ours in blue."""
    from matplotlib.figure import Figure

    kinds = {name: row.kind for name, row in ROWS.items() if row.kind != "packing"}
    found = [row for row in result["rows"] if row["name"] in kinds]
    rows = sorted(found, key=lambda row: float(row["core_ms_per_image"]))
    names, costs = [row["name"] for row in rows], np.array([row["core_ms_per_image"] for row in rows])
    spreads = np.array([row["spread"] for row in rows]).reshape(-1, 2).T  # lowest and highest
    colours = {"ours": "#1c5d7a", "ceiling": "#b9b3a6", "peer": "#a5421c"}
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, costs, xerr=abs(spreads - costs), color=[colours[kinds[name]] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("core-milliseconds an image; less is better. A line spans the lowest and highest sample")
    axes.set_title(f"{result['data']}; {result['machine']}; {result['date']}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path} cannot be drawn ({error}); name a PNG file") from None


@dataclass(frozen=True)
class Measured:
    """As much of a JSON file of ours as comparing needs."""

    machine: str
    data: str
    rows: list[Result]


def read(path: Path) -> dict[str, Any]:
    """A JSON file that a measurement wrote. Raises BenchmarkError."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        measured = from_json(Measured, content, str(path), partly=True)
    except (OSError, ValueError, RecursionError, ValueFormatError) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}); expected what --json wrote") from None
    for row in measured.rows:
        if row.core_ms_per_image <= 0:
            raise BenchmarkError(f"{path}: {row.name} costs {row.core_ms_per_image}; expected more than 0")
    return content


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print how each row's cost changed; 1 if any became slower beyond both spreads, else 0."""
    console = Console()
    if old["machine"] != new["machine"] or old["data"] != new["data"]:
        console.print("the machine or the data is another: ratios say little", highlight=False)
    table = Table("row", "old", "new", "ratio", "")
    before = {row["name"]: row for row in old["rows"]}
    verdicts = []
    for row in (row for row in new["rows"] if row["name"] in before):
        was = before[row["name"]]
        (low, high), (was_low, was_high) = row["spread"], was["spread"]
        verdicts.append("slower" if low > was_high else "faster" if high < was_low else "within the noise")
        costs = was["core_ms_per_image"], row["core_ms_per_image"]
        words = *(f"{cost:.2f}" for cost in costs), f"{costs[1] / costs[0]:.2f}"
        table.add_row(row["name"], *words, verdicts[-1])
    console.print(table)
    return int("slower" in verdicts)


def as_markdown(result: dict[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    lines += [f"| `{name}` | {' | '.join(rest)} |" for name, *rest in _cells(result)]
    return "\n".join(lines)
