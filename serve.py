"""Serve: a page on this machine. Drop a photograph, see its class, where the network looks, what is near it.

    greyhound serve --run runs/dogs
    curl -F file=@dog.jpg http://127.0.0.1:8000/predict

Before it: `greyhound train`. After it: a browser, or any program that posts a file and reads JSON.

One thread owns the network; uploads wait for it in a queue. Every file is scanned in a child process first.
Only this machine is answered unless --host is named. A page of somebody else's cannot use this one: the Host
header must be an address or this server's name, the Origin header, which browsers send with every post, must
be the same, and no other site may show its images.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from greyhound.cache.cli import end_quietly, read_or_exit
from greyhound.cache.machine import alone
from greyhound.cache.options import check_counts, check_field, read_options
from greyhound.pipelines.engine import Resources

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True)
class Job:
    """Show on a page what a trained network says of photographs."""

    run: Path
    """The run folder of a training."""
    port: int = 8000
    """The port; 0: any that is free."""
    host: str = LOOPBACK
    """The address to listen at. Any but this machine's own lets others upload photographs: nobody has to log
    in."""
    checkpoint: Literal["auto", "swa", "best", "last"] = "auto"
    """auto: swa or best, whichever did better on the validation split."""
    pack: Path | None = None
    """Where the pack of the training is now; it has the nearest training images."""
    nearest: int = 8
    """Training images beside each photograph; 0: none."""
    megabytes: int = 32
    """The largest upload."""
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        """Refuse numbers that serve nothing. Raises ValueError."""
        check_field("port", self.port, 0 <= self.port < 65536, "0 to 65535")
        check_field("nearest", self.nearest, self.nearest >= 0, "0 or more")
        check_counts(megabytes=self.megabytes)


if __name__ == "__main__":
    # Ctrl-C ends the imports without a traceback. --help and a slip are answered before them.
    end_quietly()
    JOB = read_or_exit(lambda: alone(read_options(Job, sys.argv[1:], "greyhound serve"), "serve"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts OpenMP; see model.precision

import asyncio
import logging
import secrets
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address

from greyhound.cache.cli import note, run
from greyhound.cache.errors import UserError
from greyhound.cache.scan import ImageInfo, children
from greyhound.cache.store import PackError
from greyhound.model.run import EVALUATION
from greyhound.pipelines.loader import choose
from greyhound.prediction import ImageFile, error_of, say_uncalibrated
from greyhound.trained import open_calibrated

ONLY_HERE: Final = ("localhost", LOOPBACK, "::1")
"""Where nobody else's machine is answered."""
NEEDED: Final = ("starlette", "uvicorn", "python_multipart")
SCANNERS: Final = 2
"""Child processes that look at uploads."""
TOP: Final = 5
"""Classes in an answer."""
SHUTDOWN_SECONDS: Final = 5
"""Seconds that the uploads under way have at the end."""
MAX_CONNECTIONS: Final = 64
"""Connections at a time, each with at most one upload on disk; with so many a request is answered 503.
A guess.
"""
THUMBNAILS: Final = 256
"""Training images that are kept small in memory, some 10 kB each. A guess."""
DRAIN_FACTOR: Final = 16
"""A refused upload is read on to so many times the limit: a browser that is still sending hears no answer."""


class Refused(Exception):
    """An upload that is not looked at. Its text is one line; status: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        """The answer."""
        super().__init__(text)
        self.status = status


def serve(job: Job) -> int:
    """Open the run, listen, answer until a signal comes. The exit code."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        todo = f"pip install {' '.join(missing)}"
        raise UserError(f"{missing[0]} is not installed, which serves the page; {todo}")
    import uvicorn

    logging.getLogger("python_multipart").setLevel(
        logging.CRITICAL
    )  # the answer says what is wrong with a form
    with listen(job) as listener, open_app(job, listener.getsockname()[1]) as app:
        config = uvicorn.Config(
            app,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            limit_concurrency=MAX_CONNECTIONS,
        )
        name = f"[{job.host}]" if ":" in job.host else job.host
        print(f"http://{name}:{listener.getsockname()[1]}/ (Ctrl-C ends it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(job: Job) -> socket.socket:
    """The socket, before the run is opened, which takes longer. Raises UserError."""
    try:
        family = socket.AF_INET6 if ":" in job.host else socket.AF_INET
        return socket.create_server((job.host, job.port), family=family)
    except OSError as error:
        why = (
            os.strerror(error.errno) if error.errno and error.errno > 0 else error
        )  # a resolver's are negative
        found = f"{job.host}, port {job.port}: {why}"
        raise UserError(f"{found}; name another: --port, --host") from None


@contextmanager
def open_app(job: Job, port: int) -> Iterator[Any]:
    """The application, its network, scanners and temporary folder, for as long as the block runs."""
    from greyhound.viewer import Viewer, open_index  # matplotlib among them

    trained, fitted = open_calibrated(job.run, job.checkpoint, job.resources, job.pack)
    say_uncalibrated(fitted.why)
    index = open_index(trained, job.resources, job.pack) if job.nearest else None
    viewer = Viewer(trained, job.resources, fitted.temperature, index)
    dali = choose(job.resources.engine, job.resources.device)[0] == "dali"
    with (
        tempfile.TemporaryDirectory(prefix="greyhound-") as folder,
        ThreadPoolExecutor(SCANNERS) as scanners,
        ThreadPoolExecutor(1) as pictures,
        ThreadPoolExecutor(1) as network,
        children(trained.background, dali) as scan,  # ends first, and with it a decoder that hangs
    ):
        try:
            yield App(job, port, viewer, Path(folder), scan, scanners, pictures, network).build(fitted.why)
        finally:
            for pool in (scanners, pictures, network):
                pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class App:
    """What answers requests. viewer: a `viewer.Viewer`, for the thread `network` alone."""

    job: Job
    port: int
    viewer: Any
    folder: Path
    scan: Callable[[Sequence[Path]], list[ImageInfo]]
    scanners: ThreadPoolExecutor
    pictures: ThreadPoolExecutor
    network: ThreadPoolExecutor

    def build(self, uncalibrated: str) -> Any:
        """The routes, and what stands before them."""
        from starlette.applications import Starlette
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import HTMLResponse, Response
        from starlette.routing import Route

        nonce = secrets.token_urlsafe(16)
        page = draw_page(self.job, self.viewer, uncalibrated, nonce)
        policy = f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'"
        policy += f"; script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        safe = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"}
        safe["Cross-Origin-Resource-Policy"] = "same-origin"
        index = self.viewer.index
        thumbnail = lru_cache(THUMBNAILS)(index.thumbnail) if index else None

        async def image(request: Any) -> Any:
            row = request.path_params["row"]
            if thumbnail is None or row not in index.ids:
                return say_error(404, "there is no such training image")
            try:
                jpeg = await self._in(self.pictures, thumbnail, row)
            except PackError as error:  # it is damaged
                return say_error(404, str(error))
            return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

        routes = [
            Route("/", lambda _: HTMLResponse(page)),
            Route("/predict", self.answer, methods=["POST"]),
            Route("/image/{row:int}", image),
        ]
        inner = Starlette(routes=routes)

        async def guard(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
            async def send_safe(message: Any) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).update(safe)
                await send(message)

            refused = self.refuse_strangers(Headers(scope=scope))
            try:
                await (say_error(403, refused) if refused else inner)(scope, receive, send_safe)
            except asyncio.CancelledError:
                with suppress(RuntimeError):  # an answer was under way
                    await say_error(503, "the server ends")(scope, receive, send_safe)

        return guard

    def refuse_strangers(self, headers: Any) -> str:
        """Why a request is refused: it was meant for another server, or comes from another one's page."""
        host = headers.get("host", "").lower()
        name = host.removesuffix(f":{self.port}")
        ours = name in ("localhost", self.job.host.lower(), socket.gethostname().lower()) or is_address(name)
        if not ours or (name == host and self.port != 80):
            return f"this is not {host[:100]}; open http://{LOOPBACK}:{self.port}/ or this machine's address"
        origin = headers.get("origin")
        foreign = origin is not None and origin.lower().partition("://")[2] != host
        return "a page of another site may not post here" if foreign else ""

    async def answer(self, request: Any) -> Any:
        """POST /predict: what the network says of the file; {"error": ...} where it cannot be looked at."""
        from starlette.exceptions import HTTPException
        from starlette.responses import JSONResponse

        try:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                found = await self.look(request, Path(folder))
        except Refused as error:
            return say_error(error.status, str(error))
        except HTTPException as error:  # a form that is none
            return say_error(error.status_code, error.detail)
        except Exception as error:  # the server lives on
            note(f"an upload failed: {type(error).__name__}: {error}")
            return say_error(500, f"it cannot be looked at: {error}")
        left_out = set() if "pictures" in request.query_params else {"window", "saliency"}
        return JSONResponse({name: value for name, value in found.items() if name not in left_out})

    async def look(self, request: Any, folder: Path) -> dict[str, Any]:
        """Save the upload into a folder of its own, scan it, look at it. Raises Refused and more."""
        name = await save_upload(request, folder / "upload", self.job.megabytes)
        ending = Path(name).suffix[:8] if Path(name).suffix[1:].isalnum() else ""
        image = ImageFile((folder / "upload").rename(folder / f"upload{ending}"), name)
        (info,) = await self._in(self.scanners, self.scan, [image.file])
        if error := error_of(image, info):
            raise Refused(422, error)
        seen = await self._in(self.network, self.viewer.look, image, info, folder, TOP, self.job.nearest)
        return {"file": name, **seen}

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


def is_address(name: str) -> bool:
    """Whether it is an IP address as a Host header has it: no DNS server can make that lead here."""
    try:
        kind = IPv6Address if name.startswith("[") and name.endswith("]") else IPv4Address
        return bool(kind(name.strip("[]")))
    except ValueError:
        return False


async def save_upload(request: Any, file: Path, megabytes: int) -> str:
    """Write the file of a request, a form's or the body itself, to `file`: its name.

    Raises Refused, HTTPException.
    """
    limit, size = megabytes << 20, 0
    with file.open("wb") as out:
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                out.write(part)
            elif size > DRAIN_FACTOR * limit:
                break
    if size > limit:
        raise Refused(
            413, f"the upload is larger than {megabytes} MB, the limit of this server (--megabytes)"
        )
    if not size:
        raise Refused(400, "there is no file; post one: curl -F file=@photograph.jpg .../predict")
    if "multipart/form-data" not in request.headers.get("content-type", ""):
        return ""
    return await unpack_form(request, file)


async def unpack_form(request: Any, file: Path) -> str:
    """Put the file of the form that `file` holds in its place: its name."""
    from starlette.datastructures import UploadFile
    from starlette.requests import Request

    with file.open("rb") as body:

        async def receive() -> dict[str, Any]:
            part = body.read(1 << 20)
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async with Request(request.scope, receive).form(max_files=1, max_fields=10) as form:
            uploads = [each for each in form.values() if isinstance(each, UploadFile)]
            if not uploads:
                raise Refused(400, "the form has no file; name it: curl -F file=@photograph.jpg .../predict")
            with file.open("wb") as out:
                shutil.copyfileobj(uploads[0].file, out)
            return uploads[0].filename or ""


def say_error(status: int, text: str) -> Any:
    """An answer of one line, as JSON."""
    from starlette.responses import JSONResponse

    return JSONResponse({"error": " ".join(text.split())}, status)


def draw_page(job: Job, viewer: Any, uncalibrated: str, nonce: str) -> str:
    """The page. nonce: what its style and its script are known by."""
    from jinja2 import Environment, FileSystemLoader

    here = Path(__file__).parent
    loader = FileSystemLoader([here, here / "cache"])
    environment = Environment(autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True)
    trained = viewer.trained
    tested = trained.run.read(EVALUATION) if (trained.run.folder / EVALUATION).exists() else {}
    fresh = tested.get("weights") == trained.origin["weights"]
    return environment.get_template("serve.html.jinja").render(
        name=job.run.resolve().name,
        classes=trained.classes,
        checkpoint=trained.origin["checkpoint"],
        tested=tested if fresh else {},
        uncalibrated=uncalibrated,
        images=0 if viewer.index is None else len(viewer.index.ids),
        megabytes=job.megabytes,
        local=job.host.lower() in ONLY_HERE,
        nonce=nonce,
    )


if __name__ == "__main__":
    run(lambda: serve(JOB))
