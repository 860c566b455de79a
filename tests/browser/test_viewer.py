"""The attention viewer in a real browser that has no network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dragoman.attention.html import Piece, Target, Tensor, View, Word, notebook_html, render
from support.chromium import Page, chromium

HOSTILE = "</script><img src=x onerror=alert(1)>"


def word(*pieces: str, is_special: bool = False) -> Word:
    """The word that its pieces make; their entries in the vocabulary have the mark of a space."""
    entries = [f"{'' if i or is_special else '▁'}{piece}" for i, piece in enumerate(pieces)]
    return Word("".join(pieces), [Piece(*both) for both in zip(pieces, entries, strict=True)], is_special)


END = word("</s>", is_special=True)
SOURCE = [word("<2fr>", is_special=True), word("The"), word("cat"), word(HOSTILE), word("un", "seen"), END]
TARGETS = [[word("Le"), word("ch", "at"), END], [word("Un"), word("ch", "at"), word("noir"), END]]
WORDS = [[each.text for each in words] for words in TARGETS]
SOURCE_WORDS = [each.text for each in SOURCE]


def num_pieces(words: Sequence[Word]) -> int:
    return sum(len(each.pieces) for each in words)


def weights_of(*shape: int) -> Any:
    """Weights that a page holds without loss: multiples of 1/255, the largest of them 1."""
    weights = np.exp(np.random.default_rng(shape).normal(scale=2, size=shape))
    weights = np.rint(255 * weights / weights.sum(axis=-1, keepdims=True)) / 255
    weights[0, 0, 0] = np.eye(shape[-1])[0]
    return weights


CROSS = [weights_of(2, 3, num_pieces(words), num_pieces(SOURCE)) for words in TARGETS]


def by_word(cross: Any) -> Any:
    """The same between words: "unseen" is attended to at both of its pieces, "chat" attends as the mean of its two."""
    columns = np.concatenate((cross[..., :4], cross[..., 4:6].sum(axis=-1, keepdims=True), cross[..., 6:]), axis=-1)
    return np.concatenate(
        (columns[..., :1, :], columns[..., 1:3, :].mean(axis=-2, keepdims=True), columns[..., 3:, :]), -2
    )


def a_view() -> View:
    """Two hypotheses; an encoder of four layers, a decoder of two; layers and heads that do not start at 0."""
    num_source = num_pieces(SOURCE)
    targets, tensors = [], [Tensor("encoder", weights_of(4, 3, num_source, num_source), range(4), range(3))]
    for i, words in enumerate(TARGETS):
        targets.append(Target(" ".join(WORDS[i]), words, [word("<s>", is_special=True), *words[:-1]]))
        tensors.append(Tensor("decoder", weights_of(2, 3, num_pieces(words), num_pieces(words)), [0, 1], [3, 5, 7], i))
        tensors.append(Tensor("cross", CROSS[i], [4, 5], [3, 5, 7], i))
    return View(f"The cat {HOSTILE}", SOURCE, targets, tensors, details=HOSTILE)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        page.resize(1200, 860)
        yield page


@pytest.fixture
def page(browser: Page, tmp_path: Path) -> Iterator[Page]:
    """The viewer, freshly opened. In the end it has asked for nothing and complained of nothing."""
    path = tmp_path / "attention.html"
    path.write_text(render(a_view()), encoding="utf-8")
    browser.open(path)
    yield browser
    assert browser.requests == [path.as_uri()]
    assert browser.complaints == []


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.run(f"[...document.querySelectorAll({selector!r})].map(e => e.textContent)")
    return found


def values(page: Page, side: str) -> list[str]:
    return texts(page, f"#{side} .token .value")


def percent(weight: float) -> str:
    return f"{100 * weight:.{1 if weight < 0.0995 else 0}f}%"


def percents(weights: Any) -> list[str]:
    """What stands beside the tokens; nothing for what is next to nothing."""
    return [percent(weight) if weight >= 0.015 else "" for weight in weights]


def ink(page: Page, canvas: str) -> int:
    """How many pixels of a canvas are painted."""
    painted: int = page.run(
        f"""(shown => {{
            const {{ width, height }} = shown;
            const copy = new OffscreenCanvas(width, height).getContext("2d", {{ willReadFrequently: true }});
            copy.drawImage(shown, 0, 0);
            const {{ data }} = copy.getImageData(0, 0, width, height);
            return data.filter((value, i) => i % 4 === 3 && value).length;
        }})(document.querySelector({canvas!r}))"""
    )
    return painted


def painted_heights(page: Page, share: float) -> list[float]:
    """Where the lines of the chosen token pass, on the page, at a share of the way from left to right."""
    heights: list[float] = page.run(
        f"""(shown => {{
            const {{ width, height }} = shown, box = shown.getBoundingClientRect();
            const copy = new OffscreenCanvas(width, height).getContext("2d", {{ willReadFrequently: true }});
            copy.drawImage(shown, 0, 0);
            const {{ data }} = copy.getImageData(Math.round({share} * width), 0, 1, height);
            return [...Array(height).keys()].filter(y => data[4 * y + 3]).map(y => box.y + y * box.height / height);
        }})(document.getElementById("some"))"""
    )
    return heights


def pick(page: Page, picker: str, name: str) -> None:
    page.click(f"#{picker} label", texts(page, f"#{picker} label").index(name))


def test_it_opens_with_all_heads_of_the_last_layer_of_cross_attention(page: Page) -> None:
    assert texts(page, "#kind label:has(:checked)") == ["Cross"]
    assert texts(page, "#layer label:has(:checked)") == ["5"]
    assert texts(page, "#heads label:has(:checked)") == ["3", "5", "7"]
    assert texts(page, "#rows .text") == WORDS[0]
    assert texts(page, "#columns .text") == SOURCE_WORDS
    assert texts(page, "#unit label:has(:checked)") == ["Words"]
    assert ink(page, "#all") > 1000
    assert values(page, "rows") == [""] * len(WORDS[0])


def test_pointing_at_a_row_shows_what_it_attends_to(page: Page) -> None:
    page.hover("#rows .token", 1)
    weights = by_word(CROSS[0])[1].mean(axis=0)[1]
    assert texts(page, ".token.on .text") == ["chat"]
    assert values(page, "columns") == percents(weights)
    assert texts(page, "#columns .token.near .text") == [
        text for text, weight in zip(SOURCE_WORDS, weights, strict=True) if weight >= 0.015
    ]
    assert texts(page, "#readout")[0].startswith("chat attends to")
    assert texts(page, "#readout span")[0] == f"{SOURCE_WORDS[weights.argmax()]} {percent(weights.max())}"
    # Only its lines.
    assert 0 < ink(page, "#some") < ink(page, "#all") / 2
    assert page.run("document.getElementById('all').style.opacity") == "0"
    page.hover("h1")
    assert texts(page, ".token.on") == []
    assert page.run("document.getElementById('all').style.opacity") == "1"
    assert ink(page, "#some") == 0


def test_pointing_at_a_column_shows_who_attends_to_it(page: Page) -> None:
    page.hover("#columns .token", 2)
    assert texts(page, ".token.on .text") == ["cat"]
    assert values(page, "rows") == percents(by_word(CROSS[0])[1].mean(axis=0)[:, 2])
    assert values(page, "columns") == [""] * len(SOURCE)
    assert texts(page, "#readout")[0].startswith("cat is attended to by")


def test_a_click_holds_a_token(page: Page) -> None:
    page.click("#rows .token", 0)
    page.hover("#rows .token", 2)
    assert texts(page, ".token[aria-pressed=true] .text") == ["Le"]
    page.press("Escape")
    assert texts(page, ".token.on") == []


def test_layers_and_heads_are_picked(page: Page) -> None:
    pick(page, "layer", "4")
    pick(page, "heads", "3")
    pick(page, "heads", "7")
    page.hover("#rows .token", 0)
    assert values(page, "columns") == percents(by_word(CROSS[0])[0, 1, 0])
    one_head = ink(page, "#all")
    pick(page, "mean", "all")
    all_heads = ink(page, "#all")
    assert all_heads > one_head
    assert texts(page, "#caption")[0].count("Layer 4, 3 heads.") == 1
    pick(page, "mean", "mean")
    assert texts(page, "#caption")[0].count("Layer 4, mean of 3 heads.") == 1
    assert ink(page, "#all") < all_heads


def test_kinds_and_hypotheses_are_picked(page: Page) -> None:
    pick(page, "kind", "Encoder self")
    assert texts(page, "#layer label") == ["0", "1", "2", "3"]
    assert texts(page, "#rows .text") == texts(page, "#columns .text") == SOURCE_WORDS
    pick(page, "kind", "Decoder self")
    assert texts(page, "#rows .text") == texts(page, "#columns .text") == ["<s>", *WORDS[0][:-1]]
    pick(page, "kind", "Cross")
    page.run("(s => { s.value = 1; s.dispatchEvent(new Event('change')); })(document.getElementById('hypothesis'))")
    assert texts(page, "#rows .text") == WORDS[1]
    assert texts(page, "#translation") == [" ".join(WORDS[1])]
    page.hover("#rows .token", 3)
    assert values(page, "columns") == percents(by_word(CROSS[1])[1].mean(axis=0)[3])


def test_all_can_be_reached_with_the_keyboard(page: Page) -> None:
    page.run("document.querySelector('#mode :checked').focus()")
    page.press("ArrowRight")
    assert texts(page, "#mode label:has(:checked)") == ["Heat map"]
    page.press("ArrowLeft")
    page.press("Tab")
    page.press("ArrowLeft")
    assert texts(page, "#kind label:has(:checked)") == ["Decoder self"]
    page.press("ArrowRight")
    page.run("document.querySelector('#rows .token').focus()")
    page.press("ArrowDown")
    assert texts(page, ".token.on .text") == [WORDS[0][1]]
    page.press("ArrowLeft")
    assert texts(page, ".token.on .text") == [SOURCE_WORDS[1]]
    page.press("ArrowRight")
    assert texts(page, ".token.on .text") == [WORDS[0][1]]
    unnamed = "[...document.querySelectorAll('input, select, button, [tabindex=\"0\"]')].filter(e =>"
    assert page.run(f"{unnamed} !(e.ariaLabel || e.textContent || e.labels?.[0]?.textContent)).length") == 0


def test_the_heat_map_names_its_cells(page: Page) -> None:
    pick(page, "mode", "Heat map")
    assert texts(page, "#row-labels .label") == WORDS[0]
    assert texts(page, "#column-labels .label") == SOURCE_WORDS
    page.run("document.getElementById('cells').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.press(key)
    weights = by_word(CROSS[0])[1, :, 1, 1]
    assert texts(page, "#readout")[0].startswith(f"chat attends to The {percent(weights.mean())}")
    assert texts(page, "#readout span") == [f"head {h} {percent(w)}" for h, w in zip((3, 5, 7), weights, strict=True)]
    assert texts(page, "#row-labels .on") == ["chat"]
    assert texts(page, "#column-labels .on") == ["The"]


def test_the_source_is_on_the_left(page: Page) -> None:
    assert texts(page, "#column-name") == ["Source is attended to"]
    assert texts(page, "#row-name") == ["Target attends"]
    page.hover("#rows .token", 2)
    assert texts(page, ".token.on .text") == ["</s>"]
    # All its lines end at its height at the right, and at different heights at the left.
    left, right = (painted_heights(page, share) for share in (0.01, 0.99))
    row = page.run("(b => [b.top, b.bottom])(document.querySelectorAll('#rows .token')[2].getBoundingClientRect())")
    assert row[0] < min(right) <= max(right) < row[1]
    assert max(left) - min(left) > 2 * (row[1] - row[0])


def test_words_are_taken_apart_into_pieces(page: Page) -> None:
    pick(page, "unit", "Pieces")
    assert texts(page, "#rows .text") == ["Le", "ch", "·at", "</s>"]
    assert texts(page, "#columns .text") == ["<2fr>", "The", "cat", HOSTILE, "un", "·seen", "</s>"]
    assert page.run("document.querySelectorAll('#columns .text')[4].title") == "un\n▁un"
    page.hover("#rows .token", 2)
    assert values(page, "columns") == percents(CROSS[0][1].mean(axis=0)[2])
    assert texts(page, "#readout")[0].startswith("at attends to")
    pick(page, "mode", "Heat map")
    assert texts(page, "#row-labels .label") == ["Le", "ch", "·at", "</s>"]
    pick(page, "unit", "Words")
    assert texts(page, "#row-labels .label") == WORDS[0]


def test_a_legend_says_what_is_shown(page: Page) -> None:
    legend = texts(page, "#legend")[0]
    for said in (
        "Lines: a weight of",
        "one for each head",
        "the mean weight of the heads, and squares for that of each",
    ):
        assert said in legend
    assert "summed over what is attended to, averaged over what attends" in legend
    pick(page, "mean", "mean")
    assert "Colours: the mean of the heads" in texts(page, "#legend")[0]
    pick(page, "unit", "Pieces")
    assert "continues a word" in texts(page, "#legend")[0]
    pick(page, "mode", "Heat map")
    assert "Cells: what the row attends to" in texts(page, "#legend")[0]
    pick(page, "mode", "All heads")
    assert "Pictures: rows attend to columns" in texts(page, "#legend")[0]


def test_a_square_of_each_head_is_beside_what_is_attended_to(page: Page) -> None:
    def widths() -> list[float]:
        found: list[float] = page.run("[...document.querySelectorAll('#columns .squares')].map(e => e.offsetWidth)")
        return found

    assert widths() == [0] * len(SOURCE)
    page.hover("#rows .token", 1)
    weights = by_word(CROSS[0])[1].mean(axis=0)[1]
    assert [width > 0 for width in widths()] == [weight >= 0.015 for weight in weights]
    assert max(widths()) == 3 * 10
    # Behind the words themselves there is no colour.
    backgrounds = "[...document.querySelectorAll('#columns .text')].map(e => getComputedStyle(e).backgroundImage)"
    assert set(page.run(backgrounds)) == {"none"}


def test_the_grid_shows_all_heads_and_opens_one(page: Page) -> None:
    pick(page, "kind", "Encoder self")
    pick(page, "mode", "All heads")
    assert page.run("document.querySelectorAll('#grid canvas').length") == 4 * 3
    page.click("#grid button[aria-label='Layer 2, head 1']")
    assert texts(page, "#mode label:has(:checked)") == ["Lines"]
    assert texts(page, "#layer label:has(:checked)") == ["2"]
    assert texts(page, "#heads label:has(:checked)") == ["1"]


def test_it_is_dark_where_the_system_is_and_when_asked(page: Page) -> None:
    def background() -> Any:
        return page.run("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.frames()
    dark = background()
    assert dark != light
    page.click("#theme")
    assert background() == light
    page.send("Emulation.setEmulatedMedia", features=[])


def test_a_hostile_token_stays_text(page: Page) -> None:
    for mode in ("Heat map", "All heads", "Lines"):
        pick(page, "mode", mode)
        assert page.run("document.querySelectorAll('img').length") == 0
    page.hover("#columns .token", 3)
    assert texts(page, ".token.on .text") == [HOSTILE]
    assert HOSTILE in texts(page, "#readout")[0]
    assert texts(page, "h1") == [f"The cat {HOSTILE}"]
    assert texts(page, "#details") == [HOSTILE]


def test_sixty_words_are_readable(browser: Page, tmp_path: Path) -> None:
    words = [word(f"token{i}") for i in range(60)]
    path = tmp_path / "long.html"
    path.write_text(render(View("Long", words, [], [Tensor("encoder", weights_of(1, 8, 60, 60), [0], range(8))])))
    browser.open(path)
    heights = "[...document.querySelectorAll('.token .text')].map(e => e.getBoundingClientRect()).map(b => b.height)"
    fonts = "[...document.querySelectorAll('.token .text')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert min(browser.run(fonts)) >= 13
    # One below the other, and none cut off.
    tops = browser.run("[...document.querySelectorAll('#rows .text')].map(e => e.getBoundingClientRect().top)")
    assert min(np.diff(tops)) >= max(browser.run(heights))
    cut = "[...document.querySelectorAll('.token .text')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert browser.run(cut) == 0
    pick(browser, "mode", "Heat map")
    assert browser.run("parseFloat(getComputedStyle(document.querySelector('#row-labels .label')).fontSize)") >= 11
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints == []


def test_its_policy_forbids_requests(browser: Page, tmp_path: Path) -> None:
    path = tmp_path / "attention.html"
    path.write_text(render(a_view()))
    browser.open(path)
    forbidden = browser.run(
        "new Promise(done => { addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));"
        " fetch('https://example.org').catch(() => {}); })"
    )
    assert forbidden == "connect-src"


def test_it_runs_in_the_frame_of_a_notebook(browser: Page, tmp_path: Path) -> None:
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><body style='margin: 0'>{notebook_html(render(a_view()))}", encoding="utf-8")
    browser.open(path)
    assert browser.run_inside("[...document.querySelectorAll('#rows .text')].map(e => e.textContent)") == WORDS[0]
    assert browser.complaints == []
