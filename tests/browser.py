"""A real browser for the tests: headless Chromium, clicked and typed at through its DevTools protocol.

Before it: a page. After it: the tests click where an element is, press keys, and read what the page shows. The protocol
runs over two pipes (--remote-debugging-pipe), so that no library and no port is needed.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

CHROMIUM: Final = shutil.which("chromium")
WHY: Final = "needs Debian's chromium: apt-get install chromium"
PATIENCE: Final = 60.0
"""Seconds that the browser may take over anything."""
KEYS: Final = {"Enter": 13, "Escape": 27, "End": 35, "Home": 36} | {
    f"Arrow{name}": 37 + place for place, name in enumerate(("Left", "Up", "Right", "Down"))
}


class Page:
    """One tab. `errors` are what its scripts threw and what its security policy refused;
    `requests` are the addresses that it asked for.
    """

    def __init__(self, send: Callable[..., dict[str, Any]], errors: list[str], requests: list[str]) -> None:
        self._send, self.errors, self.requests = send, errors, requests

    def open(self, url: str) -> None:
        """Go there, and wait until all of it has been read."""
        self._send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.ask(condition):
            if time.monotonic() > deadline:
                raise AssertionError(f"never true: {condition}; errors: {self.errors}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What an element says."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """A click of the left button into the middle of an element, which is scrolled to and must not be covered."""
        across, down, hit = self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoViewIfNeeded();"
            " const r = e.getBoundingClientRect();"
            " const x = r.x + r.width / 2, y = r.y + r.height / 2;"
            " const at = document.elementFromPoint(x, y); return [x, y, Boolean(at && (e.contains(at) || at.contains(e)))] })()"
        )
        assert hit, f"{selector} is covered"
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=across, y=down, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Press and release keys: a letter each, or a name in KEYS."""
        for key in keys:
            code = KEYS.get(key, ord(key[0].upper()))
            typed = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            known = {"key": key, "windowsVirtualKeyCode": code}
            self._send("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **known, **typed)
            self._send("Input.dispatchKeyEvent", type="keyUp", **known)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select: the browser draws its list itself, so that no click can reach it."""
        self.ask(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )

    def choose_file(self, selector: str, *files: Path) -> None:
        """Give files to an input."""
        root = self._send("DOM.getDocument")["root"]["nodeId"]
        node = self._send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._send("DOM.setFileInputFiles", nodeId=node, files=list(map(str, files)))

    def resize(self, width: int, height: int) -> None:
        """The window's size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._send("Emulation.setDeviceMetricsOverride", **size)

    @contextmanager
    def before(self, script: str) -> Iterator[None]:
        """Run a script in every page that is opened in the block, before the page's own."""
        known = self._send("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
        try:
            yield
        finally:
            self._send("Page.removeScriptToEvaluateOnNewDocument", identifier=known)


class _Pipe:
    """Owns the two pipes to the browser; messages are JSON, each ended by a zero byte."""

    def __init__(self, into: int, out: int) -> None:
        self.into, self.out, self.read, self.number = into, out, b"", 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, session: str | None = None, /, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self.into, data) :]
        for answer in self._messages():
            self._note(answer)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
        raise AssertionError("the browser has gone")

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" in self.read:
                message, _, self.read = self.read.partition(b"\0")
                yield json.loads(message)
            assert select.select([self.out], [], [], PATIENCE)[0], "the browser said nothing for a minute"
            part = os.read(self.out, 1 << 20)
            if not part:
                return
            self.read += part

    def _note(self, answer: dict[str, Any]) -> None:
        method, parameters = answer.get("method"), answer.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"][:200])


@contextmanager
def browser(profile: Path, downloads: Path) -> Iterator[Page]:
    """A browser with an empty `profile`; what pages save lands in `downloads`. Its end is waited for."""
    (theirs_in, ours_in), (ours_out, theirs_out) = os.pipe(), os.pipe()

    def hand_over() -> None:
        high_in, high_out = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out))
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
    command = [str(CHROMIUM), *flags, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, preexec_fn=hand_over, close_fds=False, stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        pipe = _Pipe(ours_in, ours_out)
        yield _tab(pipe, downloads)
        pipe.send("Browser.close")
    finally:
        os.close(ours_in)
        os.close(ours_out)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tab(pipe: _Pipe, downloads: Path) -> Page:
    pipe.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    target = pipe.send("Target.createTarget", url="about:blank")["targetId"]
    session = pipe.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def send(method: str, **parameters: Any) -> dict[str, Any]:
        return pipe.send(method, session, **parameters)

    for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
        send(f"{domain}.enable")
    return Page(send, pipe.errors, pipe.requests)
