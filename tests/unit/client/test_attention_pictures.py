import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman import Attention, Client
from dragoman.attention.terminal import heat_map
from dragoman.types import AttentionKind
from support.fake_server import FakeServer

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def attention(server: FakeServer) -> Iterator[Attention]:
    with Client(server.address) as client:
        kinds = get_args(AttentionKind)
        yield client.attention(
            "one $two$ <three>", source="en", target="fr", kinds=kinds, num_hypotheses=2, beam_size=2
        )


def test_a_heat_map_in_shades() -> None:
    matrix = np.array([[0, 0.25, 0.5], [0.5, 1, 0]], np.float32)

    text = heat_map(matrix, ["ab", "c"], ["x", "yz", "語"], brightest=0.5, colour=False)

    assert text.splitlines() == ["     y", "   x z 語", "ab   ▒▒██", " c ████"]


def test_a_heat_map_in_colours_is_the_same_without_them() -> None:
    matrix = np.array([[0, 1]], np.float32)
    text = heat_map(matrix, ["a"], ["x", "y"], brightest=1, colour=True)

    header, row = text.splitlines()
    assert header == "  x y"
    assert row == "a \x1b[48;5;233m  \x1b[48;5;228m  \x1b[0m"


@given(labels=st.lists(st.text(), min_size=1, max_size=4))
def test_no_token_can_change_the_terminal(labels: list[str]) -> None:
    matrix = np.zeros((len(labels), len(labels)), np.float32)
    text = heat_map(matrix, labels, labels, brightest=1, colour=True)
    for line in ESCAPES.sub("", text).split("\n"):
        assert line.isprintable() or not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)
    assert text.split("\n")[-len(labels) :] == [line for line in text.split("\n") if line.endswith("\x1b[0m")]


def test_long_labels_are_cut() -> None:
    text = heat_map(np.ones((1, 1), np.float32), ["r" * 50], ["c" * 50], brightest=1, colour=False)
    assert len(text.splitlines()) == 15
    assert text.splitlines()[-1] == "r" * 19 + "… ██"


def test_the_text_of_attention_has_the_mean_of_what_is_not_named(attention: Attention) -> None:
    assert attention.to_text("encoder") == attention.mean("layers").mean("heads").to_text("encoder")
    assert attention.to_text(layer=1) == attention.mean("heads").to_text("cross", 1)
    assert attention.to_text(layer=1, head=0) != attention.to_text(layer=1)
    assert "<three>" in attention.to_text("encoder", colour=False)


def test_end_of_sentence_does_not_leave_the_rest_in_the_dark(attention: Attention) -> None:
    weights = attention.tensors["cross"].weights
    weights[:] = 0.01
    weights[..., -1] = 0.9
    assert attention.to_text(colour=False).splitlines()[-1].endswith("██" * 5)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_pictures_are_saved(attention: Attention, tmp_path: Path, suffix: str) -> None:
    beginning = {".png": b"\x89PNG", ".svg": b"<?xml"}[suffix]
    for name, figure in {
        "grid": attention.plot("encoder"),
        "row": attention.plot("decoder", layer=1),
        "one": attention.plot(layer=-1, head=0),
        "rollout": attention.rollout().plot(),
    }.items():
        path = tmp_path / f"{name}{suffix}"
        figure.savefig(path)
        assert path.read_bytes().startswith(beginning)


def test_a_grid_has_a_panel_for_every_head_and_one_matrix_its_tokens(attention: Attention) -> None:
    titles = [axes.get_title() for axes in attention.plot("encoder").axes]
    assert titles[:3] == ["layer 0, head 0", "layer 0, head 1", "layer 1, head 0"]
    assert len(titles) == 6
    [axes, _] = attention.plot("cross", layer=2, head=1).axes
    assert axes.get_title() == "cross, layer 2, head 1"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ONE", r"\$TWO\$", "<THREE>", "</s>"]
    [image] = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), attention.cross[2, 1])


def test_a_picture_opens_no_window() -> None:
    code = "import sys, dragoman.attention.plot; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "False"


def test_a_page_has_all_hypotheses_and_is_written(attention: Attention, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    page = attention.to_html(path)

    assert path.read_text(encoding="utf-8") == page
    assert page.count('"kind":"cross"') == 2
    assert page.count('"kind":"encoder"') == 1
    assert "<three>" not in page
    assert (attention._repr_html_() or "").startswith("<iframe")


def test_a_notebook_shows_the_plain_form_of_what_no_page_holds(
    attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dragoman.attention.html.MAX_WEIGHTS", 1)
    assert attention._repr_html_() is None
