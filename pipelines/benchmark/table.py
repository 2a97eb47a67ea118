"""Table: what a measurement found, as a table, a chart, JSON, the README's markdown, and beside an older one.

Before it: `measure`'s dictionary, fresh or from a file. After it: a reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from greyhound.cache.cli import ValueFormatError, from_json
from greyhound.pipelines.benchmark.measure import Result
from greyhound.pipelines.benchmark.rows import ROWS, BenchmarkError


def report(result: dict[str, Any], file: Path | None = None, chart: Path | None = None) -> None:
    """Print the table, and as the last line the JSON; write that to `file`, and draw the chart.

    Raises BenchmarkError where a file cannot be written.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    floor = _costs(result).get("decode-only")
    table = Table(caption="ratio: core-milliseconds to decode-only's")
    for column in ("row", "img/s", "core-ms/img", "range", "ratio", "MiB", ""):
        table.add_column(column, justify="left" if column in ("row", "") else "right")
    for row in result["rows"]:
        low, high = row["spread"]
        table.add_row(
            row["name"],
            f"{row['images_per_second']:.0f}",
            f"{row['core_ms_per_image']:.2f}",
            f"{low:.2f}..{high:.2f}",
            f"{row['core_ms_per_image'] / floor:.2f}" if floor else "-",
            f"{row['peak_mib']:.0f}",
            ROWS[row["name"]].note,
        )
    for name, why in result["missing"].items():
        table.add_row(name, "-", "-", "-", "-", "-", why)
    console.print(table)
    if "data_time_in_training" in result:
        line = f"train-step waited for data {result['data_time_in_training']:.2%} of its time"
        console.print(line, highlight=False, soft_wrap=True)
    if large := result.get("large"):
        line = (
            f"large originals: {large['bytes'] / 1e6:.1f} MB each; the scaled decode is at least "
            f"{large['worst_psnr_db']:.1f} dB from the block means of a full one"
        )
        console.print(line, highlight=False, soft_wrap=True)
    text = json.dumps(result) + "\n"
    console.file.write(text)  # before what may fail: a measurement takes minutes
    if file:
        try:
            file.write_text(text)
        except OSError as error:
            raise BenchmarkError(f"{file} cannot be written ({error.strerror}); name another file") from None
    if chart:
        draw(chart, result)


def _cost(row: dict[str, Any]) -> float:
    return float(row["core_ms_per_image"])


def _costs(result: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: _cost(row) for row in result["rows"]}


def draw(path: Path, result: dict[str, Any]) -> None:
    """Core-milliseconds an image of every loader as bars with their spread, cheapest on top; ours in blue."""
    from matplotlib.figure import Figure

    kinds = {name: row.kind for name, row in ROWS.items() if not row.large and row.kind != "training"}
    rows = sorted((row for row in result["rows"] if row["name"] in kinds), key=_cost)
    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    colours = {"ours": "#1c5d7a", "ceiling": "#b9b3a6", "peer": "#a5421c"}
    for place, row in enumerate(rows):
        colour = colours[kinds[row["name"]]]
        cost, (low, high) = row["core_ms_per_image"], row["spread"]
        axes.barh(place, cost, color=colour, height=0.62)
        axes.plot([low, high], [place, place], color="black", linewidth=1.2)
        axes.text(max(cost, high), place, f"  {cost:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        "core-milliseconds an image; less is better. The line spans the lowest and highest sample"
    )
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
    date: str
    data: str
    rows: list[Result]


def read(path: Path) -> dict[str, Any]:
    """A JSON file that a measurement wrote. Raises BenchmarkError."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BenchmarkError(f"{path} cannot be read ({error}); expected what --json wrote") from None
    try:
        measured = from_json(Measured, content, str(path), partly=True)
    except ValueFormatError as error:
        raise BenchmarkError(f"{error}; expected what --json wrote") from None
    for row in measured.rows:
        if row.core_ms_per_image <= 0:
            raise BenchmarkError(f"{path}: {row.name} costs {row.core_ms_per_image}; expected more than 0")
    return dict(content)


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Print how each row's cost changed; 1 if any became slower beyond both spreads, else 0."""
    console = Console()
    if old["machine"] != new["machine"] or old["data"] != new["data"]:
        console.print("the machine or the data is another: ratios say little", highlight=False)
    table = Table("row", "old", "new", "ratio", "")
    before = {row["name"]: row for row in old["rows"]}
    slower = []
    for row in new["rows"]:
        was = before.get(row["name"])
        if was is None:
            continue
        (low, high), (was_low, was_high) = row["spread"], was["spread"]
        verdict = "slower" if low > was_high else "faster" if high < was_low else "within the noise"
        slower += [row["name"]] if verdict == "slower" else []
        costs = (was["core_ms_per_image"], row["core_ms_per_image"])
        table.add_row(row["name"], *(f"{cost:.2f}" for cost in costs), f"{costs[1] / costs[0]:.2f}", verdict)
    console.print(table)
    return 1 if slower else 0


def as_markdown(result: dict[str, Any]) -> str:
    """The README's table: costs, and what they are of decoding alone and of torchvision."""
    costs = _costs(result)
    lines = [
        "| row | images a second | core-ms an image | lowest to highest | of decoding alone "
        "| of torchvision's |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cost, (low, high) = row["core_ms_per_image"], row["spread"]
        bases = [costs.get(base) for base in ("decode-only", "torchvision-pil")]
        ratios = " | ".join(f"{cost / base:.2f}" if base else "-" for base in bases)
        name, speed = row["name"], row["images_per_second"]
        lines.append(f"| `{name}` | {speed:.0f} | {cost:.2f} | {low:.2f} to {high:.2f} | {ratios} |")
    return "\n".join(lines)
