"""serve.py: real uploads to a real server, in a browser too; bad files, strangers, twenty at once."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, WHY, Page, browser
from numpy.typing import NDArray
from pictures import flipped, folder, png_bomb
from PIL import Image
from runs import NAMES, ONE_THREAD, Capture, Here, Patch, tinted

from greyhound import predict, serve
from greyhound.cache.pack import Options, pack
from greyhound.cache.store import Pack
from greyhound.model import checkpoint
from greyhound.model.run import NEIGHBOURS, Run
from greyhound.pipelines.engine import Resources
from greyhound.trained import Trained, open_trained
from greyhound.viewer import open_index

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("python_multipart")

BOUNDARY = "a1b2c3"


@contextmanager
def serving(job: serve.Job) -> Iterator[int]:
    """The port of a server in a thread of its own, as `serve` starts it but for the signals."""
    with serve.listen(job) as listener, serve.open_app(job, listener.getsockname()[1]) as app:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server ended before it listened"
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@dataclass(frozen=True)
class Served:
    """A server, and the run that it has."""

    port: int
    run: Path

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and content of an answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def whole(self, method: str, path: str, headers: dict[str, str]) -> Any:
        """The headers of an answer."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, headers=headers)
            return connection.getresponse().headers

    def post(self, data: bytes, name: str = "dog.jpg", query: str = "", **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer to a form with a file."""
        lines = (
            f"--{BOUNDARY}",
            f'Content-Disposition: form-data; name="file"; filename="{name}"',
            "Content-Type: image/jpeg",
        )
        form = "\r\n".join(lines).encode() + b"\r\n\r\n" + data + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        status, content = self.ask("POST", f"/predict{query}", form, kind | headers)
        return status, json.loads(content)


@pytest.fixture(scope="module")
def served(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = Path(copytree(tiny_run, tmp_path_factory.mktemp("serve") / "run"))
    with serving(serve.Job(run=run, port=0, megabytes=1, nearest=4, resources=ONE_THREAD)) as port:
        yield Served(port, run)


def test_a_photograph_is_classified_as_predict_does(served: Served, tmp_path: Path, capsys: Capture) -> None:
    status, found = served.post(tinted(0, 500), "a dog.jpg")
    assert (status, found["file"]) == (200, "a dog.jpg")
    assert sorted(each["class"] for each in found["classes"]) == list(NAMES)
    probabilities = [each["probability"] for each in found["classes"]]
    assert sum(probabilities) == pytest.approx(1, abs=3e-6)
    assert list(found) == ["file", "classes", "nearest"]
    folder(tmp_path, {"dog.jpg": tinted(0, 500)})
    capsys.readouterr()
    job = predict.Job(run=served.run, paths=(str(tmp_path / "dog.jpg"),), resources=ONE_THREAD)
    predict.main(job)
    row = capsys.readouterr().out.splitlines()[1].split(",")
    assert row[1] == found["classes"][0]["class"]
    assert float(row[2]) == pytest.approx(probabilities[0], abs=2e-6)


def test_the_nearest_training_images_are_named_and_shown(served: Served, colour_pack: Pack) -> None:
    row = int(colour_pack.ids("train")[17])
    _, found = served.post(colour_pack.encoded(row).tobytes(), "known.png")
    near = found["nearest"]
    assert near[0]["path"] == colour_pack.image_path(row)
    assert near[0]["class"] == colour_pack.classes[colour_pack.labels[row]]
    assert near[0]["similarity"] == pytest.approx(1, abs=2e-3)
    assert [each["similarity"] for each in near] == sorted(
        (each["similarity"] for each in near), reverse=True
    )
    train = {colour_pack.image_path(each) for each in colour_pack.ids("train").tolist()}
    assert len({each["path"] for each in near} & train) == 4
    assert near[0]["image"] == f"/image/{row}?{colour_pack.header.digest[:12]}"
    status, content = served.ask("GET", near[0]["image"])
    assert (status, Image.open(io.BytesIO(content)).format) == (200, "JPEG")
    assert served.ask("GET", f"/image/{colour_pack.ids('test')[0]}")[0] == 404
    assert served.ask("GET", "/image/99999")[0] == 404


def test_pictures_come_on_request(served: Served) -> None:
    _, found = served.post(tinted(0, 500), query="?pictures")
    for name in ("window", "saliency"):
        kind, _, data = found[name].partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    window = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["window"].partition(",")[2]))))
    assert window.mean((0, 1)).argmax() == 0


def test_the_body_may_be_the_file_itself(served: Served) -> None:
    status, content = served.ask("POST", "/predict", tinted(1, 501), {"Content-Type": "image/jpeg"})
    assert (status, json.loads(content)["classes"][0]["class"]) == (200, "green")


BAD: dict[str, tuple[bytes, int, str]] = {
    "text": (b"not an image", 422, "undecodable (no image that is read here)"),
    "truncated": (tinted(0, 1)[:700], 422, "truncated ("),
    "bomb": (png_bomb(30_000), 422, "bomb (the header claims 30000 x 30000 pixels"),
    "empty": (b"", 422, "undecodable (the file is empty)"),
    "large": (bytes(1 << 20), 413, "the upload is larger than 1 MB, the limit of this server (--megabytes)"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "svg (SVG, which is a drawing in text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_and_the_server_lives_on(served: Served, kind: str) -> None:
    data, status, says = BAD[kind]
    found = served.post(data, "bad.jpg")
    assert found[0] == status
    assert list(found[1]) == ["error"]
    assert found[1]["error"].startswith(says)
    assert "\n" not in found[1]["error"]
    assert served.post(tinted(0, 2))[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "says"),
    [
        (b"", {}, "there is no file; post one: curl -F file=@photograph.jpg"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, "Invalid multipart data."),
        (b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}, "the form has no file"),
        (b"x", {"Content-Type": "multipart/form-data"}, "Missing boundary"),
    ],
)
def test_a_form_without_a_file_is_refused(
    served: Served, body: bytes, headers: dict[str, str], says: str
) -> None:
    status, content = served.ask("POST", "/predict", body, headers)
    assert (status, json.loads(content)["error"].startswith(says)) == (400, True), content


def test_a_name_is_no_path(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """Nothing is written under it: the temporary folder and the current one are so deep that it would be seen."""
    (deep := tmp_path / "one" / "two" / "three").mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    monkeypatch.chdir(deep)
    names = ["../../evil.jpg", "../evil.jpg", f"{tmp_path}/evil.jpg", "a.b/c"]
    names += ["a\x00.jpg", ".jpg", "x" * 300 + ".jpg", "a.\x00b"]
    with serving(serve.Job(run=run, port=0, nearest=0, resources=ONE_THREAD)) as port:
        before = sorted(tmp_path.rglob("*"))
        for name in names:
            status, found = Served(port, run).post(tinted(0, 3), name)
            assert (status, found["file"], found["classes"][0]["class"]) == (200, name, "red")
            assert sorted(tmp_path.rglob("*")) == before, name


def test_strangers_are_refused(served: Served) -> None:
    """Another site's page, by its Origin; a name that was made to lead here, by its Host."""
    own = f"127.0.0.1:{served.port}"
    for origin, status in ((f"http://{own}", 200), ("http://evil.example", 403), ("null", 403)):
        assert served.post(tinted(0, 4), Origin=origin)[0] == status
    assert served.post(tinted(0, 4), Origin="http://localhost:1")[0] == 403
    for host, status in ((own, 200), (f"localhost:{served.port}", 200), (f"evil.example:{served.port}", 403)):
        assert served.ask("GET", "/", headers={"Host": host})[0] == status
    assert served.post(tinted(0, 4), Host="evil.example", Origin="http://evil.example")[0] == 403
    assert served.ask("GET", "/image/1", headers={"Host": "evil.example"})[0] == 403
    assert served.post(tinted(0, 4), Origin="http://[evil")[0] == 403
    answer = served.whole("GET", "/image/1", {"Host": own})
    assert answer["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("host", "named", "status"),
    [
        ("0.0.0.0", "evil.example", 403),
        ("0.0.0.0", "192.0.2.7", 200),
        ("0.0.0.0", "[2001:db8::7]", 200),
        ("0.0.0.0", "[evil]", 403),
        ("0.0.0.0", "LocalHost", 200),
        ("0.0.0.0", "the-box", 200),
        ("MyBox", "mybox", 200),
        ("MyBox", "MYBOX", 200),
        ("MyBox", "mybox.example", 403),
    ],
)
def test_a_server_for_others_is_called_by_its_own_name(
    host: str, named: str, status: int, monkeypatch: Patch
) -> None:
    """A name of somebody else's may be made to lead here; an address cannot."""
    monkeypatch.setattr("socket.gethostname", lambda: "The-Box")
    pools = [None] * 4
    app: Any = serve.App(serve.Job(Path("run"), host=host), 8000, None, Path(), *pools)  # type: ignore[arg-type]
    for origin in (None, f"http://{named.lower()}:8000"):
        headers = {"host": f"{named}:8000"} | ({"origin": origin} if origin else {})
        assert bool(app.refuse_strangers(headers)) == (status == 403)
    for port in ("", ":80", ":8001"):
        assert app.refuse_strangers({"host": f"{named}{port}"})


def test_a_damaged_training_image_is_one_line_and_an_image_is_decoded_once(
    served: Served, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Damaged since the training images were looked at, which the run folder keeps."""
    asked, (bad, good) = [], colour_pack.ids("train")[:2].tolist()
    damaged, reading = flipped(colour_pack, tmp_path / "damaged.arrow", bad), Pack.image

    def image(self: Pack, row: int) -> Any:
        asked.append(row)
        return reading(self, row)

    monkeypatch.setattr(Pack, "image", image)
    with serving(serve.Job(run=served.run, port=0, pack=damaged.path, resources=ONE_THREAD)) as port:
        here = Served(port, served.run)
        status, content = here.ask("GET", f"/image/{bad}")
        says = f"{damaged.path} is corrupt: {colour_pack.describe(bad)} has not the bytes that were packed"
        assert (status, json.loads(content)["error"].startswith(says)) == (404, True), content
        first, again = (here.ask("GET", f"/image/{good}") for _ in range(2))
        assert first[0] == 200 and first == again
        with Image.open(io.BytesIO(first[1])) as shown:
            assert shown.size == colour_pack.image(good).shape[1::-1]
    assert asked == [bad, good, good], "the last time by the test"


def test_twenty_at_once_are_answered_each_with_its_own(served: Served) -> None:
    def send(number: int) -> tuple[int, Any]:
        return served.post(tinted(number % 3, 600 + number), f"{number}.jpg", "?pictures")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert answers == [send(number) for number in range(20)]
    assert [found["file"] for _, found in answers] == [f"{number}.jpg" for number in range(20)]
    assert len({found["window"] for _, found in answers}) == 20


def test_a_network_that_diverged_is_an_error_and_not_the_end(run: Path) -> None:
    content = checkpoint.load(run / "swa.ckpt")
    content["network"]["classifier.bias"].fill_(float("nan"))
    checkpoint.save(run / "swa.ckpt", content)
    job = serve.Job(run=run, port=0, nearest=0, checkpoint="swa", resources=ONE_THREAD)
    with serving(job) as port:
        for _ in range(2):
            status, found = Served(port, run).post(tinted(0, 5))
            assert status == 500
            assert found["error"].endswith("the network's logits are not finite; train again")


def test_nothing_of_an_upload_is_left(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with serving(serve.Job(run=run, port=0, nearest=0, resources=ONE_THREAD)) as port:
        here = Served(port, run)
        assert here.post(tinted(0, 6))[0] == 200
        assert here.post(b"bad")[0] == 422
        (made,) = (tmp_path / "tmp").iterdir()
        assert list(made.iterdir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []


# --- the nearest training images --------------------------------------------------------------------------------------


def test_training_images_are_looked_at_once(
    run: Path, colour_pack: Pack, monkeypatch: Patch, capsys: Capture
) -> None:
    trained = open_trained(Run(run), "auto", ONE_THREAD)
    index = open_index(trained, ONE_THREAD, None)
    assert index is not None
    assert index.ids.tolist() == colour_pack.ids("train").tolist()
    assert np.linalg.norm(index.features.astype(float), axis=1) == pytest.approx(np.ones(42), abs=2e-3)
    looked: list[int] = []

    def see_all(trained: Trained, pack: Pack, ids: NDArray[np.int64], on: Resources) -> tuple[Any, Any]:
        looked.append(len(ids))
        return ids, index.features[: len(ids)]

    monkeypatch.setattr("greyhound.viewer._extract_all", see_all)
    kept = open_index(trained, ONE_THREAD, None)
    assert kept is not None
    assert (looked, np.array_equal(kept.features, index.features)) == ([], True)
    few = open_index(trained, ONE_THREAD, None, most=5)
    assert few is not None
    assert (looked, len(few.ids), {*few.ids} <= {*index.ids}) == ([5], 5, True)
    kept_bytes = (run / NEIGHBOURS).read_bytes()
    entry = kept_bytes.rindex(b"PK\x01\x02")
    locked, newer = bytearray(kept_bytes), bytearray(kept_bytes)
    locked[entry + 8] |= 1  # a password
    newer[entry + 6] = 173  # version 17.3 of zip
    for damage in (b"", b"PK\x03\x04 broken", kept_bytes[:-300], bytes(locked), bytes(newer)):
        (run / NEIGHBOURS).write_bytes(damage)
        assert open_index(trained, ONE_THREAD, None) is not None
    assert looked == [5, *[42] * 5]
    other = replace(trained, origin=trained.origin | {"weights": "others"})
    assert open_index(other, ONE_THREAD, None) is not None
    assert looked == [5, *[42] * 6]


def test_training_images_are_those_of_the_run_alone(
    run: Path, colour_pack: Pack, coded_pack: Pack, tmp_path: Path, capsys: Capture, scan_in_process: None
) -> None:
    """Of another split of the same images, some were held out."""
    trained = open_trained(Run(run), "auto", ONE_THREAD)
    pack(colour_pack.path.parent / "images", tmp_path / "other.arrow", Options(val=0.1, test=0.2, seed=1))
    for path in (coded_pack.path, tmp_path / "other.arrow"):
        assert open_index(trained, ONE_THREAD, path) is None
        assert capsys.readouterr().err.startswith(f"note: no nearest training images: {path} ")


def test_with_a_corrupt_image_they_are_looked_at_once_too(
    run: Path, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    resources = replace(ONE_THREAD, on_corrupt="skip")
    row = int(colour_pack.ids("train")[3])
    path = flipped(colour_pack, tmp_path / "damaged.arrow", row).path
    trained = open_trained(Run(run), "auto", resources)
    index = open_index(trained, resources, path)
    assert index is not None
    assert (len(index.ids), row in index.ids) == (41, False)
    monkeypatch.setattr("greyhound.viewer._extract_all", None)
    kept = open_index(trained, resources, path)
    assert kept is not None
    assert np.array_equal(kept.ids, index.ids) and np.array_equal(kept.features, index.features)


# --- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--run nowhere --port 0", "nowhere is no folder; expected a run folder"),
        ("--run nowhere --port 70000", "--port is 70000; expected 0 to 65535"),
        ("--run nowhere --nearest -1", "--nearest is -1; expected 0 or more"),
        ("--run nowhere --megabytes 0", "--megabytes is 0; expected at least 1"),
        ("--run nowhere --host 203.0.113.7 --port 0", "203.0.113.7, port 0: "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, says: str, here: Here) -> None:
    assert here("serve.py", *arguments.split()).error.startswith(says)


def test_a_port_that_is_taken_is_one_line(served: Served, here: Here) -> None:
    answer = here("serve.py", "--run", str(served.run), "--port", str(served.port))
    assert (
        answer.error
        == f"127.0.0.1, port {served.port}: Address already in use; name another: --port, --host\n"
    )


def test_without_its_packages_it_says_what_to_install(run: Path, monkeypatch: Patch, here: Here) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error, todo = here("serve.py", "--run", "run").error, "pip install starlette uvicorn python_multipart"
    assert error == f"starlette is not installed, which serves the page; {todo}\n"


@contextmanager
def program(run: Path, temporary: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], Served]]:
    """The program itself, which listens, with a temporary folder of its own, in which it leaves nothing."""
    temporary.mkdir()
    words = ["--run", str(run), "--port", "0", "--device", "cpu", "--threads", "1", *more]
    line, pipe = [sys.executable, "-m", "greyhound", "serve", *words], subprocess.PIPE
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            assert process.stdout
            url = process.stdout.readline()
            assert url.startswith("http://127.0.0.1:") and url.endswith("/ (Ctrl-C ends it)\n")
            yield process, Served(int(url.split(":")[2].split("/")[0]), run)
        finally:
            process.kill()
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_nothing(run: Path, tmp_path: Path, number: int) -> None:
    with program(run, tmp_path / "tmp") as (process, here):
        assert here.post(tinted(0, 7))[0] == 200
        with ExitStack() as held:
            for _ in range(serve.MAX_CONNECTIONS):
                held.enter_context(socket.create_connection(("127.0.0.1", here.port)))
            assert here.ask("GET", "/")[0] == 503
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert (out, "Traceback" in err) == ("", False)


@pytest.mark.slow
def test_a_signal_ends_it_while_a_decoder_hangs(run: Path, tmp_path: Path) -> None:
    """The upload is answered that the server ends, within its patience and not the decoder's 60 s."""
    with ThreadPoolExecutor(1) as pool, program(run, tmp_path / "tmp", "--nearest", "0") as (process, here):
        assert here.post(tinted(0, 7))[0] == 200
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").parent.parent.glob("*/children")
        (decoder,) = [int(each) for file in children for each in file.read_text().split()]
        os.kill(decoder, signal.SIGSTOP)
        waiting, deadline = pool.submit(here.post, tinted(0, 8)), time.monotonic() + 30
        while not list((tmp_path / "tmp").glob("greyhound-*/*/upload.jpg")):
            assert time.monotonic() < deadline, "the upload never came"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
        assert waiting.result() == (503, {"error": "the server ends"})
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err, err


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip(WHY)
    root = tmp_path_factory.mktemp("browser")
    with browser(root / "profile", root / "downloads") as page:
        yield page


@pytest.fixture
def page(chromium: Page, served: Served) -> Iterator[Page]:
    """The page, opened; it throws nothing, and asks nobody but the server."""
    chromium.errors.clear()
    chromium.open(f"http://127.0.0.1:{served.port}/")
    yield chromium
    refused = [error for error in chromium.errors if "the server responded with a status of 4" not in error]
    assert refused == []
    own = ("about:", "data:", "blob:", f"http://127.0.0.1:{served.port}/")
    assert [url for url in chromium.requests if not url.startswith(own)] == []


ANSWERED = "document.querySelectorAll('article').length === {} && !document.querySelector('.wait')"


def given(page: Page, *files: Path) -> None:
    """Give files to the page, and wait for an answer to each."""
    page.choose_file("#file", *files)
    page.wait(ANSWERED.format(len(files)))


def test_a_photograph_is_shown_with_its_classes_map_and_neighbours(
    page: Page, tmp_path: Path, served: Served
) -> None:
    name = "<b>dog & co.jpg"
    given(page, folder(tmp_path, {name: tinted(0, 500)}) / name)
    assert page.text("article h2") == name
    _, found = served.post(tinted(0, 500))
    assert page.text(".bar span") == found["classes"][0]["class"]
    shown = page.ask("[...document.querySelectorAll('.bar meter')].map(each => each.value)")
    assert shown == pytest.approx([each["probability"] for each in found["classes"]], abs=1e-6)
    assert page.ask("document.querySelectorAll('.near li').length") == 4
    page.wait(
        "[...document.images].filter(each => each.closest('article')).every(each => each.naturalWidth > 0)"
    )
    assert page.ask("document.querySelector('.heat').naturalWidth") == 32
    for width in (390, 1200):
        page.resize(width, 900)
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")


def test_bad_files_are_one_line_on_the_page(page: Page, tmp_path: Path) -> None:
    files = {f"{kind}.jpg": data for kind, (data, _, _) in BAD.items()} | {"good.jpg": tinted(1, 9)}
    root = folder(tmp_path, files)
    given(page, *(root / name for name in files))
    said = page.ask(
        "Object.fromEntries([...document.querySelectorAll('article')].map(each =>"
        " [each.querySelector('h2').textContent, each.querySelector('[role=alert]')?.textContent ?? '']))"
    )
    assert said.keys() == files.keys()
    assert said.pop("good.jpg") == ""
    assert said.pop("large.jpg").startswith("the upload is larger than 1 MB")
    for name, text in said.items():
        assert text.startswith(BAD[name.removesuffix(".jpg")][2])
    assert page.ask("[...document.querySelectorAll('.error .seen')].every(each => !each.checkVisibility())")


def test_twenty_photographs_at_once(page: Page, tmp_path: Path, served: Served) -> None:
    root = folder(tmp_path, {f"{number:02}.jpg": tinted(number % 3, 700 + number) for number in range(20)})
    given(page, *sorted(root.iterdir()))
    shown = page.ask(
        "[...document.querySelectorAll('article')].map(each =>"
        " [each.querySelector('h2').textContent, each.querySelector('.bar span').textContent])"
    )
    expected = [served.post(file.read_bytes())[1]["classes"][0]["class"] for file in sorted(root.iterdir())]
    assert sorted(shown) == [[f"{number:02}.jpg", name] for number, name in enumerate(expected)]


def test_a_photograph_can_be_dropped(page: Page, tmp_path: Path) -> None:
    data = base64.b64encode(tinted(2, 8)).decode()
    page.ask(
        f"(() => {{ const raw = Uint8Array.from(atob('{data}'), each => each.charCodeAt(0)), files = new DataTransfer();"
        " files.items.add(new File([raw], 'dropped.jpg'));"
        " document.body.dispatchEvent(new DragEvent('drop', {bubbles: true, dataTransfer: files})) })()"
    )
    page.wait(ANSWERED.format(1))
    assert (page.text("article h2"), page.text(".bar span")) == ("dropped.jpg", NAMES[0])


def test_a_server_that_has_gone_is_said(page: Page, tmp_path: Path) -> None:
    page.ask("void (window.fetch = () => Promise.reject(new TypeError('Failed to fetch')))")
    given(page, folder(tmp_path, {"dog.jpg": tinted(0, 1)}) / "dog.jpg")
    assert page.text("[role=alert]") == "the server does not answer; is it still running?"
