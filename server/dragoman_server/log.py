"""How lines of the log look and where they go: to stderr, for people or as a JSON object each.

All of the server logs through `logging`; what is in `extra` is a field of the line.
"""

import io
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
import structlog

logger = logging.getLogger(__name__)

# Lines that wait to be written. Where stderr takes none, those after them are lost, and counted: callers go on.
_MAX_LINES = 10_000
_MAX_BYTES = 16 << 20  # of them in memory
# Lines are gathered for so long: a write for each would wake a thread, which takes the interpreter from others.
_SECONDS_PER_WRITE = 0.02
_FLUSH_SECONDS = 1.0

_encoder = msgspec.json.Encoder(enc_hook=str)

# What the console shows in quotes.
_UNCLEAR = re.compile(r"[ \t=\r\n\"']")
_EVENT_WIDTH = 30

_Render = Callable[[str, Mapping[str, object]], str]


def configure(form: Literal["console", "json"], stream: TextIO) -> None:
    """Has all that is logged in this process, also by libraries, go to `stream`."""
    render: _Render | None = None
    if form == "json":
        # gRPC's core writes lines of its own to stderr, which are no JSON. It reads this when it is imported.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # So do Python's warnings, and threads that end of a fault.
        logging.captureWarnings(True)
        threading.excepthook = _log_fault
        last: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, _json]
        render = _json_line
    else:
        has_colors = stream.isatty()
        renderer = structlog.dev.ConsoleRenderer(colors=has_colors, exception_formatter=_traceback)
        last = [_escape, renderer]
        render = None if has_colors else _console_line
    before: list[structlog.typing.Processor] = [
        structlog.stdlib.ExtraAdder(),
        _without_message,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last], foreign_pre_chain=before
    )
    handler = _Lines(stream, render)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for other in [*root.handlers]:
        if isinstance(other, _Lines):
            root.removeHandler(other)
            other.close()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def info(to: logging.Logger, event: str, fields: Mapping[str, object]) -> None:
    """Has the line that `to.info(event, extra=fields)` makes, for lines that come with every call: it costs a tenth."""
    handlers = logging.root.handlers
    if len(handlers) == 1 and isinstance(lines := handlers[0], _Lines) and lines.render is not None:
        if to.isEnabledFor(logging.INFO):
            lines.put(lines.render(event, fields))
    else:
        to.info(event, extra=fields)


class _Lines(logging.Handler):
    """Writes lines on a thread of its own, so that nobody waits for who reads them.

    Args:
        stream: takes them.
        render: makes lines of level INFO without `logging`, as the formatter would; None: nothing does.
    """

    def __init__(self, stream: TextIO, render: _Render | None = None) -> None:
        super().__init__()
        self._stream, self.render = stream, render
        self._lines: list[str] = []
        self._num_bytes = 0  # of those that wait or are being written
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
        self.put(line)

    def put(self, line: str) -> None:
        """Takes a line that is finished."""
        line += "\n"
        num_bytes = sys.getsizeof(line)
        with self._changed:
            if len(self._lines) >= _MAX_LINES or self._num_bytes + num_bytes > _MAX_BYTES:
                self._num_lost += 1
                return
            self._lines.append(line)
            self._num_bytes += num_bytes
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
            num_bytes = sum(map(sys.getsizeof, lines))
            if num_lost:
                lines.append(self._lost(num_lost))
            with suppress(OSError, ValueError):  # nobody reads it any more
                self._stream.write("".join(lines))
                self._stream.flush()
            del lines
            with self._changed:
                self._is_writing = False
                self._num_bytes -= num_bytes
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


def _timestamp() -> str:
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat()}Z"


def _json_line(event: str, fields: Mapping[str, object]) -> str:
    return _encoder.encode({"timestamp": _timestamp(), "level": "info", "event": event, **fields}).decode()


def _console_line(event: str, fields: Mapping[str, object]) -> str:
    shown = " ".join(f"{key}={_shown(fields[key])}" for key in sorted(fields))
    return f"{_timestamp()} [info     ] {event:{_EVENT_WIDTH}} {shown}"


def _shown(value: object) -> str:
    """As structlog's console shows a value."""
    if not isinstance(value, str):
        return repr(value)
    value = _printable(value)
    return repr(value) if _UNCLEAR.search(value) else value


def _escape(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What drives a terminal is shown, not sent to it."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = _printable(value, "\n\t" if key == "event" else "")
    return event


def _traceback(stream: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    stream.write(_printable(text.getvalue(), "\n\t"))


def _printable(text: str, kept: str = "") -> str:
    """The text with control characters, but those that are kept, as in a string of Python."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in kept else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _log_fault(fault: threading.ExceptHookArgs) -> None:
    """In place of a traceback on stderr."""
    if fault.exc_type is not SystemExit and fault.exc_value is not None:
        logger.error("a thread has ended", exc_info=fault.exc_value)
