"""A trained model in Marian's own format: what Marian's search finds with it, and what ours does."""

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
from dragoman_server.engine.search_options import SearchOptions
from support.generating import MAX_TARGET_TOKENS, SCORE_TOLERANCE, Ids, decode
from support.marian_answers import Answer, translate

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
    # Marian lets targets be as many times longer than these; ours have a limit of their own.
    return Model(folder / "source", bundle, pieces, [source for source in sources if len(source) <= 20][:200])


def _without_end(target: Ids) -> Ids:
    return target[:-1]


@pytest.mark.parametrize(("beam_size", "normalize", "most"), [(1, 1.0, 0), (4, 0.6, 2), (4, 1.0, 20)])
def test_targets_are_marians_or_score_higher(model: Model, beam_size: int, normalize: float, most: int) -> None:
    options = SearchOptions(beam_size=beam_size, num_hypotheses=beam_size, length_penalty=normalize)
    num_others = num_compared = 0
    for found, answer in zip(
        decode(model.bundle, model.sources, options), model.marian(beam_size, normalize), strict=True
    ):
        (pieces, score), target = answer[0], found.targets[0]
        if len(target) == MAX_TARGET_TOKENS:
            continue  # cut off
        num_compared += 1
        if _without_end(target) != model.ids(pieces):
            num_others += 1
            assert found.scores[0] > score
        elif beam_size > 1:
            assert found.scores[0] == pytest.approx(score, abs=SCORE_TOLERANCE)
    print(f"beam {beam_size}, normalize {normalize}: {num_others} of {num_compared} differ")
    assert num_compared > 100
    assert num_others <= most
