import base64
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman.attention import html
from dragoman.attention.html import Piece, Target, Tensor, View, Word, notebook_html, render

HOSTILE = "</script><img src=x onerror=alert(1)>"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and the text in its block of data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][1].get("id") == "data":
            self.data += data

    def names(self) -> list[str]:
        return [name for name, _ in self.elements]


def word(text: str, *pieces: str, is_special: bool = False) -> Word:
    """A word of several pieces, or of one that is all of it."""
    return Word(text, [Piece(piece, f"▁{piece}") for piece in pieces or [text]], is_special)


def a_view(*texts: str, num_layers: int = 2, num_heads: int = 3) -> View:
    """The encoder's attention between `texts`."""
    weights = np.random.default_rng(1).random((num_layers, num_heads, len(texts), len(texts)))
    tensor = Tensor("encoder", weights, range(num_layers), range(num_heads))
    return View("Title", [word(text) for text in texts], [], [tensor])


def shown(page: str) -> dict[str, Any]:
    view: dict[str, Any] = json.loads(Parsed(page).data)
    return view


@given(
    shape=st.tuples(*[st.integers(1, 5)] * 4),
    largest=st.sampled_from([1.0, 0.3, 1e-3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_are_in_the_page(shape: tuple[int, int, int, int], largest: float, seed: int) -> None:
    num_layers, num_heads, rows, columns = shape
    weights = (largest * np.random.default_rng(seed).random(shape)).astype(np.float32)
    targets = [Target(text, [word(text)] * rows, [word("<s>", is_special=True)] * rows) for text in ("a", "b")]
    tensor = Tensor("cross", weights, range(num_layers), range(num_heads), target=1)
    [sent] = shown(render(View("", [word("x")] * columns, targets, [tensor])))["tensors"]

    levels = np.frombuffer(base64.b64decode(sent["data"]), np.uint8).reshape(sent["shape"])
    assert (sent["kind"], sent["target"], sent["shape"]) == ("cross", 1, list(shape))
    assert float(np.abs(levels * sent["unit"] - weights).max()) <= 0.51 * float(weights.max()) / 255


def test_all_zeros_stay_zeros() -> None:
    tensor = Tensor("encoder", np.zeros((1, 1, 2, 2), np.float32), [0], [0])
    [sent] = shown(render(View("", [word("a"), word("b")], [], [tensor])))["tensors"]
    assert base64.b64decode(sent["data"]) == bytes(4)


@given(text=st.one_of(st.sampled_from([HOSTILE, "<!--<script>", "&lt;", "]]>", "@DATA@", "\u2028\u2029"]), st.text()))
def test_texts_are_data_and_nothing_else(text: str) -> None:
    only = Word(text, [Piece(text, text)])
    target = Target(text, [only], [only])
    tensors = [Tensor("cross", np.ones((1, 1, 1, 1)), [0], [0])]
    page = render(View(text, [only], [target], tensors, details=text))

    parsed = Parsed(page)
    assert parsed.names() == Parsed(render(a_view("harmless"))).names()
    assert not set(parsed.data) & set("<>&\u2028\u2029")
    view = json.loads(parsed.data)
    assert (
        view["source"] == view["targets"][0]["words"] == view["targets"][0]["inputs"] == [[text, [[text, text]], False]]
    )
    assert view["title"] == view["details"] == view["targets"][0]["text"] == text


def test_what_is_no_unicode_can_be_written_to_a_file() -> None:
    page = render(a_view("\ud800"))
    page.encode()
    assert shown(page)["source"] == [["\ud800", [["\ud800", "▁\ud800"]], False]]


def test_a_page_loads_nothing() -> None:
    page = render(a_view("a", "b"))
    assert not re.search(r"https?:|@import|\burl\(|\bimport\s*\(|\bfetch\b|XMLHttpRequest", page)
    elements = Parsed(page).elements
    assert not [name for name, attributes in elements if {"src", "href", "srcset", "data"} & set(attributes)]
    assert not {"link", "base", "iframe", "object", "embed", "form"} & {name for name, _ in elements}
    # Before all that it is to bind.
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    names = [name for name, _ in elements]
    at = names.index("meta", names.index("meta") + 1)
    assert elements[at][1] == {"http-equiv": "Content-Security-Policy", "content": policy}
    assert not {"style", "script"} & set(names[:at])


def test_nothing_is_made_of_html() -> None:
    page = render(a_view("a"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", page)


def test_too_many_weights_are_refused() -> None:
    # 50 million, in 4 bytes.
    weights = np.broadcast_to(np.float32(0), (12, 16, 512, 512))
    view = View("", [word("a")] * 512, [], [Tensor("encoder", weights, range(12), range(16))])
    with pytest.raises(ValueError, match=r"50,331,648 weights, .* at most 20,000,000: choose fewer .*layers or heads"):
        render(view)


def test_the_weights_of_all_tensors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    view = a_view("a", "b", num_layers=1, num_heads=1)
    monkeypatch.setattr(html, "MAX_WEIGHTS", 8)
    render(View("", view.source_words, [], [*view.tensors] * 2))
    with pytest.raises(ValueError, match="12 weights"):
        render(View("", view.source_words, [], [*view.tensors] * 3))


def test_one_name_or_all_that_were_reduced_to_one() -> None:
    words = [word("a")]
    reduced = Tensor("encoder", np.ones((1, 1, 1, 1)), range(4), range(6))
    assert shown(render(View("", words, [], [reduced])))["tensors"][0]["heads"] == [*range(6)]
    with pytest.raises(ValueError, match="encoder weights have 2 heads, and 3 are named"):
        render(View("", words, [], [Tensor("encoder", np.ones((1, 2, 1, 1)), [0], [0, 1, 2])]))


@pytest.mark.parametrize(
    ("kind", "fitting"), [("encoder", (1, 1, 2, 2)), ("decoder", (1, 1, 4, 4)), ("cross", (1, 1, 3, 2))]
)
def test_weights_fit_their_pieces(kind: Any, fitting: tuple[int, ...]) -> None:
    source = [word("ab", "a", "b")]
    targets = [Target("a", [word("ab", "a", "b"), word("c")], [word("abc", "a", "b", "c"), word("d")])]
    render(View("", source, targets, [Tensor(kind, np.ones(fitting), [0], [0])]))
    for shape in (fitting[1:], (*fitting[:3], 9), (1, 1, 9, fitting[3])):
        with pytest.raises(ValueError, match=rf"{kind} weights have shape .* should be .*{fitting[2]}, {fitting[3]}\]"):
            render(View("", source, targets, [Tensor(kind, np.ones(shape), [0], [0])]))


def test_a_view_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        render(View("", [word("a")], [], []))


def test_a_notebook_has_the_page_in_a_frame_of_its_own() -> None:
    page = render(a_view(HOSTILE, '"quoted"'))
    [(name, attributes)] = Parsed(notebook_html(page)).elements
    assert name == "iframe"
    assert attributes["srcdoc"] == page
    assert attributes["sandbox"] == "allow-scripts"
