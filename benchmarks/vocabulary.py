"""Lists of tokens against the whole vocabulary, and against CTranslate2 with a list of the same content.

    python -m benchmarks.vocabulary

Not a part of `python -m benchmarks`. The model has OPUS-base's dimensions and random weights. So that lists are as long
as those of a trained model, and overlap as much, each source token has the tokens that it would have if they were
drawn by Zipf's law: over the sentences of the benchmark, 825 tokens in the mean and 7,650 for 32 sentences together,
where a table of a vocabulary of 28,863 that was counted in 165,000 pairs of sentences gives 733 and 6,007.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import Workload, compare
from benchmarks.ct2 import CTranslate2System, save_ctranslate2
from benchmarks.models import Model, opus_base
from benchmarks.report import Row
from benchmarks.servers import ServedSystem, Server, dragoman_server
from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings, run_part
from benchmarks.systems import Source
from dragoman import Client
from dragoman_export.shortlist.tables import Table
from dragoman_export.shortlist.writing import vocabulary_bytes
from dragoman_server.bundle.bundle import Bundle, file_sha256
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import MANIFEST_FILE, VOCABULARY_FILE, ShortlistFacts, VocabularyFacts

SIZES = ((1, 1), (1, 8), (1, 32), (4, 8))  # beam size and sentences
_PER_TOKEN, _NUM_FREQUENT = 100, 100
_ZIPF = 1.1  # the exponent
_FORCED_TOKENS = 20
_MIN_SENTENCES = 32  # of one run, for runs of small batches to be long enough to be measured
_MORE_PAIRS = 3  # times as many, for a difference that is smaller than the noise of a run
_DIRECTION = Direction(SOURCE_LANGUAGE, TARGET_LANGUAGE)
_TIMEOUT_SECONDS = 300.0


def run(settings: Settings) -> Iterator[Row]:
    """Throughput by shortlists, without them, and of a bundle that has none.

    Raises:
        RuntimeError: a server does not start.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = opus_base(folder, settings)
        texts = dict(zip(model.sentence_sources(settings.sentences), settings.sentences, strict=True))
        table = random_table(model, texts)
        listed = with_lists(model, folder / "listed", [table], {})
        save_ctranslate2(model.checkpoint, folder / "ctranslate2")
        rows = {str(token_id): row_of(table, token_id) for source in texts for token_id in source}
        save_vmap(folder / "ctranslate2", table.frequent, rows)
        num_sentences = 1 if settings.is_quick else _MIN_SENTENCES
        workload = Workload(listed, list(texts), num_sentences, _FORCED_TOKENS)
        yield from against_full(workload, "shortlist", texts, folder / "ctranslate2", settings)
        with dragoman_server(listed, settings) as server, dragoman_server(model, settings) as plain:
            yield from _without_lists(server, plain, workload, texts, settings)


def against_full(
    workload: Workload,
    vocabulary: Literal["language", "shortlist"],
    texts: Mapping[Source, str],
    folder: Path,
    settings: Settings,
) -> Iterator[Row]:
    """Throughput of a served bundle by its lists, against the whole vocabulary and CTranslate2 at int8 with `vmap.txt`.

    Args:
        workload: of a model with lists.
        vocabulary: of them.
        texts: by their ids.
        folder: of CTranslate2's model, with `vmap.txt`.
        settings: of the run.
    """
    model = workload.model
    peer = replace(CTranslate2System.load(folder, model, "int8", settings.threads), uses_vmap=True)
    for beam, batch in SIZES:
        with dragoman_server(model, settings) as server, Client(server.address, timeout=_TIMEOUT_SECONDS) as client:
            ours, full = (
                ServedSystem(replace(server.subject, setting=kind), client, texts, kind)
                for kind in (vocabulary, "full")
            )
            yield from compare(ours, [full, peer], workload, batch, beam, settings)


def _without_lists(
    server: Server, plain: Server, workload: Workload, texts: Mapping[Source, str], settings: Settings
) -> Iterator[Row]:
    """The whole vocabulary of a bundle that has lists, against that of one that has none."""
    with (
        Client(server.address, timeout=_TIMEOUT_SECONDS) as client,
        Client(plain.address, timeout=_TIMEOUT_SECONDS) as other,
    ):
        ours = ServedSystem(replace(server.subject, setting="full, has lists"), client, texts)
        theirs = ServedSystem(replace(plain.subject, setting="has no lists"), other, texts)
        settings = replace(settings, num_pairs=_MORE_PAIRS * settings.num_pairs)
        for beam, batch in SIZES:
            yield from compare(ours, [theirs], workload, batch, beam, settings)


# -- lists -------------------------------------------------------------------------------------------------------------


def with_lists(model: Model, folder: Path, tables: Sequence[Table], languages: Mapping[str, NDArray[Any]]) -> Model:
    """The model in another bundle, in `folder`, which has lists. Measured facts, which nothing here reads, are 0."""
    manifest = model.bundle.manifest
    shutil.copytree(model.bundle.folder, folder)
    num_source_ids = model.bundle.tokenizer.source_vocabulary.size
    (folder / VOCABULARY_FILE).write_bytes(vocabulary_bytes(manifest, num_source_ids, languages, tables))
    facts = tuple(ShortlistFacts(table.direction, _PER_TOKEN, 1, 0.0, None, 1.0, 1.0, 0.0) for table in tables)
    files = {**manifest.files, VOCABULARY_FILE: file_sha256(folder / VOCABULARY_FILE)}
    manifest = replace(manifest, files=files, vocabulary=VocabularyFacts(facts, tuple(languages)))
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return replace(model, bundle=Bundle.open(folder))


def save_vmap(folder: Path, frequent: NDArray[Any], rows: Mapping[str, NDArray[Any]]) -> None:
    """Writes `vmap.txt` for a model whose tokens are ids: what is in every list, and the row of each source token."""
    lines = [f"{token}\t{' '.join(map(str, ids.tolist()))}\n" for token, ids in {"": frequent, **rows}.items()]
    (folder / "vmap.txt").write_text("".join(lines), encoding="utf-8")


def row_of(table: Table, token_id: int) -> NDArray[np.int64]:
    """The tokens that a source token brings."""
    return table.links[slice(*table.offsets[token_id : token_id + 2].tolist())]


@dataclass(frozen=True)
class _Zipf:
    """Tokens by how often they come."""

    order: NDArray[np.int64]

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Different tokens (Gumbel's way to draw without putting back)."""
        keys = -_ZIPF * np.log(np.arange(1, len(self.order) + 1)) + rng.gumbel(size=len(self.order))
        return self.order[np.argsort(-keys)[:count]]


def random_table(model: Model, sources: Iterable[Source], per_token: int = _PER_TOKEN) -> Table:
    """Rows for the tokens of these sources."""
    config = model.checkpoint.config
    size = config.dimensions.target_vocabulary_size
    zipf = _Zipf(np.random.default_rng(0).permutation(size))
    frequent = np.union1d(zipf.order[:_NUM_FREQUENT], [config.eos_token_id])
    used = sorted({token_id for source in sources for token_id in source})
    rows = {i: np.setdiff1d(zipf.draw(per_token, np.random.default_rng(i)), frequent) for i in used}
    lengths = [len(rows.get(i, ())) for i in range(model.bundle.tokenizer.source_vocabulary.size)]
    return Table(_DIRECTION, np.cumsum([0, *lengths]), np.concatenate([rows[i] for i in used]), frequent)


if __name__ == "__main__":
    run_part("vocabulary", run)
