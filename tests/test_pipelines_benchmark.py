"""pipelines/benchmark.py: it measures what it says, refuses engines that disagree, and ends in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cache.store import Pack, PackError
from pipelines import benchmark
from pipelines.loader import EngineName


def test_every_row_prepares_what_it_was_asked_for(colour_pack: Pack) -> None:
    colour_pack.make_resident()
    for name, row in benchmark.ROWS.items():
        done = sum(row(colour_pack, 64, 1))
        assert 64 <= done < 64 + benchmark.BATCH_SIZE, name


def test_the_seeds_way_gives_the_networks_floats(colour_pack: Pack) -> None:
    pixels, label = benchmark._SeedsWay(colour_pack, 60)[41]
    assert (pixels.shape, pixels.dtype) == ((3, 256, 256), torch.float32)
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert label == colour_pack.labels[41]


def test_the_table_ends_in_json(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = benchmark.Job(
        pack=colour_pack.path,
        rows=("decode-only", "threads-encoded"),
        seconds=0.05,
        repeats=3,
        json=tmp_path / "b.json",
    )
    benchmark.report(job, benchmark.measure(job, colour_pack))
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "b.json").read_text())
    assert {"machine", "versions", "date", "data", "rows"} <= last.keys()
    assert [row["name"] for row in last["rows"]] == ["decode-only", "threads-encoded"]
    for row in last["rows"]:
        low, high = row["spread"]
        assert 0 < low <= row["core_ms_per_image"] <= high


def test_core_time_is_counted_in_milliseconds_an_image(colour_pack: Pack) -> None:
    def burn(pack: Pack, images: int, threads: int) -> Iterator[int]:
        before = benchmark._core_seconds()
        while benchmark._core_seconds() < before + 0.2:
            pass
        yield images

    _, cost = benchmark._time(burn, colour_pack, 20)
    assert cost == pytest.approx(10, rel=0.3)


def test_engines_that_disagree_are_not_timed(colour_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(pack: Pack, engine: EngineName) -> torch.Tensor:
        return torch.full((1, 3, 4, 4), 0.5 if engine == "dali" else 0.51)

    monkeypatch.setattr(benchmark, "available", lambda: True)
    monkeypatch.setattr(benchmark, "_first_batch", biased)
    with pytest.raises(RuntimeError, match=r"differ by 2\.550 levels on the same draws; nothing was timed"):
        benchmark.measure(benchmark.Job(pack=colour_pack.path), colour_pack)


def test_it_wants_photographs_or_a_pack(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="name either --images FOLDER or --pack PACK"):
        benchmark.open_pack(benchmark.Job(), tmp_path)
