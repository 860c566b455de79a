"""What of YAML is read, and what is refused."""

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from dragoman_export.families.marian_yaml import parse_yaml, read_yaml
from support.patience import ends_soon

SETTINGS = """\
# a comment
---
relative-paths: true
models:
  - model.npz  # the best
vocabs:
- "a vocab.yml"
- 'it''s.yml'
weights: [1, 0.5, "x", y]
input-types:
  []
beam-size: 6
normalize: 0.6
word-penalty: 0
shortlist: ~
nothing:
empty: ""
text: a: b
"""


def test_settings() -> None:
    assert parse_yaml(SETTINGS.replace("text: a: b\n", "url: a:b\n"), "x") == {
        "relative-paths": True,
        "models": ["model.npz"],
        "vocabs": ["a vocab.yml", "it's.yml"],
        "weights": [1, 0.5, "x", "y"],
        "input-types": [],
        "beam-size": 6,
        "normalize": 0.6,
        "word-penalty": 0,
        "shortlist": None,
        "nothing": None,
        "empty": "",
        "url": "a:b",
    }


def test_a_vocabulary() -> None:
    lines = [
        '"</s>": 0',
        '"<unk>": 1',
        "▁the: 2",
        r'"\"": 3',
        "'''': 4",
        r'"\u2581\x41": 5',
        '? "#"',
        ": 6",
        "-a: 7",
        "a:b: 8",
    ]
    text = "\n".join([*lines, "\u2028: 9\r", "1: 10"])
    assert parse_yaml(text, "x") == {
        "</s>": 0,
        "<unk>": 1,
        "▁the": 2,
        '"': 3,
        "'": 4,
        "▁A": 5,
        "#": 6,
        "-a": 7,
        "a:b": 8,
        "\u2028": 9,
        "1": 10,
    }


def test_json() -> None:
    assert parse_yaml('{"type": "transformer", "dims": [1, 2], "skip": false}\n', "x") == {
        "type": "transformer",
        "dims": [1, 2],
        "skip": False,
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\na: 2\n", "line 2 has the key 'a' again"),
        ("  a: 1\n", "line 1 is '  a: 1', which is indented"),
        ("- a\n", "line 1 is '- a', which is an item of a list, but no key is above it"),
        ("a\n", "line 1 is 'a', which has no key and colon"),
        ('"a" 1\n', "which has no colon behind its key"),
        ('"a: 1\n', "which has a quotation mark without its counterpart"),
        ('a: "b\n', "which has a quotation mark without its counterpart"),
        ('a: "b" c\n', "which goes on behind its value"),
        ("a: [1, 2\n", "which is not a list that ends on its line"),
        ("a: [1, [2]]\n", "which is not a list that ends on its line"),
        ("a: [1] 2\n", "which goes on behind its value"),
        ("a:\n  b: 1\n", "which is neither a scalar nor a list of scalars"),
        ("a: {b: 1}\n", "which begins a scalar with {, which is not read here"),
        ("a: &x 1\n", "which begins a scalar with &, which is not read here"),
        ("a: !!python/object/apply:os.system [true]\n", "which begins a scalar with !, which is not read here"),
        ("a: |\n  b\n", "which begins a scalar with |, which is not read here"),
        ("a: 'b'\n- c\n", "line 2 is '- c', which is an item of a list"),
        ('a: "\\q"\n', r"which has the unknown escape \\q"),
        ('a: "\\ud800"\n', r"which has \\ud800, which is no character"),
        ("? a b\n  c\n: 1\n", "is indented"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ('{"a": {"b": 1}}', "'a' is .*, neither a scalar nor a list of scalars"),
        ("{a: 1}", "is neither JSON nor YAML with a key on each line"),
    ],
)
def test_what_is_not_read_is_refused_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=f"^x:? .*{fault}"):
        parse_yaml(text, "x")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "decoder.yml").write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"decoder\.yml is not text in UTF-8"):
        read_yaml(tmp_path / "decoder.yml")


def test_it_agrees_with_yaml_itself() -> None:
    """Of all that a library writes for keys and scalars on one line each."""
    yaml = pytest.importorskip("yaml")
    rng = random.Random(0)
    parts = [*"ab▁:#-?[]{},&*!|>'\"%@`~ .0123\t\\=<\u00a0é猫🙂", "true", "null", "- ", "? ", ": ", " #"]

    def text(most: int) -> str:
        return "".join(rng.choices(parts, k=rng.randint(0, most)))

    for _ in range(2000):
        values: dict[str, Any] = {}
        for _ in range(rng.randint(1, 5)):
            scalar = rng.choice([rng.randint(-5, 10**6), rng.random() * 10, True, False, text(6)])
            values[text(5) or "a"] = rng.choice([scalar, [1, "a", text(3), 2.5][: rng.randint(0, 4)]])
        style = rng.choice([{}, {"allow_unicode": True}])
        written = yaml.safe_dump(values, width=10**6, default_flow_style=False, **style)
        assert parse_yaml(written, "x") == values, written


@pytest.mark.parametrize(
    "line",
    [
        "x: [" + "a," * 100_000 + "a]",
        "x: [" + "'a', " * 100_000 + "]",
        "x" + " " * 100_000 + "y",
        "x" + ":" * 100_000,
    ],
    ids=["a list", "a quoted list", "spaces in a key", "colons"],
)
def test_a_long_line_takes_time_by_its_length(line: str) -> None:
    with ends_soon(), contextlib.suppress(ValueError):
        parse_yaml(line, "x")
