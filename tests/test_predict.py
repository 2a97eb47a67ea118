"""predict.py: a row for every file that is asked for, in order, in every format; and what cannot be asked."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import folder, scan_here
from PIL import Image
from pyarrow import parquet
from runs import NAMES, ONE_THREAD, Capture, Here, Patch, tinted

from greyhound import eval as evaluation
from greyhound import predict, trained
from greyhound.cache.errors import UserError
from greyhound.cache.folder import as_text
from greyhound.cache.scan import ImageInfo
from greyhound.model import calibration, checkpoint
from greyhound.model.run import Run
from greyhound.prediction import ImageFile, Prediction, columns, expand, find, open_rows

ODD = 'odd, "na\rme".jpg'


def predicted(run: Path, capsys: Capture, *paths: Path | str, **options: Any) -> list[dict[str, str]]:
    """The rows that predict prints as CSV."""
    capsys.readouterr()
    job = predict.Job(run=run, paths=tuple(map(str, paths)), resources=ONE_THREAD, **options)
    assert predict.main(job) == 0
    out, err = capsys.readouterr()
    assert not job.out or re.search(rf"^[\d,]+ rows: {re.escape(str(job.out))}$", err, re.MULTILINE)
    return list(csv.DictReader(io.StringIO(out, newline="")))


def test_every_file_has_a_row_in_order(
    run: Path, tmp_path: Path, scan_in_process: None, capsys: Capture
) -> None:
    files = {ODD: tinted(0, 1), "b.jpg": tinted(1, 2), "broken.jpg": b"not an image", "z/d.jpg": tinted(0, 3)}
    new, before = folder(tmp_path / "new", files), (run / "report.html").read_bytes()
    predict.main(predict.Job(run=run, paths=(str(new),), top=3, resources=ONE_THREAD))
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [row["path"] for row in rows] == [
        str(new / name) for name in ("b.jpg", "broken.jpg", ODD, "z/d.jpg")
    ]
    broken = rows.pop(1)
    assert broken.pop("error") == "undecodable (no image that is read here)"
    assert set(broken.values()) == {str(new / "broken.jpg"), ""}
    assert [row["class"] for row in rows] == ["green", "red", "red"]
    for row in rows:
        assert row["error"] == ""
        guesses = [row["class"], row["class_2"], row["class_3"]]
        probabilities = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
        assert sorted(guesses) == list(NAMES)
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=3e-6)
    assert "true_class" not in rows[0]
    assert err.splitlines() == [
        "note: 1 of 4 files could not be read; the column error says why",
        "note: the probabilities are not calibrated: 6 validation images are too few to fit a temperature,"
        " 50 are needed",
    ]
    assert not (run / "eval.json").exists()
    assert (run / "report.html").read_bytes() == before


def test_the_probability_of_every_class(run: Path, images: Path, capsys: Capture) -> None:
    (row,) = predicted(run, capsys, images / "red" / "0.jpg", probabilities=True)
    every = [float(row[f"probability of {name}"]) for name in NAMES]
    assert sum(every) == pytest.approx(1, abs=3e-6)
    assert float(row["probability"]) == max(every)
    assert row["class"] == NAMES[int(np.argmax(every))]
    assert list(row)[:4] == ["path", "class", "probability", "error"]


def test_labelled_folders_say_what_is_wrong_and_agree_with_eval(
    run: Path, images: Path, capsys: Capture
) -> None:
    (images / "red" / "2.jpg").write_bytes(tinted(2, 77))  # which is blue
    (images / "red" / "3.jpg").write_bytes(b"")
    rows = predicted(run, capsys, images)
    assert [row["true_class"] for row in rows] == [NAMES[0]] * 2 + [NAMES[1]] * 2 + [NAMES[2]] * 4
    assert all(row["right"] == str(row["class"] == row["true_class"]).lower() for row in rows if row["class"])
    assert [row["right"] for row in rows[-2:]] == ["false", ""]
    evaluation.evaluate(evaluation.Job(run=run, images=images, crops=1, resources=ONE_THREAD))
    result = Run(run).read("eval-images.json")
    right = [row["right"] for row in rows].count("true")
    assert (result["n"], result["accuracy"]) == (7, pytest.approx(right / 7))
    capsys.readouterr()
    predict.main(predict.Job(run=run, paths=(str(images),), resources=ONE_THREAD))
    low, high = result["interval"]
    said = f"accuracy: {right / 7:.3f} (95 % interval {low:.3f} to {high:.3f}, n = 7)"
    assert capsys.readouterr().err.splitlines()[0] == said


def test_a_subfolder_that_is_no_class_is_a_note(images: Path, capsys: Capture) -> None:
    found = list(find([str(folder(images, {"purple/1.jpg": b"", "loose.jpg": b""}))], NAMES))
    assert {each.true_class for each in found if each.file.parent.name in ("purple", "images")} == {""}
    assert [each.true_class for each in found].count("red") == 2
    assert f"{images / 'purple'} is named as no class" in capsys.readouterr().err
    assert {each.true_class for each in find([str(images)], ("cats",))} == {""}
    assert capsys.readouterr().err == ""


def test_the_probabilities_use_the_temperature(
    run: Path, images: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(calibration, "LEAST", 1)
    row = {"weights": Run(run).weights_id("swa"), "crops": 2, "temperature": 1e6, "images": 6, "why": ""}
    Run(run).write("calibration.json", [row])
    (even,) = predicted(run, capsys, images / "red" / "0.jpg", crops=2)
    assert float(even["probability"]) == pytest.approx(1 / 3, abs=1e-3)
    (sure,) = predicted(run, capsys, images / "red" / "0.jpg")
    assert float(sure["probability"]) > 0.34
    assert [row["crops"] for row in Run(run).read("calibration.json")] == [2, 1]


def make_chunks_small(monkeypatch: Patch) -> None:
    """Two files in the first, three in each of the others."""
    monkeypatch.setattr(trained, "FIRST", 2)
    monkeypatch.setattr(trained, "CHUNK", 3)


def many(tmp_path: Path) -> Path:
    """Fourteen files: two in seven cannot be read, and all of the second chunk."""
    bad = {2, 3, 4, 8, 13}
    files = {f"{n:02}.jpg": b"" if n in bad else tinted(n % 3, n) for n in range(14)}
    return folder(tmp_path / "many", files)


def test_chunks_change_nothing(
    run: Path, tmp_path: Path, scan_in_process: None, monkeypatch: Patch, capsys: Capture
) -> None:
    whole = predicted(run, capsys, many(tmp_path))
    make_chunks_small(monkeypatch)
    assert predicted(run, capsys, many(tmp_path)) == whole
    assert [Path(row["path"]).stem for row in whole] == [f"{n:02}" for n in range(14)]
    assert [n for n, row in enumerate(whole) if row["error"]] == [2, 3, 4, 8, 13]
    monkeypatch.setattr(trained, "CHUNK_BYTES", 1)
    assert predicted(run, capsys, many(tmp_path)) == whole


def test_rows_come_while_later_files_are_not_yet_looked_at(
    run: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Memory and disk are those of two chunks, whatever the number of files."""
    make_chunks_small(monkeypatch)
    seen: list[Path] = []

    def scan(paths: Iterable[Path], **options: Any) -> Generator[ImageInfo, None, None]:
        for path in paths:
            seen.append(path)
            yield next(scan_here([path], **options))

    monkeypatch.setattr(trained, "scan", scan)
    opened = trained.open_trained(Run(run), "auto", ONE_THREAD)
    rows = trained.predict(opened, find([str(many(tmp_path))], NAMES), ONE_THREAD)
    assert next(rows).probabilities is not None
    assert len(seen) <= 2 + 3 + 1
    rows.close()
    assert len(seen) <= 2 + 3 + 1, "closed early, the rest is left alone"


def test_a_file_that_changes_meanwhile_is_a_row(
    run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    new = folder(tmp_path / "new", {f"{n}.jpg": tinted(n, n) for n in range(3)})

    def scan(paths: Iterable[Path], **options: Any) -> Generator[ImageInfo, None, None]:
        yield from scan_here(paths, **options)
        (new / "0.jpg").write_bytes(tinted(0, 9))
        (new / "1.jpg").unlink()

    monkeypatch.setattr(trained, "scan", scan)
    rows = predicted(run, capsys, new)
    assert [row["error"] for row in rows] == ["unreadable (it changed while it was read)"] * 2 + [""]


def test_a_chunk_ends_by_what_its_images_take_as_packed(
    run: Path, tmp_path: Path, scan_in_process: None, monkeypatch: Patch
) -> None:
    """Pictures of one colour, which as files are small and in a pack may not be."""
    monkeypatch.setattr(trained, "CHUNK_BYTES", 40_000)
    stream = io.BytesIO()
    Image.new("RGB", (100, 100)).save(stream, "GIF")
    new = folder(tmp_path / "new", {f"{n}.gif": stream.getvalue() for n in range(4)})
    opened = trained.open_trained(Run(run), "auto", ONE_THREAD)
    chunks = trained._chunks(opened, find([str(new)], NAMES), ONE_THREAD, tmp_path, threading.Event())
    assert [len(each.images) for each in chunks] == [2, 2]


def test_every_format_has_the_same_rows(run: Path, images: Path, tmp_path: Path, capsys: Capture) -> None:
    (images / "red" / "1.jpg").write_bytes(b"")
    rows = predicted(run, capsys, images, top=2)
    for name in ("p.csv", "p.JSONL", "p.parquet"):
        assert predicted(run, capsys, images, top=2, out=tmp_path / "made" / name) == []
    tmp_path /= "made"
    with (tmp_path / "p.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    as_json = [json.loads(line) for line in (tmp_path / "p.JSONL").read_text().splitlines()]
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    assert list(table[0]) == list(as_json[0]) == list(rows[0])
    for row, json_row, cells in zip(rows, as_json, table, strict=True):
        for kept in (json_row, cells):
            assert kept["probability"] == pytest.approx(float(row["probability"] or 0) or None, abs=1e-6)
            assert (kept["class"], kept["error"]) == (row["class"] or None, row["error"] or None)
            assert kept["right"] is {"true": True, "false": False, "": None}[row["right"]]


def test_on_a_terminal_the_rows_are_lines_to_read(
    run: Path, images: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    (images / "red" / "0.jpg").write_bytes(tinted(2, 77))
    (images / "red" / "1.jpg").write_bytes(b"")
    predict.main(
        predict.Job(run=run, paths=(str(images / "red" / "0.jpg"), str(images)), resources=ONE_THREAD, top=2)
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{images}/red/0.jpg: blue <b> ")
    assert lines[0].count("%") == 2
    assert lines[-2] == f"{lines[0]}; its folder says red"
    assert lines[-1] == f"{images}/red/1.jpg: undecodable (the file is empty)"


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_a_list_on_standard_input(
    tmp_path: Path, monkeypatch: Patch, separator: bytes, run: Path, scan_in_process: None, capsys: Capture
) -> None:
    new = folder(tmp_path / "new", {"a b.jpg": tinted(0, 1), "c.jpg": tinted(1, 2)})
    names = [new / "c.jpg", new / "gone.jpg", new, new / "a b.jpg", Path("x" * 300)]
    stdin = io.TextIOWrapper(io.BytesIO(separator.join(os.fsencode(name) for name in names)))
    monkeypatch.setattr(sys, "stdin", stdin)
    rows = predicted(run, capsys, "-")
    assert [row["path"] for row in rows] == list(map(str, names))
    errors = ["", "there is no such file", "undecodable (not a regular file)", ""]
    assert [row["error"] for row in rows] == [*errors, "unreadable (File name too long)"]


def test_an_empty_list_is_refused_before_anything_is_written(
    monkeypatch: Patch, run: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    out = tmp_path / "p.csv"
    with pytest.raises(UserError, match="list on standard input names no files"):
        predict.main(predict.Job(run=run, paths=("-",), out=out, resources=ONE_THREAD))
    assert not out.exists()


def test_words_are_files_folders_and_patterns(images: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(images)
    folder(images, {"red/.hidden.jpg": b"", "green/sub/deep.jpg": b"", "a[1].jpg": b""})

    def named(*words: str) -> list[str]:
        return [each.path for each in find(expand(words), NAMES)]

    assert named("red", "a[1].jpg") == ["red/0.jpg", "red/1.jpg", "a[1].jpg"]
    assert named("*/1.jpg") == ["blue <b>/1.jpg", "green/1.jpg", "red/1.jpg"]
    assert named("g*/**/*.jpg") == ["green/0.jpg", "green/1.jpg", "green/sub/deep.jpg"]
    assert named("gr*") == named("gre*/**") == ["green/0.jpg", "green/1.jpg", "green/sub/deep.jpg"]
    assert sorted(named("**")) == sorted(named("."))
    assert [each.true_class for each in find(expand(["./**"]), NAMES)].count("red") == 2
    with pytest.raises(UserError, match=r"there is no no\*; expected files, folders or patterns"):
        named("red", "no*")
    (images / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no files; expected images"):
        named("empty")


def test_a_name_that_is_no_text_is_text_in_the_row(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"")
    (found,) = find([str(tmp_path)], NAMES)
    assert found.path == f"{tmp_path}/\\xff.jpg"
    assert found.file.exists()


def test_a_class_is_found_under_the_name_that_its_pack_gave_it(tmp_path: Path) -> None:
    new = folder(tmp_path / "new", {r"a\x41/1.jpg": b""})
    (found,) = find([str(new)], [as_text(r"a\x41"), "b"])
    assert found.true_class == as_text(r"a\x41")


# --- what cannot be done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--run nowhere x.jpg", "nowhere is no folder; expected a run folder"),
        ("--run nowhere missing.jpg", "there is no missing.jpg; expected files, folders or patterns"),
        ("--run nowhere", "name the photographs: files, folders, patterns, or - for a list"),
        ("x.jpg", "name one network: --run RUN, or --model FILE.onnx"),
        ("x.jpg --run a --model b", "name one network: --run RUN, or --model FILE.onnx"),
        ("x.jpg --model b --crops 3", "--model has its own crop and weights"),
        ("x.jpg --model b --seed 3", "--model has its own crop and weights"),
        ("x.jpg --model b --device cpu", "--model has its own crop and weights"),
        ("x.jpg --run nowhere --top 0", "--top is 0; expected at least 1"),
        ("x.jpg --run nowhere --crops 0", "--crops is 0; expected at least 1"),
        ("x.jpg --run nowhere --seed -1", "--seed is -1; expected 0 to"),
        ("x.jpg --run nowhere --out p.xlsx", "expected a name that ends in .csv, .jsonl or .parquet"),
        ("x.jpg --run nowhere --out x.jpg/p.csv", "x.jpg/p.csv cannot be written (Not a directory); name"),
        ("x.jpg --run nowhere --tpo 3", "there is no flag --tpo; did you mean --top?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, says: str, tmp_path: Path, here: Here) -> None:
    (tmp_path / "x.jpg").write_bytes(b"")
    assert says in here("predict.py", *arguments.split()).error
    assert [file.name for file in tmp_path.iterdir()] == ["x.jpg"]


@pytest.mark.parametrize("program", ["predict", "export", "explain", "review", "serve"])
def test_several_processes_are_refused(program: str, monkeypatch: Patch, here: Here) -> None:
    words = {"predict": ["x.jpg"], "export": ["--out", "x.onnx"], "review": ["--out", "x.json"]}.get(
        program, []
    )
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    said = here(f"{program}.py", "--run", "nowhere", *words).error
    assert said == f"{program} is for one process; start it without torchrun\n"


def test_out_of_memory_tells_the_number_that_was_tried(run: Path, images: Path, monkeypatch: Patch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(predict, "write_rows", full)
    with pytest.raises(UserError, match="out of memory at 16 crops at once"):
        predict.main(predict.Job(run=run, paths=(str(images),), resources=ONE_THREAD))


def test_a_write_that_fails_ends_the_network_at_once(tmp_path: Path, images: Path) -> None:
    ended = []

    def look(images: Iterable[ImageFile]) -> Generator[Prediction, None, None]:
        try:
            yield from (Prediction(each, error="none") for each in images)
        finally:
            ended.append(True)

    out = tmp_path / "full.jsonl"
    out.symlink_to("/dev/full")
    job = predict.Job(run=tmp_path, paths=("-",), out=out)
    with pytest.raises(UserError, match="No space left on device") as refused:
        predict.write_rows(job, [str(images)], predict.Predictor(NAMES, look))
    assert ended and refused.tb, "its frames are still there"


def test_where_nothing_can_be_read_the_rows_say_why_and_the_exit_code_is_2(
    run: Path, tmp_path: Path, here: Here, scan_in_process: None
) -> None:
    folder(tmp_path, {"a.jpg": b"", "b.jpg": b"x"})
    answer = here("predict.py", "--run", "run", "a.jpg", "b.jpg", "--device", "cpu")
    assert (
        answer.error == "none of 2 files could be read; the first: a.jpg: undecodable (the file is empty)\n"
    )
    assert len(answer.out.splitlines()) == 3


def test_a_network_that_diverged_predicts_nothing(run: Path, images: Path) -> None:
    content = checkpoint.load(run / "last.ckpt")
    content["network"]["classifier.bias"].fill_(float("nan"))
    checkpoint.save(run / "last.ckpt", content)
    job = predict.Job(run=run, paths=(str(images),), checkpoint="last", resources=ONE_THREAD)
    with pytest.raises(UserError, match=r"checkpoint last: the network's logits are not finite; train again"):
        predict.main(job)


@pytest.mark.usefixtures("ordinary")
@pytest.mark.parametrize(
    ("name", "why"),
    [
        *((name, "Permission denied") for name in ("p.csv", "p.jsonl", "p.parquet")),
        ("full.csv", "No space left on device"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "full.csv").symlink_to("/dev/full")
    tmp_path.chmod(0o555)
    names, said = columns(NAMES, 1, False, False), rf"{name} cannot be written \({why}\); name another: --out"
    with pytest.raises(UserError, match=said), open_rows(tmp_path / name, names) as write:
        write(dict.fromkeys(names))


KILLED = """
import os, signal, sys
from pathlib import Path
from greyhound.prediction import columns, open_rows
names = columns(("a", "b"), 2, False, True)
with open_rows(Path(sys.argv[1]) if sys.argv[1:] else None, names) as write:
    for place in range(5000):
        write(dict.fromkeys(names) | {"path": f"{place}.jpg", "class": "a", "probability": 0.5})
        if place == 3000:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["", "p.csv", "p.jsonl", "p.parquet"])
def test_a_killed_run_leaves_whole_rows_or_the_older_table(tmp_path: Path, name: str) -> None:
    out = tmp_path / name if name else None
    if out:
        out.write_text("older")
    child = [sys.executable, "-c", KILLED, *([str(out)] if out else [])]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    text = out.read_text() if out else done.stdout
    if name == "p.parquet":
        assert text == "older"
    elif name == "p.jsonl":
        assert [json.loads(line)["path"] for line in text.splitlines()] == [f"{n}.jpg" for n in range(3001)]
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["path"] for row in rows] == [f"{n}.jpg" for n in range(3001)]
        assert text.endswith("3000.jpg,a,0.500000,,,,,\n")


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_an_error_of_what_is_read_is_not_said_to_be_the_tables(tmp_path: Path, name: str) -> None:
    names = columns(NAMES, 1, False, False)
    with pytest.raises(OSError, match="of a photograph"), open_rows(tmp_path / name, names) as write:
        write(dict.fromkeys(names))
        raise OSError("of a photograph")
