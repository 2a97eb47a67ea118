"""pipelines/selftest.py: a decoder that sees other pictures than were packed is found, and a sound one is not blamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import encode, noise, packed
from PIL import Image
from runs import Here

from greyhound.cache.store import Pack
from greyhound.cache.validate import available
from greyhound.pipelines import dali, threads
from greyhound.pipelines.request import Engine
from greyhound.pipelines.selftest import faults, kinds, luma_errors, of_every_kind, spread

Pixels = NDArray[np.uint8]

ENGINES = [
    pytest.param(
        dali.stream, marks=pytest.mark.skipif(not available(), reason="DALI is not installed"), id="dali"
    ),
    pytest.param(threads.stream, id="threads"),
]
BROKEN: dict[str, Callable[[Pixels], Pixels]] = {
    "black": np.zeros_like,
    "blue and red swapped": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    "too bright": lambda pixels: np.asarray(np.minimum(pixels.astype(int) + 8, 255), dtype=np.uint8),
    "half of it grey": lambda pixels: np.concatenate(
        [pixels[: len(pixels) // 2], np.full_like(pixels[len(pixels) // 2 :], 128)]
    ),
}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """20 busy pictures with a tint, JPEG and PNG, some turned by EXIF."""
    tint = np.array([70, 30, 0])
    pictures = [
        np.asarray(noise(90 + 5 * row, 130 - 4 * row, row) // 2 + tint, dtype=np.uint8) for row in range(20)
    ]
    files = [
        encode(pixels, "PNG" if row % 3 == 0 else "JPEG", orientation=6 if row % 4 == 1 else 1)
        for row, pixels in enumerate(pictures)
    ]
    return packed(tmp_path_factory.mktemp("selftest"), {"a": files[:10], "b": files[10:]})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sound_decoder_is_not_blamed(pack: Pack, engine: Engine) -> None:
    assert faults(pack, np.arange(20), engine, "cpu") == []
    assert np.abs(luma_errors(pack, np.arange(20), engine, "cpu")).max() < 1


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_decoder_is_found(pack: Pack, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    from greyhound.pipelines import tier

    real: Any = vars(tier)["decode"]
    monkeypatch.setattr(tier, "decode", lambda *arguments: BROKEN[broken](real(*arguments)))
    found = faults(pack, np.arange(20), threads.stream, "cpu")
    assert len(found) > 10
    assert "levels off" in found[0]
    assert found[0].startswith("row ")


def test_some_rows_stand_for_all(pack: Pack) -> None:
    assert spread(pack, 64).tolist() == list(range(20))
    assert spread(pack, 7).tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_rare_kinds_of_files_are_among_the_tested(tmp_path: Path) -> None:
    """27 plain JPEGs, one progressive, one in grey, one PNG, one in CMYK."""
    pixels = [noise(60, 50, row) for row in range(31)]
    files = [encode(each, "JPEG") for each in pixels]
    files[7] = encode(pixels[7], "JPEG", progressive=True)
    files[11] = encode(Image.fromarray(pixels[11]).convert("CMYK"), "JPEG")
    files[20] = encode(pixels[20], "PNG")
    pack = packed(tmp_path, {"a": files[:15], "b": files[15:]})
    found = kinds(pack)
    rare = {"JPEG RGB progressive": [7], "JPEG CMYK": [11], "PNG RGB": [20]}
    assert {name: rows for name, rows in found.items() if name != "JPEG RGB"} == rare
    rows = of_every_kind(found, 6).tolist()
    assert len(set(rows)) == 6
    assert {7, 11, 20} <= set(rows)
    assert rows == sorted(rows)
    assert of_every_kind(found, 100).tolist() == list(range(31))


def test_the_doctor_tries_a_pack(
    pack: Pack, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def last(answer: Any) -> Any:
        return json.loads(answer.out)["findings"][-1]

    sound = here("pipelines/doctor.py", "--json", "--pack", str(pack.path))
    assert (sound.code, last(sound)["verdict"], last(sound)["found"]) == (
        0,
        "ok",
        "20 pictures as they were packed",
    )
    from greyhound.pipelines import tier

    real: Any = vars(tier)["decode"]
    monkeypatch.setattr(tier, "decode", lambda *arguments: np.zeros_like(real(*arguments)))
    broken = here("pipelines/doctor.py", "--json", "--pack", str(pack.path))
    assert (broken.code, last(broken)["verdict"]) == (1, "problem")
    assert last(broken)["found"] == "20 of 20 pictures are others"
    missing = here("pipelines/doctor.py", "--pack", str(tmp_path / "none.arrow"))
    assert (missing.code, missing.err.count("\n")) == (2, 1)
