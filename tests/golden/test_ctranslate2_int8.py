"""A trained model in a CTranslate2 folder at int8: its texts are those of CTranslate2 at int8.

Without calibration every activation is rounded as CTranslate2 does it, by row, and every text is the same. With
calibration, one range holds for all rows, and keys and values are int8, too: about as many texts are the same as
CTranslate2 has in common with its own float32.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.greedy import Source
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.search_options import SearchOptions
from support.family_models import SENTENCEPIECE_FILE
from support.generating import MAX_TARGET_TOKENS, decode
from support.trained_models import sentence, train

pytest.importorskip("ctranslate2")
import ctranslate2

from support.ct2_models import convert_with_vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_TRAINING, NUM_TEST, NUM_CALIBRATION = 6000, 300, 200
MOST_FEWER = 3  # texts, of `NUM_TEST`
DIRECTIONS = (Direction("en", "fr"), Direction("fr", "en"))


def test_texts_are_those_of_ctranslate2(tmp_path: Path) -> None:
    rng = random.Random(0)
    seen = [sentence(rng) for _ in range(NUM_TRAINING)]
    unseen = [pair for pair in (sentence(rng) for _ in range(4 * NUM_TEST)) if pair not in seen]
    train(tmp_path / "huggingface", seen)
    original = read_model(tmp_path / "huggingface", "trained", Stated())
    vocabulary = json.loads(original.companion_files["vocab.json"])
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    folders = {"int8": tmp_path / "int8", "float32": tmp_path / "float32"}
    for kind, folder in folders.items():
        convert_with_vocabulary(tmp_path / "huggingface", folder, tokens, (SENTENCEPIECE_FILE,), kind)
    checkpoint = read_model(folders["int8"], "trained", Stated())
    assert checkpoint.config.languages == original.config.languages
    calibration = [
        source
        for side, direction in enumerate(DIRECTIONS)
        for source in _sources(checkpoint, direction, [pair[side] for pair in unseen[NUM_TEST:][:NUM_CALIBRATION]])
    ]
    by_row, calibrated = (
        export(checkpoint, tmp_path / name, "int8", calibration[:10], sentences)[0]
        for name, sentences in (("by-row", ()), ("calibrated", calibration))
    )
    for side, direction in enumerate(DIRECTIONS):
        sources = _sources(checkpoint, direction, [pair[side] for pair in unseen[:NUM_TEST]])
        theirs, of_float32 = (
            _theirs(ctranslate2.Translator(str(folder), compute_type=kind), checkpoint, sources, tokens)
            for kind, folder in folders.items()
        )
        own, rows, ranges = (
            sum(a == b for a, b in zip(found, theirs, strict=True))
            for found in (of_float32, _ours(by_row, sources), _ours(calibrated, sources))
        )
        print(f"{direction}: as CTranslate2's int8 are its float32 {own}, ours by row {rows}, ours calibrated {ranges}")
        assert rows == NUM_TEST
        assert ranges >= own - MOST_FEWER


def _sources(checkpoint: Checkpoint, direction: Direction, texts: Sequence[str]) -> list[Source]:
    framing, codec = checkpoint.config.framing_of(direction), checkpoint.open_tokenizer()
    return [Source(direction, framing.frame(codec.encode(text))) for text in texts]


def _theirs(
    translator: ctranslate2.Translator, checkpoint: Checkpoint, sources: Sequence[Source], tokens: Sequence[str]
) -> list[str]:
    codec, ids = checkpoint.open_tokenizer(), {token: i for i, token in enumerate(tokens)}
    prefixes = [[tokens[i] for i in checkpoint.config.framing_of(source.direction).target_prefix] for source in sources]
    results = translator.translate_batch(
        [[tokens[i] for i in source.ids] for source in sources],
        target_prefix=prefixes,
        beam_size=1,
        max_decoding_length=MAX_TARGET_TOKENS,
    )
    return [codec.decode([ids[token] for token in result.hypotheses[0]]) for result in results]


def _ours(bundle: Bundle, sources: Sequence[Source]) -> list[str]:
    forced = bundle.manifest.framing_of(sources[0].direction).target_prefix
    found = decode(bundle, [source.ids for source in sources], SearchOptions(), forced)
    return [bundle.tokenizer.decode(each.targets[0]) for each in found]
