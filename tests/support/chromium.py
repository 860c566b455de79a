"""A headless Chromium without a network, or with this machine alone, driven over the pipe of its DevTools protocol."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_SECONDS = 30
# No sandbox: containers forbid it, and the pages are our own.
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-features=IsolateSandboxedIframes",  # or frames would be targets of their own
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
LOOPBACK = "127.0.0.1"


class Page:
    """The one page of a browser, and all that went wrong on it.

    `requests` has every URL that it asked for, `complaints` what it wrote to the console or
    threw, and every dialog.
    """

    def __init__(self, commands: int, answers: int, is_offline: bool) -> None:
        self._commands, self._answers = commands, answers
        self._number = 0
        self._received = b""
        self._session: str | None = None
        self._loaded = False
        self.requests: list[str] = []
        self.complaints: list[str] = []
        [target] = (t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        offline = {"offline": is_offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.send("Network.emulateNetworkConditions", **offline)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Carries out a command of the protocol."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    def open(self, page: Path | str) -> None:
        """Opens a file or an address, and forgets what was before."""
        self._loaded = False
        self.requests.clear()
        self.complaints.clear()
        self.send("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not self._loaded:
            self._receive()
        self.frames()

    def frames(self) -> None:
        """Waits until the page has been drawn, so that what it observes has been told to it."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def run(self, script: str, **where: int) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def run_inside(self, script: str) -> Any:
        """The same in the one frame of the page."""
        [child] = self.send("Page.getFrameTree")["frameTree"]["childFrames"]
        world = self.send("Page.createIsolatedWorld", frameId=child["frame"]["id"])
        return self.run(script, contextId=world["executionContextId"])

    def centre(self, selector: str, number: int = 0) -> tuple[float, float]:
        """Where the n-th such element is in the window, scrolled into it."""
        x, y = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center', inline: 'nearest'}}); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2]; }})(document.querySelectorAll({selector!r})[{number}])"
        )
        return x, y

    def hover(self, selector: str, number: int = 0) -> None:
        x, y = self.centre(selector, number)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frames()

    def click(self, selector: str, number: int = 0) -> None:
        x, y = self.centre(selector, number)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frames()

    def press(self, key: str) -> None:
        """A key without a character, by its DOM name."""
        code = {"Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
        self.frames()

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.frames()

    def _receive(self) -> dict[str, Any]:
        """The next message; events are taken note of."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while b"\0" not in self._received:
            assert select.select([self._answers], [], [], max(0, give_up - time.monotonic()))[0], "no answer"
            received = os.read(self._answers, 1 << 16)
            assert received, "the browser has ended"
            self._received += received
        line, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded" as event:
                self.complaints.append(f"{event}: {parameters}")
            case "Page.javascriptDialogOpening":
                self.complaints.append(f"dialog: {parameters['message']}")
        return message


@contextmanager
def chromium(profile: Path, *, reaches_loopback: bool = False) -> Iterator[Page]:
    """Starts the browser with an empty folder for its profile; ends it with the context.

    No host has an address for it, but for 127.0.0.1 with `reaches_loopback`.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.fail(f"these tests need {NAMES[0]}, which is not installed (Debian: apt-get install {NAMES[0]})")
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()

    def place() -> None:
        # Where the browser looks for them; a duplicate is inherited.
        os.dup2(theirs_in, 3)
        os.dup2(theirs_out, 4)

    hosts = "MAP * ~NOTFOUND" + (f", EXCLUDE {LOOPBACK}" if reaches_loopback else "")
    command = [program, *OPTIONS, f"--host-resolver-rules={hosts}", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(ours_out, ours_in, not reaches_loopback)
    finally:
        os.close(ours_out)
        os.close(ours_in)
        process.kill()
        process.wait()


def _pipe() -> tuple[int, int]:
    """Both ends, above the numbers that the browser's are to have."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return read, write
