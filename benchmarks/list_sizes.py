"""What shortlists of several lengths are worth with one's own bundle: speed against identical translations.

    python -m benchmarks.list_sizes BUNDLE en-fr=FILE --picture PICTURE.png

The bundle has shortlists, as `dragoman-export shortlist` writes it, and FILE has sentences that they were not made of.
Of a model that is too small to gain, `--speed-of` shows the speed of another bundle beside the identical translations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer
from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks.statistics import Summary, paired_ratios
from dragoman_export.shortlist.decoding import Decoder, open_decoder
from dragoman_export.shortlist.sentences import Ids, framed
from dragoman_export.text_files import CorpusFile, read_lines
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.vocabulary import VocabularyTables
from dragoman_server.engine.candidates import Candidates

_PER_TOKEN = (20, 50, 100, 200)
_BATCHES = {1: 64, 8: 256, 32: 960}  # sentences at a time, and in a run
_NUM_PAIRS = 7


@dataclass(frozen=True)
class Size:
    """What shortlists of one length are worth."""

    per_token: int  # tokens that a source token brings at most
    identical: float  # share of translations that are those of the whole vocabulary
    mean_length: float  # of the lists whose speed it is
    speeds: Mapping[int, Summary]  # times that of the whole vocabulary, by sentences at a time


@dataclass(frozen=True)
class Samples:
    """Sentences to measure a model on."""

    decoder: Decoder
    direction: Direction
    framing: Framing
    sources: Sequence[Ids]
    tables: VocabularyTables

    @classmethod
    def of(cls, decoder: Decoder, direction: Direction, lines: Sequence[str]) -> "Samples":
        """Raises ValueError where the model has no shortlists of the direction."""
        model = decoder.model
        tables, framing = model.bundle.vocabulary, model.manifest.framing_of(direction)
        if tables is None or direction not in tables.directions:
            raise ValueError(f"{model.bundle.folder} has no shortlists of {'-'.join(direction)}")
        return cls(decoder, direction, framing, framed(model.bundle, direction, lines), tables)

    def lists(self, per_token: int) -> list[Candidates]:
        """Those of all sentences."""
        found = (self.tables.shortlist(source, self.direction, per_token) for source in self.sources)
        return [
            Candidates(np.union1d(ids, self.framing.target_prefix).astype(np.int32)) for ids in found if ids is not None
        ]

    def identical(self, per_token: int) -> float:
        """The share of translations that are those of the whole vocabulary."""
        full = self.decoder.submit(self.sources, self.framing)
        listed = self.decoder.submit(self.sources, self.framing, self.lists(per_token))
        return float(np.mean([one == other for one, other in zip(full, listed, strict=True)]))

    def speed(self, per_token: int, batch: int) -> Summary:
        """Of so many sentences at a time; runs with and without lists alternate."""
        lists = self.lists(per_token)

        def seconds(candidates: Sequence[Candidates]) -> float:
            parts = [slice(begin, begin + batch) for begin in range(0, min(_BATCHES[batch], len(lists)), batch)]
            return sum(self.decoder.timed(self.sources[part], self.framing, candidates[part])[1] for part in parts)

        pairs = [(seconds(()), seconds(lists)) for _ in range(1 + _NUM_PAIRS)]
        return paired_ratios(*zip(*pairs[1:], strict=True))  # the first allocates


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle with shortlists.")],
    sentences: Annotated[str, typer.Argument(metavar="SOURCE-TARGET=FILE", help="Sentences, one a line.")],
    speed_of: Annotated[Path | None, typer.Option(help="Bundle with shortlists whose speed is taken.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of speed against identical translations.")] = None,
) -> None:
    """Measure shortlists of several lengths."""
    with open_decoder(bundle, num_threads=0) as decoder, open_decoder(speed_of or bundle, num_threads=0) as timed:
        file = CorpusFile.parse(sentences, decoder.model.manifest.languages)
        direction, lines = Direction(*file.languages), read_lines(file.path)
        samples, timed_samples = (Samples.of(each, direction, lines) for each in (decoder, timed))
        sizes = [
            Size(
                per_token,
                samples.identical(per_token),
                float(np.mean([len(each.ids) for each in timed_samples.lists(per_token)])),
                {batch: timed_samples.speed(per_token, batch) for batch in _BATCHES},
            )
            for per_token in _PER_TOKEN
        ]
    table = Table("per token", "mean length", "identical", *(f"speed, {batch} at a time" for batch in _BATCHES))
    for size in sizes:
        speeds = [f"{speed.median:.2f} ({speed.low:.2f} - {speed.high:.2f})" for speed in size.speeds.values()]
        table.add_row(str(size.per_token), f"{size.mean_length:.0f}", f"{size.identical:.1%}", *speeds)
    Console().print(table)
    if picture is not None:
        _draw(sizes, picture)


def _draw(sizes: Sequence[Size], path: Path) -> None:
    matplotlib.use("Agg")
    figure, axes = plt.subplots(figsize=(7, 4.5))
    xs = [100 * size.identical for size in sizes]
    for batch in _BATCHES:
        ys = [size.speeds[batch].median for size in sizes]
        axes.plot(xs, ys, marker="o", label=f"{batch} sentence{'s' * (batch > 1)} at a time")
        for x, y, size in zip(xs, ys, sizes, strict=True):
            axes.annotate(str(size.per_token), (x, y), textcoords="offset points", xytext=(5, 5), fontsize="small")
    axes.set_xlabel("translations identical to those of the whole vocabulary, %")
    axes.set_ylabel("speed, times that of the whole vocabulary")
    axes.set_title("Shortlists by the tokens that a source token brings")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
