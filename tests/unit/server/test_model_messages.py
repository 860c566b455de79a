"""What callers are told of a model."""

from dataclasses import replace
from pathlib import Path

import pytest

from dragoman.v1 import models_pb2 as pb
from dragoman.v1 import translation_pb2
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.registry.entry import Entry
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place
from dragoman_server.runtime.hardware import ON_CPU, Placement
from dragoman_server.wire.models import ModelDescriber
from support.lists import with_lists
from support.server_parts import VERSION, tiny_manifest


@pytest.mark.parametrize(
    ("placement", "precision", "told"),
    [
        (ON_CPU, "int8", ("cpu", "CPUExecutionProvider", pb.DETERMINISM_BITWISE)),
        (ON_CPU, "fp32", ("cpu", "CPUExecutionProvider", pb.DETERMINISM_BITWISE)),
        (ON_CPU, "fp16", ("cpu", "CPUExecutionProvider", pb.DETERMINISM_LAST_BITS)),
        (
            Placement("cuda", "cuda:0,1", "CUDA devices 0 and 1 (L4)", 2),
            "bf16",
            ("cuda:0,1", "CUDAExecutionProvider", pb.DETERMINISM_LAST_BITS),
        ),
    ],
)
def test_a_model_says_where_it_is_decoded(placement: Placement, precision: Precision, told: tuple[object, ...]) -> None:
    bundle = Bundle(Path("tiny"), replace(tiny_manifest(), precision=precision), VERSION)
    entry = Entry(Place(bundle.folder), "a", "1", bundle, placement=placement)
    message = ModelDescriber(Registry.of(), max_rows=8).message(entry)
    assert (message.device, message.execution_provider, message.determinism) == told


def test_a_model_says_what_lists_it_has(bundle: Bundle) -> None:
    listed = with_lists(bundle, {"fr": [5], "de": [6]}, {("en", "fr"): {}})
    plain, with_some = (Entry(Place(each.folder), "a", "1", each) for each in (bundle, listed))
    describer = ModelDescriber(Registry.of(), 8, "language")
    without, message = describer.messages([plain, with_some])
    assert not without.HasField("vocabulary_lists")
    assert message.vocabulary_lists.target_language_codes == ["fr", "de"]
    assert message.vocabulary_lists.shortlists == [
        pb.ShortlistFacts(
            source_language_code="en",
            target_language_code="fr",
            share_identical=0.9875,
            bleu_difference=-0.0625,
            mean_length=312.5,
            p95_length=640.0,
            num_sentences=1000,
            per_token=100,
        )
    ]
    assert message.defaults.vocabulary == translation_pb2.VOCABULARY_LANGUAGE
    assert ModelDescriber(Registry.of(), 8).message(plain).defaults.vocabulary == translation_pb2.VOCABULARY_FULL
