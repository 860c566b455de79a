"""How lines of the log look, and that nobody waits for who reads them."""

import io
import json
import logging
import threading
import time
import warnings
from collections.abc import Iterator

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
