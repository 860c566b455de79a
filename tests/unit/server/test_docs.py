"""The docs name every option and every reason of an error, as the code has them, and tests that there are."""

import re
from pathlib import Path

import dragoman_server
from dragoman import _lists
from dragoman_server.errors import Reason
from support.docs_tables import OPERATIONS, reason_meanings, with_tables

ROOT = OPERATIONS.parents[1]
# Seconds of the wall's clock, which are shown to people and compared with nothing.
_SHOWN_TIMES = {"log.py": 1, "model_metrics.py": 1, "tracing.py": 1, "registry/residence.py": 1, "wire/tls.py": 1}


def test_the_tables_say_what_the_code_says() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    assert with_tables(text) == text, "python tests/support/docs_tables.py writes them anew"


def test_every_reason_has_a_meaning() -> None:
    assert reason_meanings().keys() == set(Reason)


def test_every_reason_is_given() -> None:
    root = Path(dragoman_server.__file__).parent
    sources = "".join(path.read_text(encoding="utf-8") for path in root.rglob("*.py"))
    assert {reason for reason in Reason if f"Reason.{reason}" not in sources} == set()


def test_the_client_knows_the_reasons_that_it_acts_upon() -> None:
    assert set(_lists._TOO_MUCH_REASONS) <= set(Reason)


def test_the_faults_name_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[^`]+)::(\w+)`", text)
    assert named
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path, _ in named}
    assert [f"{path}::{name}" for path, name in named if f"def {name}(" not in sources[path]] == []


def test_nothing_but_what_is_shown_is_on_the_clock_of_the_wall() -> None:
    counts = {}
    for root in (Path(dragoman_server.__file__).parent, Path(_lists.__file__).parent):
        for path in root.rglob("*.py"):
            if count := len(
                re.findall(r"time\.time\(|datetime\.(now|utcnow|today)\(", path.read_text(encoding="utf-8"))
            ):
                counts[str(path.relative_to(root))] = count
    assert counts == _SHOWN_TIMES
