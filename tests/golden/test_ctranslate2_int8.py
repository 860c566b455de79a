"""A trained model in a CTranslate2 folder at int8: ours is as near to CTranslate2's as that is to its own float32."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from dragoman_export.bundle.sources import sample_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.table import read_model
from dragoman_export.greedy import Source
from dragoman_export.languages import Languages
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.engine.search_options import SearchOptions
from support.family_models import SENTENCEPIECE_FILE
from support.generating import MAX_TARGET_TOKENS, decode
from support.trained_m2m100 import sentence, train

pytest.importorskip("ctranslate2")
import ctranslate2

from support.ct2_models import convert_with_vocabulary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_TRAINING, NUM_TEST = 6000, 300
DIRECTIONS = (Direction("en", "fr"), Direction("fr", "en"))


def test_texts_are_those_of_ctranslate2_as_often_as_its_own_are_those_of_float32(tmp_path: Path) -> None:
    rng = random.Random(0)
    seen = [sentence(rng) for _ in range(NUM_TRAINING)]
    unseen = [pair for pair in (sentence(rng) for _ in range(2 * NUM_TEST)) if pair not in seen][:NUM_TEST]
    train(tmp_path / "huggingface", seen)
    original = read_model(tmp_path / "huggingface", "trained", Languages())
    vocabulary = json.loads(original.companion_files["vocab.json"])
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    folders = {"int8": tmp_path / "int8", "float32": tmp_path / "float32"}
    for kind, folder in folders.items():
        convert_with_vocabulary(tmp_path / "huggingface", folder, tokens, (SENTENCEPIECE_FILE,), kind)
    checkpoint = read_model(folders["int8"], "trained", Languages())
    assert checkpoint.config.languages == original.config.languages
    bundle, _ = export(
        checkpoint, tmp_path / "bundle", "int8", sample_sources(checkpoint, 20), sample_sources(checkpoint, 200)
    )
    for side, direction in enumerate(DIRECTIONS):
        sources = _sources(checkpoint, direction, [pair[side] for pair in unseen])
        theirs = {
            kind: _theirs(ctranslate2.Translator(str(folder), compute_type=kind), checkpoint, sources, tokens)
            for kind, folder in folders.items()
        }
        ours = _ours(bundle, sources)
        own = sum(a == b for a, b in zip(theirs["int8"], theirs["float32"], strict=True))
        same = sum(a == b for a, b in zip(ours, theirs["int8"], strict=True))
        as_float = sum(a == b for a, b in zip(ours, theirs["float32"], strict=True))
        print(f"{direction}: of {len(sources)} texts CTranslate2 has {own} as at float32, we {same} as its int8 has")
        print(f"and {as_float} as its float32 has")
        assert same >= own


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
