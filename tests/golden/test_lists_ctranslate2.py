"""Lists of ours mean what CTranslate2's `vmap.txt` means: with the same content both find the same."""

from pathlib import Path

import pytest

pytest.importorskip("ctranslate2")
import ctranslate2

from benchmarks.ct2 import save_ctranslate2
from benchmarks.models import opus_base
from benchmarks.settings import SENTENCES, Settings, read_sentences
from benchmarks.vocabulary import random_table, row_of, save_vmap, with_lists
from dragoman_export.shortlist.decoding import open_decoder
from dragoman_server.engine.candidates import Candidates

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIRECTION = ("en", "fr")


def test_targets_over_lists_are_those_of_ctranslate2(tmp_path: Path) -> None:
    settings = Settings.smoke(read_sentences(SENTENCES), 2)
    model = opus_base(tmp_path, settings, precision="fp32")
    sources = model.sentence_sources(settings.sentences)[:100]
    table = random_table(model, sources)
    listed = with_lists(model, tmp_path / "listed", [table], {})
    save_ctranslate2(model.checkpoint, tmp_path / "ctranslate2")
    rows = {str(token_id): row_of(table, token_id) for source in sources for token_id in source}
    save_vmap(tmp_path / "ctranslate2", table.frequent, rows)
    translator = ctranslate2.Translator(str(tmp_path / "ctranslate2"), compute_type="float32")
    tables = listed.bundle.vocabulary
    assert tables is not None
    lists = [ids for source in sources if (ids := tables.shortlist(source, DIRECTION)) is not None]
    with open_decoder(tmp_path / "listed", num_threads=2) as decoder:
        framing = listed.bundle.manifest.framing_of(DIRECTION)
        found = [*decoder.submit(sources, framing, [Candidates(ids) for ids in lists])]
        full = [*decoder.submit(sources, framing)]
    manifest = listed.bundle.manifest
    for source, ids, target in zip(sources, lists, found, strict=True):
        (result,) = translator.translate_batch(
            [list(map(str, source))],
            use_vmap=True,
            beam_size=1,
            max_decoding_length=len(target),
            # To CTranslate2 this is the unknown token, which it adds to each list.
            suppress_sequences=[[str(manifest.pad_token_id)]],
        )
        assert list(map(int, result.hypotheses[0])) == [i for i in target if i != manifest.eos_token_id]
        assert set(target) <= set(ids.tolist())
    assert found != full
