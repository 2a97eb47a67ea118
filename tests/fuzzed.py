"""The readers that face foreign bytes, each as a function of bytes: what `fuzz` feeds, and what may come of it.

Before it: `pictures` and `runs` draw the examples. After it: `fuzz` mutates them under coverage; `test_fuzz` reads the
examples, and every input that once broke a reader.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from pictures import coded, decoder, encode, packed, validate_image
from runs import TINY

from greyhound import eval as evaluation
from greyhound import explain, predict, recipe, review
from greyhound.cache import __main__ as room
from greyhound.cache import selection
from greyhound.cache.cli import ValueFormatError, from_json, read_or_exit
from greyhound.cache.index import add_index
from greyhound.cache.options import check_command, read_call, read_options
from greyhound.cache.pack import Options
from greyhound.cache.split import read_split
from greyhound.cache.store import SCHEMA, SPLITS, Header, Pack, PackError
from greyhound.cache.survey import table as survey
from greyhound.model import checkpoint
from greyhound.model import run as files
from greyhound.model.checkpoint import CheckpointError
from greyhound.model.report import report
from greyhound.model.resume import differences, other_versions
from greyhound.model.run import BEST, LAST, RECIPE, SCHEMAS, VERSIONS, Run, RunError, load_network
from greyhound.model.state import TrainState, drop_later_rows, restore
from greyhound.pipelines.benchmark import table
from greyhound.pipelines.benchmark.rows import BenchmarkError
from greyhound.pipelines.engine import BadImageError, Resources
from greyhound.pipelines.loader import Loader
from greyhound.recipe import Recipe

CLASSES: Final = 3
RUN_FILES: Final = (*SCHEMAS, "eval-other-test.json")
"""JSON files of a run folder, in the order in which the first byte of an input chooses one."""


@dataclass(frozen=True)
class Target:
    """One reader. read: given a folder of its own and the bytes. expected: what it may raise, in one line."""

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path, bytes], object]
    expected: tuple[type[Exception], ...]

    def attempt(self, folder: Path, data: bytes) -> Exception | None:
        """Read the bytes; the error, if they were refused. Any other error goes on."""
        try:
            self.read(folder, data)
        except self.expected as error:
            assert "\n" not in str(error), f"more than a line: {error}"
            return error
        return None


def written(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


def pack_seeds(folder: Path) -> list[bytes]:
    files = {f"class {k}": [encode(coded(9 + k, 8, k), "JPEG")] for k in range(CLASSES)}
    return [packed(folder, files, Options(val=0, test=0)).path.read_bytes()]


def read_pack(folder: Path, data: bytes) -> None:
    """Open it, and take every image that is sound."""
    opened = Pack(written(folder / "p.arrow", data))
    bad = opened.corrupt()
    for row in set(range(len(opened))) - set(bad):
        opened.encoded(row)
    json.dumps(opened.summary())


def header_seeds(folder: Path) -> list[bytes]:
    (data,) = pack_seeds(folder)
    return [pa.ipc.open_file(pa.py_buffer(data)).schema.metadata[b"greyhound"]]


def read_header(folder: Path, data: bytes) -> None:
    checksum = str(zlib.crc32(data)).encode()
    header = Header.read(SCHEMA.with_metadata({b"greyhound": data, b"greyhound_crc32": checksum}), folder)
    json.dumps(asdict(header))


SIZES: Final = [("width", "i4"), ("height", "i4"), ("orientation", "u1"), ("mean_luma", "f4")]
ROW: Final = np.dtype([("label", "i4"), ("split", "i1"), *SIZES])
"""What an index says of an image, as the bytes of an input."""
IMAGE: Final = encode(coded(20, 12), "JPEG")


def index_seeds(_: Path) -> list[bytes]:
    rows = [(label, 0, 20, 12, 1 + label, 99.0) for label in range(CLASSES)]
    return [np.array(rows, ROW).tobytes()]


def read_index(folder: Path, data: bytes) -> None:
    """A pack whose index says what somebody wanted it to, checksums and all; then batches of its images."""
    rows = np.frombuffer(data, ROW, min(len(data) // ROW.itemsize, 16))
    if not len(rows):
        return
    count, file = len(rows), folder / "p.arrow"
    names = [name for name in ROW.names or () if name != "split"]
    arrays = {name: pa.array(rows[name], SCHEMA.field(name).type) for name in names}
    arrays["split"] = pa.DictionaryArray.from_arrays(pa.array(rows["split"]), pa.array(SPLITS), safe=False)
    arrays["path"] = pa.array([f"{row}.jpg" for row in range(count)])
    arrays["image"] = pa.array([IMAGE] * count, pa.large_binary())
    arrays["crc32"] = pa.array([zlib.crc32(IMAGE)] * count, pa.uint32())
    header = Header(tuple(map(str, range(CLASSES))), "0" * 64, 0)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, header.schema()) as writer:
        writer.write_batch(pa.record_batch([arrays[name] for name in SCHEMA.names], schema=header.schema()))
    add_index(file)
    opened, resources = Pack(file), Resources("threads", "cpu", threads=1, prefetch=1, image_cache="encoded")
    with Loader(opened, TINY.augment, np.arange(count), resources, batch_size=4, epochs=1) as loader:
        list(loader)


def image_seeds(_: Path) -> list[bytes]:
    picture = coded(9, 7, 3)
    turned = encode(picture, "JPEG", orientation=6)
    return [turned, *(encode(picture, name) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"))]


def read_image(_: Path, data: bytes) -> None:
    """What the survey's child process does with it; whatever it holds, there is an answer."""
    json.dumps(asdict(validate_image(data, decoder())), default=bytes.hex)


SHA: Final = "0123456789abcdef" * 4


def decisions_seeds(_: Path) -> list[bytes]:
    head = "sha256,path,class,decision,to\n"
    rows = (f"{SHA},a/1.jpg,a,keep,\n", f'{SHA},"a/2,\n.jpg",a,relabel,b\n', ",a/3.jpg,a,exclude,\n")
    later = f"sha256,path,class,decision,to,reason,by\n{SHA},a/1.jpg,a,exclude,,dark: it is,machine\n"
    return [(head + "".join(rows)).encode(), later.encode()]


def read_decisions(folder: Path, data: bytes) -> None:
    found = selection.read_decisions(written(folder / "decisions.csv", data))
    selection.check_classes(found, ("a", "b"))
    selection.match(found, [selection.Photograph("a/1.jpg", "a", SHA)])


def survey_seeds(folder: Path) -> list[bytes]:
    dark = survey.Row("a/2.jpg", "a", findings=("dark",), causes=("dark",), reason="x")
    survey.write([survey.Row("a/1.jpg", "a"), dark], folder)
    return [(folder / "survey.csv").read_bytes()]


def read_survey(folder: Path, data: bytes) -> None:
    list(survey.Rows(written(folder / "survey.csv", data)))


def benchmark_seeds(_: Path) -> list[bytes]:
    row = {"name": "decode-only", "images_per_second": 9.0, "core_ms_per_image": 1.8, "spread": [1.7, 1.9]}
    row |= {"peak_mib": 99.0}
    measured = {"machine": "m", "date": "2026-11-25", "data": "d", "rows": [row], "missing": {}}
    return [json.dumps(measured).encode()]


def read_benchmark(folder: Path, data: bytes) -> None:
    """A benchmark's JSON, compared with itself and as the README's table."""
    file = written(folder / "bench.json", data)
    with contextlib.redirect_stdout(io.StringIO()):
        table.compare(table.read(file), table.read(file))
        table.as_markdown(table.read(file))


def run_seeds(_: Path) -> list[bytes]:
    """Each file of a run folder, its number before it."""
    result = {"valid_loss": 0.5, "accuracy": 0.9, "n": 6, "elapsed": 1.5}
    row = {"name": "a", "n": 6, "accuracy": 0.9, "interval": [0.5, 1.0]}
    row |= {"ensemble_accuracy": 0.9, "ensemble_interval": [0.5, 1.0]}
    evaluated = row | {"crops": 2, "classes": [row, row | {"name": "b"}], "confusion": [[5, 1], [0, 6]]}
    evaluated["confusion_pairs"] = [[0, 1, 2]]
    fit = {"ece": 0.1, "nll": 0.3, "bins": [[0, 0.0, 0.0], [12, 10.8, 11.0]]}
    evaluated["calibration"] = {"temperature": 1.1, "images": 60, "why": "", "before": fit, "after": fit}
    wrong = {
        "path": "a/8.jpg",
        "true": "a",
        "predicted": "b",
        "probability": 0.9,
        "loss": 2.3,
        "thumbnail": "",
    }
    image = {"path": "a/9.jpg", "reason": "dark", "detail": "d", "thumbnail": None}
    packed = {"path": "p.arrow", "digest": "0", "classes": ["a", "b"], "splits": {"train": 9}}
    packed |= {"beside": "../p.arrow", "background": "#ffffff"}
    packed |= {"excluded": {"total": 1, "reasons": {"dark": 1}, "images": [image]}, "transcoded": []}
    contents = {
        RECIPE: asdict(TINY),
        files.PACK: packed,
        VERSIONS: {"torch": "2"},
        files.METRICS: result
        | {"epoch": 0, "train_loss": 0.7, "weights_changed": 0.9, "images_per_second": 9.0},
        files.TIMES: {"epoch": 0, "seconds": 1.0, "elapsed": 2.0},
        files.PROBE: result | {"images": 9, "seconds": {"fit": 0.5}},
        files.SWA: {"before": result, "after": result},
        files.STEPS: {"epoch": 0, "images": 4, "train_loss": 0.7, "learning_rate": 0.1},
        files.DIVERGED: {"epoch": 1, "images": 4, "learning_rate": 0.1, "paths": ["a/9.jpg"]},
        files.MISTAKES: {"images": [wrong], "pairs": [{"true": "a", "predicted": "b", "images": [wrong]}]},
    }
    texts = [json.dumps(contents.get(name, evaluated)) for name in RUN_FILES]
    return [bytes([place]) + text.encode() for place, text in enumerate(texts)]


def read_run(folder: Path, data: bytes) -> None:
    """One file of a run folder is as the bytes say, the recipe sound where it is another: all that reads them, and the report."""
    for file in folder.iterdir():
        file.unlink()
    run, name = Run(folder), RUN_FILES[data[0] % len(RUN_FILES)] if data else RECIPE
    run.write(RECIPE, asdict(TINY))
    (folder / name).write_bytes(data[1:])
    report.build(folder)
    from_json(Recipe, run.read(RECIPE), RECIPE)
    run.rows(files.METRICS), run.rows(files.TIMES)
    for other in (files.PACK, files.PROBE, files.SWA):
        if (folder / other).exists():
            run.read(other)
    if (folder / VERSIONS).exists():
        other_versions(run, {"torch": "2", "date": "now"})


@cache
def _training() -> TrainState:
    network = torch.nn.Linear(2, 2)
    return TrainState(network=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9))


def checkpoint_seeds(folder: Path) -> list[bytes]:
    """A checkpoint that a training goes on from, and one of a network alone, both small."""
    state = _training()
    row = {"epoch": 0, "train_loss": 0.7, "seconds": 1.0}
    state.epoch, state.best, state.trained, state.curve = 1, 0.5, row, [[0, 8, 5.6, 0.1]]
    checkpoint.save(folder / LAST, state.content())
    checkpoint.save(folder / BEST, {"network": state.network.state_dict(), "score": 0.5, "after": "epoch 1"})
    return [(folder / name).read_bytes() for name in (LAST, BEST)]


def read_checkpoint(folder: Path, data: bytes) -> None:
    """A checkpoint, and a training that goes on from it, or the network in it."""
    (folder / BEST).write_bytes(data)
    (folder / files.AVERAGED).write_bytes(data)
    _, content = Run(folder).load("auto")
    if "progress" in content:
        state = _training()
        restore(Run(folder), content, state)
        drop_later_rows(Run(folder), state)
    else:
        load_network(_training().network, content, folder / BEST)


def pickle_seeds(folder: Path) -> list[bytes]:
    """What says in a checkpoint how its tensors belong together."""
    return [_members(data)["data.pkl"] for data in checkpoint_seeds(folder)]


def read_pickle(folder: Path, data: bytes) -> None:
    """A checkpoint around these bytes whose sums all agree."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (_sound_members() | {"data.pkl": data}).items():
            archive.writestr(f"archive/{name}", content)
    read_checkpoint(folder, stream.getvalue())


def _members(data: bytes) -> dict[str, bytes]:
    """The files in a checkpoint, by their names in it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@cache
def _sound_members() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as temporary:
        last, _ = checkpoint_seeds(Path(temporary))
    return _members(last)


def read_room(words: list[str]) -> None:
    """As `greyhound pack` and its like do."""
    name = next(iter(words), "pack")
    check_command(name, list(room.COMMANDS))
    read_call(room.COMMANDS[name], words[1:], name)


COMMANDS: Final[tuple[Callable[[list[str]], object], ...]] = (
    recipe.read_options,
    lambda words: read_options(evaluation.Job, words, "eval"),
    lambda words: read_options(predict.Job, words, "predict"),
    lambda words: read_options(explain.Job, words, "explain"),
    lambda words: read_options(review.Job, words, "review"),
    read_room,
)
"""Each program's parser, in the order in which the first byte of an input chooses one; nothing is done."""


def command_seeds(_: Path) -> list[bytes]:
    """A command line of each program, its words apart by a zero byte."""
    lines = (
        "fine --pack p --out o --batch-size 8 --augment.hue 0.1 --phases.0.high 1e-2 --checkpoints.steps 2",
        "--run r --crops 10 --split val --cache-bytes 4GB",
        "--run r --top 3 a.jpg - --out p.csv",
        "--run r --count 3 --engine threads --on-corrupt skip",
        "--out o --images i --folds 3",
        "pack images --out p --val 0.1 --grayscale keep",
    )
    return [bytes([place]) + line.replace(" ", "\0").encode() for place, line in enumerate(lines)]


def read_command(_: Path, data: bytes) -> None:
    """A program's words; what is wrong with them is said in one line, with exit code 2."""
    number, words = (data[0], data[1:].decode("utf-8", "surrogateescape").split("\0")) if data else (0, [])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            read_or_exit(lambda: COMMANDS[number % len(COMMANDS)](words))
    except SystemExit as leaving:
        assert leaving.code in (0, 2), leaving.code
        assert len(said.getvalue().splitlines()) == (1 if leaving.code else 0), said.getvalue()


EXCLUDED: Final = b'path,reason\na/1.jpg,grayscale: 2.1\n"a/2.jpg",not a dog\na/3.jpg,\n'
TINY_RECIPE: Final = json.dumps(asdict(TINY)).encode()


def read_recipe(folder: Path, data: bytes) -> None:
    """A recipe that a run is forced on from, and what became of it."""
    run = Run(written(folder / RECIPE, data).parent)
    list(differences(run.read(RECIPE), json.loads(TINY_RECIPE)))


TARGETS: Final = {
    "pack": Target(pack_seeds, read_pack, (PackError,)),
    "header": Target(header_seeds, read_header, (PackError,)),
    "index": Target(index_seeds, read_index, (PackError, BadImageError)),
    "image": Target(image_seeds, read_image, ()),
    "decisions": Target(decisions_seeds, read_decisions, (PackError,)),
    "excluded": Target(
        lambda _: [EXCLUDED],
        lambda folder, data: selection.read_exclusions(written(folder / "excluded.csv", data)),
        (PackError,),
    ),
    "split": Target(
        lambda _: ["path;split;group\na/1.jpg;Test;dog 1\n".encode(coding) for coding in ("utf-8", "utf-16")],
        lambda folder, data: read_split(written(folder / "split.csv", data)),
        (PackError,),
    ),
    "survey": Target(survey_seeds, read_survey, (PackError,)),
    "benchmark": Target(benchmark_seeds, read_benchmark, (BenchmarkError,)),
    "run": Target(run_seeds, read_run, (RunError, ValueFormatError)),
    "recipe": Target(lambda _: [TINY_RECIPE], read_recipe, (RunError,)),
    "checkpoint": Target(checkpoint_seeds, read_checkpoint, (CheckpointError, RunError)),
    "pickle": Target(pickle_seeds, read_pickle, (CheckpointError, RunError)),
    "command": Target(command_seeds, read_command, (RunError, ValueError)),
}
