"""A trained model in Marian's own format: what Marian finds with it is what we find."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.marian import save_marian
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.engine.search_options import EarlyStopping, SearchOptions
from support.generating import SCORE_TOLERANCE, Ids, decode
from support.marian_answers import LENGTH_FACTOR, Answer, translate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Model:
    """The model that the server is shipped with, as Marian's and imported from there."""

    folder: Path
    bundle: Bundle
    pieces: list[str]
    sources: list[Ids]  # whose targets are short enough

    def marian(self, beam_size: int, normalize: float) -> list[Answer]:
        lines = [" ".join(self.pieces[token_id] for token_id in source[:-1]) for source in self.sources]
        return translate(self.folder / "model.npz", [self.folder / "vocab.yml"] * 2, lines, beam_size, normalize)

    def ids(self, pieces: str) -> Ids:
        return tuple(self.pieces.index(piece) for piece in pieces.split(" ") if piece)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    pytest.importorskip("pymarian")
    folder = tmp_path_factory.mktemp("trained")
    ours = Checkpoint.load(ROOT / "models" / "default")
    codec, config = ours.open_tokenizer(), ours.config
    save_marian(ours, folder / "source")
    # With the pieces in place of the numbers that the benchmark has for words. Padding is never used.
    pieces = codec.pieces(range(codec.vocabulary.size))
    pieces[config.pad_token_id], pieces[codec.unknown_id] = "<unk>", "<other>"
    (folder / "source" / "vocabulary.yml").unlink()
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    (folder / "source" / "vocab.yml").write_text(json.dumps(ids), encoding="utf-8")
    for side in ("source", "target"):
        shutil.copy(ROOT / "models" / "default" / "tokenizer.model", folder / "source" / f"{side}.spm")
    checkpoint = read_model(folder / "source", "model", Stated(pair="en-fr"))
    bundle, _ = export(checkpoint, folder / "bundle", "fp32", read_sources(checkpoint, (), 4))
    framing = config.framing_of(("en", "fr"))
    lines = (ROOT / "benchmarks" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    sources = [framing.frame(codec.encode(line)) for line in lines if line.strip()]
    return Model(folder / "source", bundle, pieces, [source for source in sources if len(source) <= 20][:200])


@pytest.mark.parametrize(("beam_size", "normalize"), [(1, 1.0), (4, 0.6), (4, 1.0), (12, 1.0)])
def test_targets_and_scores_are_marians(model: Model, beam_size: int, normalize: float) -> None:
    options = SearchOptions(
        beam_size=beam_size,
        num_hypotheses=beam_size,
        length_penalty=normalize,
        early_stopping=EarlyStopping.NARROWING,
    )
    answers = model.marian(beam_size, normalize)
    for found, answer in zip(
        decode(model.bundle, model.sources, options, limit=lambda source: LENGTH_FACTOR * len(source)),
        answers,
        strict=True,
    ):
        ours = [tuple(i for i in target if i != model.bundle.manifest.eos_token_id) for target in found.targets]
        assert ours == [model.ids(pieces) for pieces, _ in answer]
        if beam_size > 1:
            assert found.scores == pytest.approx([score for _, score in answer], abs=SCORE_TOLERANCE)
    assert len(answers) > 100
