"""pipelines/benchmark/: it measures what it says, refuses engines that disagree, and ends in JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import needs_dali
from pictures import ALL_TRAIN, encode, folder, noise
from PIL import Image
from runs import Here, Patch

from greyhound.cache.pack import pack
from greyhound.cache.store import Pack
from greyhound.pipelines.benchmark import measure, peers, rows, table
from greyhound.pipelines.benchmark.measure import Result, Sample
from greyhound.pipelines.benchmark.rows import BenchmarkError, Row

ROOT = Path(__file__).parents[1]
RUNNING = ["decode-only", "threads-encoded", "threads-decoded", "threads-ten-views"]
RUNNING += ["dali-cpu-encoded", "dali-cpu-ten-views", "ffcv", "torchvision-pil"]


@pytest.mark.parametrize("name", RUNNING)
def test_a_row_works_through_the_pack_without_end(colour_pack: Pack, name: str) -> None:
    if needs := rows.ROWS[name].needs:
        pytest.importorskip(needs)
    stream = rows.ROWS[name].run(colour_pack, 1)
    counts = list(islice(stream, 3))
    stream.close()  # type: ignore[attr-defined]
    assert len(counts) == 3
    assert all(30 <= count <= peers.BATCH_SIZE for count in counts), "60 images, over and over"


@pytest.mark.parametrize(("name", "count"), [("pack", 300), ("webdataset-writer", 60), ("ffcv-writer", 60)])
def test_a_writer_takes_every_image_again_and_again(colour_pack: Pack, name: str, count: int) -> None:
    if needs := rows.ROWS[name].needs:
        pytest.importorskip(needs)
    stream = rows.ROWS[name].run(colour_pack, 1)
    assert list(islice(stream, 2)) == [count, count]
    stream.close()  # type: ignore[attr-defined]


def test_a_photograph_without_a_suffix_is_packed_again_too(tmp_path: Path) -> None:
    """As its name was in the pack, whatever dots its folders have."""
    files = {f"{'a.b' if n % 2 else 'c'}/{n}": encode(noise(40, 30, n)) for n in range(4)}
    folder(tmp_path / "images", files)
    pack(tmp_path / "images", tmp_path / "p.arrow", ALL_TRAIN)
    stream = rows.packing(Pack(tmp_path / "p.arrow"), 1)
    assert next(stream) == 5 * 4
    stream.close()  # type: ignore[attr-defined]


def test_every_row_of_the_issue_is_there() -> None:
    assert {
        *RUNNING,
        "pack",
        "webdataset-writer",
        "ffcv-writer",
        "albumentations",
        "dali-gpu-encoded",
    } <= set(rows.ROWS)


@pytest.mark.parametrize(
    ("package", "peer"), [("torchvision", peers.torchvision_pil), ("albumentations", peers.albumentations)]
)
def test_a_peer_gives_the_networks_floats(colour_pack: Pack, package: str, peer: Callable[[], Any]) -> None:
    pytest.importorskip(package)
    pixels, label = peers.Originals(colour_pack, peer())[101]
    assert (pixels.shape, pixels.dtype) == ((3, 256, 256), torch.float32)
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert label == colour_pack.labels[41]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_table_ends_in_json(colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("threads-encoded", "dali-gpu-encoded")
    result = measure.measure(colour_pack, "noise", names, 0.3, 1)
    table.report(result, tmp_path / "b.json", tmp_path / "b.png")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (tmp_path / "b.json").read_text().strip()
    found = json.loads(last)
    assert {"machine", "versions", "date", "data", "rows"} <= found.keys()
    assert found["missing"] == {"dali-gpu-encoded": "needs an NVIDIA GPU"}
    (row,) = found["rows"]
    assert set(row) == {"name", "images_per_second", "core_ms_per_image", "peak_mib", "spread"}
    assert 0 < row["spread"][0] <= row["core_ms_per_image"] <= row["spread"][1]
    assert row["peak_mib"] > 50
    with Image.open(tmp_path / "b.png") as chart:
        assert chart.width > 800
    with pytest.raises(BenchmarkError, match=r"b\.json cannot be written \(No such file or directory\)"):
        table.report(result, tmp_path / "nowhere" / "b.json")


def burn(pack: Pack, workers: int) -> Iterator[int]:
    """40 ms of core time and 10 of sleep for every 4 images."""
    while True:
        until = time.process_time() + 0.04
        while time.process_time() < until:
            pass
        time.sleep(0.01)
        yield 4


@pytest.mark.alone
def test_core_time_includes_that_of_workers(colour_pack: Pack, monkeypatch: Patch) -> None:
    monkeypatch.setitem(rows.ROWS, "burn", Row(burn, "ours"))
    taken = measure.sample("burn", colour_pack.path, 0.5)
    assert taken.core_ms_per_image == pytest.approx(10, rel=0.25)
    assert taken.images_per_second <= 4 / 0.05
    before = measure.core_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        assert worker.stdout and worker.stdout.readline()
        spent = measure.core_seconds() - before
        worker.kill()
    assert spent >= 0.25
    assert measure.core_seconds() - before >= 0.25, "also once it has ended"


def test_a_result_is_the_median_and_its_spread_and_a_missing_package_is_named(monkeypatch: Patch) -> None:
    samples = [Sample(10, 3.0, 100), Sample(30, 1.0, 300), Sample(20, 2.0, 200)]
    assert measure.summarise("x", samples) == Result("x", 20, 2.0, 200, (1.0, 3.0))
    assert rows.lacking(Row(burn, "ours", "no_such_module", "some-package")) == "pip install some-package"
    assert rows.lacking(Row(burn, "ours")) == ""
    monkeypatch.setattr(rows, "has_dali", lambda: False)  # though other wheels are below nvidia
    assert rows.lacking(rows.ROWS["dali-cpu-encoded"]) == "pip install nvidia-dali-cuda120"


@needs_dali
def test_engines_must_agree_to_be_timed(colour_pack: Pack, monkeypatch: Patch, tmp_path: Path) -> None:
    def biased(pack: Pack, name: str, tier: str) -> torch.Tensor:
        return torch.full((1, 3, 4, 4), 0.5 if name == "threads" else 0.51)

    measure.check_agreement(colour_pack)
    monkeypatch.setattr(measure, "first_batch", biased)
    says = r"dali, encoded, differs .* by 2\.550 levels .*nothing was timed"
    with pytest.raises(BenchmarkError, match=says):
        measure.measure(colour_pack, "noise", tuple(rows.ROWS), 0.3, 1)


def content(**costs: tuple[float, float, float]) -> dict[str, Any]:
    rows = [
        asdict(Result(name.replace("_", "-"), 1000 / max(cost, 1e-9), cost, 100.0, (low, high)))
        for name, (low, cost, high) in costs.items()
    ]
    return {"machine": "m", "date": "2026-11-24", "data": "d", "rows": rows}


def test_comparing_names_what_became_slower(capsys: pytest.CaptureFixture[str], monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    old = content(a=(1, 2, 3), b=(1, 2, 3), c=(4, 5, 6))
    new = content(a=(3.5, 4, 5), b=(2, 3, 4), c=(1, 2, 3))
    assert table.compare(old, new) == 1
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in line if cell.strip()] for line in lines] == [
        ["a", "2.00", "4.00", "2.00", "slower"],
        ["b", "2.00", "3.00", "1.50", "within the noise"],
        ["c", "5.00", "2.00", "0.40", "faster"],
    ]
    assert table.compare(old, old) == 0
    table.compare(old, new | {"machine": "another"})
    assert "ratios say little" in capsys.readouterr().out


def test_a_file_that_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    for found, says in (
        ([{"name": "a"}], r"b\.json: rows\.0.*; expected what --json wrote"),
        (content(a=(0, 0, 0))["rows"], r"a costs 0.0; expected more than 0"),
    ):
        (tmp_path / "b.json").write_text(json.dumps(content() | {"rows": found}))
        with pytest.raises(BenchmarkError, match=says):
            table.read(tmp_path / "b.json")


def test_the_documents_table_is_the_newest_benchmark_with_ratios_to_the_floor_and_to_the_seed() -> None:
    for kind in ("20", "packing-"):
        newest = max((ROOT / "docs" / "benchmarks").glob(f"{kind}*.json"))
        assert table.as_markdown(table.read(newest)) in (ROOT / "docs" / "benchmarks.md").read_text()
    text = table.as_markdown(content(decode_only=(1, 2, 3), torchvision_pil=(9, 10, 11)))
    assert text.splitlines()[2:] == [
        "| `decode-only` | 500 | 2.00 | 1.00 to 3.00 | 1.00 | 0.20 |",
        "| `torchvision-pil` | 100 | 10.00 | 9.00 to 11.00 | 5.00 | 1.00 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "name either --images FOLDER or --pack PACK"),
        (
            ("--rows", "warp-drive"),
            "there is no row 'warp-drive'; expected some of decode-only, threads-encoded",
        ),
        (("--repeats", "0"), "repeats is 0; expected at least 1"),
        (("--seconds", "nan"), "seconds is nan; expected more than 0"),
        (("--compare", "a.json", "b.json"), "a.json cannot be read"),
        (("--pack", "nowhere.arrow"), "there is no pack at nowhere.arrow"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: tuple[str, ...], says: str, here: Here) -> None:
    answer = here("pipelines/benchmark/__main__.py", *arguments)
    assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
    assert says in answer.err
