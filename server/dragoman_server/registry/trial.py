"""Trying a bundle in a process of its own before it is run here: its graphs may crash, hang or take all memory."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import msgspec

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.config import EngineOptions
from dragoman_server.errors import BundleError, StartError
from dragoman_server.registry.loading import max_load_seconds, took_too_long
from dragoman_server.registry.parity import MAX_TOGETHER

EXIT_REFUSED = 2
"""Of the process, where it has printed what is wrong with the bundle."""

_PROGRAM = "dragoman_server.registry.trial_process"
_MAX_TEXT_BYTES = 4000


class Task(msgspec.Struct):
    """What the process is told, in JSON on its standard input."""

    folder: str
    version: str
    """That the bundle must have."""

    options: EngineOptions
    max_seconds: float
    parent: int
    """The process that waits for it, without which it ends."""


class Trials:
    """Tries bundles, each contents once. Thread-safe.

    What comes with the server is not tried. This guards against graphs that end or hold up the process that runs them,
    not against code of others: the process has the rights of the server.

    Args:
        options: of the engines.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._passed: set[bytes] = set()  # digests of manifests, which have those of all files

    def hold(self, bundle: Bundle) -> None:
        """Opens a bundle and replays its certificate in a process of its own, with limits of memory and time.

        Raises:
            StartError: what is wrong with it, or it took too long.
            BundleError: the process was ended by its graphs.
        """
        digest = hashlib.sha256(msgspec.json.encode(bundle.manifest)).digest()
        with self._lock:
            is_known = digest in self._passed
        if is_known or bundle.folder.resolve() == embedded_bundle().resolve():
            return
        max_seconds = max_load_seconds(bundle.folder)
        # Few rows in one lane, which are decoded as in many.
        max_running = min(self._options.max_running, max(MAX_TOGETHER, bundle.manifest.generation.beam_size))
        options = replace(self._options, lanes=1, max_running=max_running)
        task = Task(str(bundle.folder.absolute()), bundle.version, options, max_seconds, os.getpid())
        try:
            found = subprocess.run(
                [sys.executable, "-P", "-m", _PROGRAM],
                input=msgspec.json.encode(task),
                capture_output=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                timeout=max_seconds,
                check=False,
                start_new_session=True,  # Ctrl-C is for the server
            )
        except subprocess.TimeoutExpired:
            raise took_too_long(max_seconds) from None
        except OSError as error:
            raise StartError(f"no process can be started to try {bundle.folder}: {error.strerror}") from error
        if found.returncode == EXIT_REFUSED:
            raise StartError(found.stdout[:_MAX_TEXT_BYTES].decode(errors="replace"))
        if found.returncode:
            raise BundleError(
                f"{bundle.folder}: the process that tried it ended {_how(found.returncode)}{_last_words(found.stderr)}"
            )
        with self._lock:
            self._passed.add(digest)


def _how(code: int) -> str:
    """By which exit code or signal, in words."""
    if code > 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"


def _last_words(output: bytes) -> str:
    lines = output[-_MAX_TEXT_BYTES:].decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f", with the words {last[:300]!r}" if last else ""
