"""How lines of the log look, and that nobody waits for who reads them."""

import io
import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Literal

import pytest

from dragoman_server import log

logger = logging.getLogger("test")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hook = [*root.handlers], root.level, threading.excepthook
    root.handlers = []  # those of pytest would write into the records
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers = handlers
    root.setLevel(level)
    threading.excepthook = hook
    logging.captureWarnings(False)


def flushed() -> None:
    for handler in logging.getLogger().handlers:
        handler.flush()


def test_every_line_of_json_is_an_object() -> None:
    stream = io.StringIO()
    log.configure("json", stream)
    logger.info("call", extra={"method": "Translate", "texts": 2})
    logger.warning("%d of\n%s", 3, "ü")
    try:
        raise ValueError("a\nb")
    except ValueError:
        logger.exception("failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    flushed()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "error", "warning", "error"]
    assert [*lines[0]] == ["timestamp", "level", "event", "method", "texts"]
    assert lines[1]["event"] == "3 of\nü"
    assert "ValueError: a\nb" in lines[2]["exception"]
    assert "old" in lines[3]["event"]
    assert "ZeroDivisionError" in lines[4]["exception"]


def test_the_console_has_the_fields_behind_the_event() -> None:
    stream = io.StringIO()
    log.configure("console", stream)
    logger.info("call", extra={"method": "Translate"})
    logger.debug("not this")
    flushed()
    (line,) = stream.getvalue().splitlines()
    assert line.split()[1:] == ["[info", "]", "call", "method=Translate"]


def test_another_configuration_takes_the_place_of_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    log.configure("console", first)
    log.configure("json", second)
    logger.info("once")
    flushed()
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


class Stuck(io.StringIO):
    """Takes nothing until it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.go_on.wait(10)
        return super().write(text)


def test_nobody_waits_for_a_log_that_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_MAX_LINES", 5)
    stream = Stuck()
    log.configure("json", stream)
    logger.info("first")
    time.sleep(0.1)  # it is being written
    for _ in range(8):
        logger.info("another")
    stream.go_on.set()
    flushed()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(events) == 1 + 5 + 1
    assert (events[-1]["event"], events[-1]["lost"]) == ("lines of the log were lost, as nobody took them", 3)


def test_a_log_that_is_gone_ends_nobody() -> None:
    stream = io.StringIO()
    log.configure("json", stream)
    stream.close()
    for _ in range(3):
        logger.info("call")
        flushed()


def test_a_log_that_is_not_read_has_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_MAX_BYTES", 10_000)
    stream = Stuck()
    log.configure("json", stream)
    for _ in range(8):
        logger.info("x" * 3_000)
    time.sleep(0.1)  # three are being written, and count
    logger.info("x" * 3_000)
    logger.info("short")
    stream.go_on.set()
    flushed()
    logger.info("x" * 3_000)  # there is room again
    flushed()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [len(line["event"]) for line in lines if "lost" not in line] == [3_000] * 3 + [5, 3_000]
    assert sum(line.get("lost", 0) for line in lines) == 6


FIELDS = {
    "method": "dragoman.v1.TranslationService/Translate",
    "code": "OK",
    "duration_seconds": 0.166425,
    "request_id": "a=\"b'\\",
    "caller": "C. N. é\x1b[31m\n",
    "texts": 1,
}


@pytest.mark.parametrize("form", ["json", "console"])
def test_lines_of_calls_look_as_others(form: Literal["json", "console"], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    log.configure(form, stream)
    logger.info("call", extra=FIELDS)
    monkeypatch.setattr(logging, "LogRecord", None)  # what makes them cheap
    log.info(logger, "call", FIELDS)
    flushed()
    one, other = (
        re.sub(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{1,6}Z", "TIME", line) for line in stream.getvalue().splitlines()
    )
    assert one == other
    assert "TIME" in one


def test_lines_of_calls_go_wherever_others_go(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger().addHandler(caplog.handler)
    stream = io.StringIO()
    log.configure("json", stream)
    log.info(logger, "call", FIELDS)
    logger.setLevel(logging.WARNING)
    try:
        log.info(logger, "not this", {})
        logging.getLogger().removeHandler(caplog.handler)
        log.info(logger, "nor this", {})
    finally:
        logger.setLevel(logging.NOTSET)
    flushed()
    assert caplog.messages == ["call"]
    assert stream.getvalue().count("\n") == 1


def test_the_console_shows_control_characters_and_obeys_none() -> None:
    stream = io.StringIO()
    log.configure("console", stream)
    logger.info("the\x1b[2J model\x07", extra={"caller": "a\x1b[31mb\r", "model": "é"})
    try:
        raise ValueError("\x1b]0;x\x07")
    except ValueError:
        logger.exception("failed")
    flushed()
    text = stream.getvalue()
    assert text.replace("\n", "").isprintable()
    assert "the\\x1b[2J model\\x07" in text
    assert "caller=a\\x1b[31mb\\r" in text
    assert "model=é" in text
    assert "ValueError: \\x1b]0;x\\x07" in text
