"""The docs name every option and every reason of an error, as the code has them."""

from pathlib import Path

import dragoman_server
from dragoman import _lists
from dragoman_server.errors import Reason
from support.docs_tables import OPERATIONS, reason_meanings, with_tables


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
