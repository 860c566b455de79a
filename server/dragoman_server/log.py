"""How lines of the log look and where they go: to stderr, for people or as a JSON object each.

All of the server logs through `logging`; what is in `extra` is a field of the line.
"""

import logging
import os
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Literal, TextIO

import msgspec
import structlog

logger = logging.getLogger(__name__)

# Lines that wait to be written. Where stderr takes none, those after them are lost, and counted: callers go on.
_MAX_LINES = 10_000
# Lines are gathered for so long: a write for each would wake a thread, which takes the interpreter from others.
_SECONDS_PER_WRITE = 0.02
_FLUSH_SECONDS = 1.0

_encoder = msgspec.json.Encoder(enc_hook=str)


def configure(form: Literal["console", "json"], stream: TextIO) -> None:
    """Has all that is logged in this process, also by libraries, go to `stream`."""
    if form == "json":
        # gRPC's core writes lines of its own to stderr, which are no JSON. It reads this when it is first used.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # So do Python's warnings, and threads that end of a fault.
        logging.captureWarnings(True)
        threading.excepthook = _log_fault
        last: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _json]
    else:
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    before: list[structlog.typing.Processor] = [
        structlog.stdlib.ExtraAdder(),
        _without_message,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last], foreign_pre_chain=before
    )
    handler = _Lines(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for other in [*root.handlers]:
        if isinstance(other, _Lines):
            root.removeHandler(other)
            other.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


class _Lines(logging.Handler):
    """Writes lines on a thread of its own, so that nobody waits for who reads them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: list[str] = []
        self._num_lost = 0
        self._is_writing = self._is_urgent = self._is_closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._write_all, name="dragoman-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line."""
        try:
            line = self.format(record)
        except Exception:  # as all handlers do: a line that cannot be made must not end who makes it
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= _MAX_LINES:
                self._num_lost += 1
                return
            self._lines.append(f"{line}\n")
            if len(self._lines) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Returns when all lines are written, or after a second."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._lines or self._is_writing), _FLUSH_SECONDS)
            self._is_urgent = False

    def close(self) -> None:
        """Ends the thread when all lines are written."""
        self.flush()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._is_closed)
                if not self._lines:
                    return
                self._changed.wait_for(lambda: self._is_urgent or self._is_closed, _SECONDS_PER_WRITE)
                lines, num_lost = self._lines, self._num_lost
                self._lines, self._num_lost, self._is_writing = [], 0, True
            if num_lost:
                lines.append(self._lost(num_lost))
            with suppress(OSError, ValueError):  # nobody reads it any more
                self._stream.write("".join(lines))
                self._stream.flush()
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()

    def _lost(self, num_lines: int) -> str:
        fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
        record = logging.makeLogRecord(
            fields | {"msg": "lines of the log were lost, as nobody took them", "lost": num_lines}
        )
        return f"{self.format(record)}\n"


def _without_message(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Other handlers leave the finished message in a record, where it is taken for a field."""
    event.pop("message", None)
    return event


def _json(_: object, __: str, event: MutableMapping[str, Any]) -> str:
    """The line, with the time and the event first."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    return _encoder.encode({**first, **event}).decode()


def _log_fault(fault: threading.ExceptHookArgs) -> None:
    """In place of a traceback on stderr."""
    if fault.exc_type is not SystemExit and fault.exc_value is not None:
        logger.error("a thread has ended", exc_info=fault.exc_value)
