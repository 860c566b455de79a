"""What callers are told of a model, by where it is decoded."""

from dataclasses import replace
from pathlib import Path

import pytest

from dragoman.v1 import models_pb2 as pb
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.registry.entry import Entry
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place
from dragoman_server.runtime.hardware import ON_CPU, Placement
from dragoman_server.wire.models import ModelDescriber
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
