"""What the heads of a model do over a corpus: which are positional, which look for rare tokens, which rest."""

import html
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dragoman.attention.attention import Attention
from dragoman.attention.statistics import HeadStats, HeadTotals
from dragoman.attention.types import AttentionToken
from dragoman.types import AttentionKind

Label: TypeAlias = Literal["positional", "rare-token", "idle"]

POSITIONAL_SHARE = 0.9
"""A head is positional from this share of rows with their largest weight at one offset (Voita et al. 2019)."""

RARE_TOKEN_SHARE = 0.5
"""It looks for rare tokens from this share of rows with their largest weight on the rarest token of their text.
Voita et al. (2019) found one such head in the first layer of each model, with up to 0.66."""

IDLE_SHARE = 0.9
"""It is idle from this mean weight on tags and end-of-sentence."""

MIN_RARE_TOKENS = 5
"""In texts of fewer tokens, the rarest one is often met by chance: they do not count for that label."""


@dataclass(frozen=True, slots=True)
class HeadReport:
    """One head over all texts."""

    stats: HeadStats
    """Its numbers; rows are those of all texts."""

    rare_token_share: float | None
    """The share of rows with their largest weight on the rarest token of their text. None for the decoder, which does
    not read the source, and where no text was long enough."""

    labels: tuple[Label, ...]
    """What it is; empty for most heads."""


class CorpusReport:
    """Adds up what heads do, text by text.

    The rarest token of a text is the one that comes least often in all texts; among equals, the one
    with the highest id, as tokenizers number their entries from frequent to rare.
    """

    def __init__(self) -> None:
        self.num_texts = 0
        self._about = ""
        self._totals: dict[AttentionKind, HeadTotals] = {}
        self._frequencies: Counter[int] = Counter()
        # By kind and text: the source column of the largest weight, [layers, heads, rows], and the source.
        self._largest: dict[AttentionKind, list[tuple[NDArray[np.uint16], Sequence[AttentionToken]]]] = {}

    def add(self, attention: Attention) -> None:
        """Adds a text: the weights of all layers and heads, of the kinds that the first one had."""
        self.num_texts += 1
        self._about = f"{attention.model}, {attention.source_language} to {attention.target_language}"
        source = attention.source_tokens
        self._frequencies.update(token.id for token in source if not token.is_special)
        is_long = sum(not token.is_special for token in source) >= MIN_RARE_TOKENS
        for kind, tensor in attention.tensors.items():
            rows = [not token.is_special for token in attention.rows(kind)]
            if kind not in self._totals:
                self._totals[kind] = HeadTotals(kind, tensor.layers, tensor.heads)
            self._totals[kind].add(tensor.weights, rows, [not token.is_special for token in attention.columns(kind)])
            if is_long and kind != "decoder":
                largest = tensor.weights[:, :, np.flatnonzero(rows)].argmax(axis=-1)
                self._largest.setdefault(kind, []).append((largest.astype(np.uint16), source))

    def heads(self) -> list[HeadReport]:
        """All heads, by kind, layer and head."""
        reports = []
        for kind, totals in self._totals.items():
            shares = self._rare_token_shares(kind)
            for index, stats in enumerate(totals.stats()):
                share = shares[index] if shares else None
                reports.append(HeadReport(stats, share, _labels(stats, share)))
        return reports

    def title(self) -> str:
        """What it is about, in a line."""
        return f"{self._about}: {self.num_texts} texts"

    def _rare_token_shares(self, kind: AttentionKind) -> list[float] | None:
        if kind not in self._largest:
            return None
        num_rows = 0
        found: NDArray[np.int64] | int = 0
        for largest, source in self._largest[kind]:
            columns = [column for column, token in enumerate(source) if not token.is_special]
            rarest = min(columns, key=lambda column: (self._frequencies[source[column].id], -source[column].id))
            # A token that comes twice is met at either place.
            places = [column for column in columns if source[column].id == source[rarest].id]
            found = found + np.isin(largest, places).sum(axis=-1)
            num_rows += largest.shape[-1]
        return [float(share) for share in np.ravel(found / num_rows)]


def to_text(report: CorpusReport) -> str:
    """The report as a table of text."""
    lines = [[name for name, _ in _COLUMNS], *([show(head) for _, show in _COLUMNS] for head in report.heads())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([report.title(), "", *table])


def to_html(report: CorpusReport) -> str:
    """The report as a page that needs no network."""
    header = "".join(f"<th>{html.escape(name)}" for name, _ in _COLUMNS)
    rows = "\n".join(_html_row(head) for head in report.heads())
    title = html.escape(report.title())
    return _PAGE.format(title=title, header=header, rows=rows)


def _html_row(head: HeadReport) -> str:
    cells = "".join(f"<td>{html.escape(show(head))}" for _, show in _COLUMNS)
    return f'<tr class="{" ".join(head.labels)}">{cells}'


def _labels(stats: HeadStats, rare_token_share: float | None) -> tuple[Label, ...]:
    labels: list[Label] = []
    if stats.positional_share >= POSITIONAL_SHARE:
        labels.append("positional")
    if rare_token_share is not None and rare_token_share >= RARE_TOKEN_SHARE:
        labels.append("rare-token")
    if stats.special_share >= IDLE_SHARE:
        labels.append("idle")
    return tuple(labels)


_COLUMNS: Sequence[tuple[str, Callable[[HeadReport], str]]] = (
    ("kind", lambda head: head.stats.kind),
    ("layer", lambda head: str(head.stats.layer)),
    ("head", lambda head: str(head.stats.head)),
    ("entropy", lambda head: f"{head.stats.entropy:.2f}"),
    ("confidence", lambda head: f"{head.stats.confidence:.2f}"),
    ("positional", lambda head: f"{head.stats.positional_share:.2f}"),
    ("offset", lambda head: f"{head.stats.offset:+d}"),
    ("rare token", lambda head: "" if head.rare_token_share is None else f"{head.rare_token_share:.2f}"),
    ("end", lambda head: f"{head.stats.end_of_sentence_share:.2f}"),
    ("end and tags", lambda head: f"{head.stats.special_share:.2f}"),
    ("distance", lambda head: f"{head.stats.mean_distance:.1f}"),
    ("labels", lambda head: ", ".join(head.labels)),
)

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2em .8em; text-align: right; }}
th {{ border-bottom: 1px solid; position: sticky; top: 0; background: Canvas; }}
td:last-child {{ text-align: left; }}
.positional {{ background: color-mix(in srgb, Canvas, dodgerblue 25%); }}
.rare-token {{ background: color-mix(in srgb, Canvas, orange 25%); }}
.idle {{ background: color-mix(in srgb, Canvas, gray 25%); }}
</style>
<h1>What the heads do</h1>
<p>{title}
<p>Rows of weights are tokens of the text. <b>entropy</b>: 0 is one token each, 1 all alike; <b>confidence</b>: mean of
the largest weight on a token of the text; <b>positional</b>: share of rows with their largest weight at <b>offset</b>;
<b>rare token</b>: share with it on the rarest token of the text; <b>end</b>, <b>end and tags</b>: mean weight on
end-of-sentence, and on all that is not of the text; <b>distance</b>: mean distance in tokens.
<table>
<thead><tr>{header}</thead>
<tbody>
{rows}
</tbody>
</table>
</html>
"""
