"""pipelines/doctor.py: what is wrong is named with its remedy, what is not known with the reason; so are decoders."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engines import STREAMS
from numpy.typing import NDArray
from pictures import encode, noise, packed
from runs import Capture, Here

from greyhound.cache.store import Pack
from greyhound.pipelines import decoded, doctor, threads
from greyhound.pipelines.doctor import Facts, Finding, judge
from greyhound.pipelines.engine import Engine

H100 = "NVIDIA H100 80GB HBM3, 84.0 GB free of 85.0 GB"
CODEC = "nvidia-nvimgcodec-cu13"
PACKAGES = {"nvidia-dali-cuda130": "2.3.0", CODEC: "0.8.0.10", "torch": "2.14.1"}
VERSIONS = PACKAGES | {"torch's CUDA": "13.0", "DALI's CUDA": "13"}
NEW_CODEC = VERSIONS | {CODEC: "0.9.0.20"}
SOUND = Facts(
    machine="AMD EPYC, 16 cores",
    cores=16,
    processors=16,
    memory=128_000_000_000,
    shared_memory=64_000_000_000,
    open_files=1_048_576,
    versions=VERSIONS,
    gpus=(H100,),
    driver="580.95.05",
)


def found(facts: Facts) -> dict[str, Finding]:
    return {finding.about: finding for finding in judge(facts)}


def test_of_a_sound_machine_nothing_is_said_but_what_it_has() -> None:
    answers = found(SOUND)
    assert {answer.verdict for answer in answers.values()} == {"ok"}
    assert answers["GPU 0"].found == H100
    assert answers["driver"].found == "580.95.05"


@pytest.mark.parametrize(
    ("change", "about", "verdict", "advice"),
    [
        ({"driver": "535.183.01"}, "driver and torch's CUDA", "problem", "CUDA 13 needs driver 580 or later"),
        ({"driver": None}, "driver", "unknown", "no driver of NVIDIA is loaded"),
        ({"cores": 2}, "cores", "note", "quota"),
        ({"shared_memory": 67_108_864}, "shared memory", "note", "--shm-size"),
        ({"shared_memory": None}, "shared memory", "unknown", "there is no"),
        ({"open_files": 256}, "open files", "note", "ulimit -n 1024"),
        ({"gpus": ("A100 MIG 1g.5gb, 5.0 GB free of 5.1 GB",)}, "GPU 0", "note", "an instance of MIG"),
        ({"gpus": ()}, "GPU", "note", "on the CPU"),
        ({"versions": {"torch": "2.14.1"}}, "DALI", "note", "pip install nvidia-dali-cuda120"),
        ({"versions": NEW_CODEC}, f"{CODEC} and regions", "note", "nvImageCodec#55"),
    ],
)
def test_every_fault_has_its_advice(change: dict[str, Any], about: str, verdict: str, advice: str) -> None:
    answers = found(replace(SOUND, **change))
    assert answers[about].verdict == verdict
    assert advice in answers[about].advice
    others = {name for name, answer in answers.items() if answer.verdict != "ok"}
    assert others - {"driver and DALI's CUDA"} == {about}


def test_a_torchvision_of_another_torch_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.torchvision_fault() == ""
    fault = "operator torchvision::nms does not exist"
    monkeypatch.setattr(doctor, "torchvision_fault", lambda: fault)
    answer = found(SOUND)["torch and torchvision"]
    assert (answer.verdict, answer.found) == ("problem", fault)
    assert "--force-reinstall torch torchvision" in answer.advice


def test_kernel_and_torch_name_driver_and_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_KERNEL_MODULE", tmp_path / "version")
    closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
    open_ = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC 13.3.0\n"
    assert doctor.learn().driver is None
    for text, expected in {"something else\n": None, closed: "535.183.01", open_: "580.95.05"}.items():
        (tmp_path / "version").write_text(text)
        assert doctor.learn().driver == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "L4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 * 10**9, 24 * 10**9))
    assert doctor.learn().gpus == ("L4, 20.0 GB free of 24.0 GB",)


def test_the_command_and_exit_code_1_of_a_problem(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = here("pipelines/doctor.py", "--json")
    assert answer.code == 0
    content = json.loads(answer.out)
    assert content["facts"]["cores"] >= 1
    assert content["facts"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    abouts = [finding["about"] for finding in content["findings"]]
    assert {"cores", "shared memory", "open files", "driver", "torch"} <= set(abouts)
    words = here("pipelines/doctor.py")
    assert words.code == 0
    counts = Counter(finding["verdict"] for finding in content["findings"])
    summary = f"{counts['problem']} problems, {counts['note']} notes, {counts['unknown']} unknown"
    assert words.out.splitlines()[-1] == summary
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    assert here("pipelines/doctor.py").code == 1


def test_what_an_error_says_is_no_mark(capsys: Capture) -> None:
    """Paths in brackets of DALI's errors, and of folders, look like rich's marks; a class may be named :dog:."""
    text = "[/opt/dali/dali/image/image_factory.cc:89] row 3 ('dogs [old]/:dog:.jpg')"
    doctor.show([Finding("DALI", "stopped", "problem", text)])
    assert text in capsys.readouterr().out


Pixels = NDArray[np.uint8]

BROKEN: dict[str, Callable[[Pixels], Pixels]] = {
    "black": np.zeros_like,
    "blue and red swapped": lambda pixels: np.ascontiguousarray(pixels[..., ::-1]),
    "too bright": lambda pixels: np.minimum(pixels, 247) + np.uint8(8),
    "half of it grey": lambda pixels: np.concatenate(
        [pixels[: len(pixels) // 2], np.full_like(pixels[len(pixels) // 2 :], 128)]
    ),
}


def broken_decoder(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    real: Any = vars(decoded)["decode"]
    monkeypatch.setattr(decoded, "decode", lambda *arguments: BROKEN[how](real(*arguments)))


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """20 busy pictures with a tint, JPEG and PNG, some turned by EXIF."""
    files = [
        encode(
            noise(90 + 5 * row, 130 - 4 * row, row) // 2 + np.array([70, 30, 0], dtype=np.uint8),
            "PNG" if row % 3 == 0 else "JPEG",
            orientation=6 if row % 4 == 1 else 1,
        )
        for row in range(20)
    ]
    return packed(tmp_path_factory.mktemp("doctor"), {"a": files[:10], "b": files[10:]})


@pytest.mark.parametrize("engine", STREAMS)
def test_a_sound_decoder_is_not_blamed(pack: Pack, engine: Engine) -> None:
    assert doctor.faults(pack, np.arange(20), engine, "cpu") == []
    assert np.abs(doctor.luma_errors(pack, np.arange(20), engine, "cpu")).max() < 1


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_decoder_is_found(pack: Pack, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    broken_decoder(monkeypatch, how)
    found = doctor.faults(pack, np.arange(20), threads.stream, "cpu")
    assert len(found) > 10
    assert "levels off" in found[0]
    assert found[0].startswith("row ")


def test_some_rows_stand_for_all(pack: Pack) -> None:
    assert doctor.spread(pack, 64).tolist() == list(range(20))
    assert doctor.spread(pack, 7).tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_doctor_tries_a_pack(pack: Pack, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["pipelines/doctor.py", "--json", "--pack", str(pack.path)]
    sound = here(*arguments)
    broken_decoder(monkeypatch, "black")
    broken = here(*arguments)
    findings = [json.loads(answer.out)["findings"][-1] for answer in (sound, broken)]
    assert [answer.code for answer in (sound, broken)] == [0, 1]
    assert [finding["verdict"] for finding in findings] == ["ok", "problem"]
    assert findings[0]["found"] == "20 pictures as they were packed"
    assert findings[1]["found"] == "20 of 20 pictures are others"
    missing = here(*arguments[:-1], str(tmp_path / "none.arrow"))
    assert (missing.code, missing.err.count("\n")) == (2, 1)
