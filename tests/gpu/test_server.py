"""A server on a GPU against the same bundle on the CPU, called as anybody calls it."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dragoman import Client, Translation
from dragoman_server.runtime.cuda import find_devices
from support.device_runs import DEVICE, ROOT, Case
from support.process import ServerProcess, server_process

pytestmark = pytest.mark.gpu

SHARE_EQUAL = 0.9
NUM_TEXTS = 200 if DEVICE == "cuda" else 20


@pytest.fixture(scope="module")
def servers(open_case: Callable[[str, str], Case]) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """On the device, and on the CPU."""
    folder = open_case("default", "fp16").bundle.folder
    with (
        server_process(folder, "--device", DEVICE) as on_device,
        server_process(folder, "--device", "cpu") as on_cpu,
    ):
        yield on_device, on_cpu


@pytest.fixture(scope="module")
def clients(servers: tuple[ServerProcess, ServerProcess]) -> Iterator[tuple[Client, Client]]:
    with Client(servers[0].address, timeout=300) as on_device, Client(servers[1].address, timeout=300) as on_cpu:
        yield on_device, on_cpu


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return (ROOT / "benchmarks/sentences.txt").read_text(encoding="utf-8").splitlines()[:NUM_TEXTS]


def test_the_start_line_names_the_device(servers: tuple[ServerProcess, ServerProcess]) -> None:
    on_device, on_cpu = (server.line for server in servers)
    expected = "the CPU" if DEVICE == "cpu" else f"CUDA device 0 ({find_devices([0])[0].name})"
    assert f" on {expected} on 127.0.0.1:" in on_device
    assert " on the CPU on 127.0.0.1:" in on_cpu


def test_the_models_say_where_they_are(clients: tuple[Client, Client]) -> None:
    on_device, on_cpu = (client.models()[0] for client in clients)
    assert on_device.device == ("cpu" if DEVICE == "cpu" else "cuda:0")
    assert on_cpu.device == "cpu"


def test_translations_are_those_of_the_cpu(
    clients: tuple[Client, Client], texts: list[str], default_case: Case, tell: Callable[[str], None]
) -> None:
    """Where they differ, the first tokens that do were nearly as probable as each other."""
    on_device, on_cpu = (client.translate(texts, source="en", target="fr") for client in clients)
    differing = [pair for pair in zip(on_device, on_cpu, strict=True) if str(pair[0]) != str(pair[1])]
    tell(f"{len(differing)} of {len(texts)} translations of the server differ from those of the CPU")
    assert len(differing) <= (1 - SHARE_EQUAL) * len(texts)
    for ours, theirs in differing:
        here, there = next(
            pair for pair in zip(ours.tokens, theirs.tokens, strict=False) if pair[0].piece != pair[1].piece
        )
        assert abs(here.logprob - there.logprob) <= 2 * default_case.tolerance


def test_scores_are_those_of_the_cpu(clients: tuple[Client, Client], texts: list[str], default_case: Case) -> None:
    targets = [str(result) for result in clients[1].translate(texts[:20], source="en", target="fr")]
    for text, target in zip(texts[:20], targets, strict=True):
        ours, theirs = (client.score(text, target, source="en", target="fr") for client in clients)
        found, expected = ([token.logprob for token in score.tokens] for score in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=0, atol=default_case.tolerance)


def test_beams_streams_and_single_texts_agree_with_lists(clients: tuple[Client, Client], texts: list[str]) -> None:
    """On a GPU they may differ at near ties, for they are other batches."""
    on_device, _ = clients
    listed = [str(result) for result in on_device.translate(texts[:20], source="en", target="fr")]
    streamed = ["".join(on_device.stream(text, source="en", target="fr")) for text in texts[:20]]
    assert sum(a == b for a, b in zip(listed, streamed, strict=True)) >= SHARE_EQUAL * 20
    beams = [
        clients[i].translate(texts[:20], source="en", target="fr", beam_size=4, num_hypotheses=2) for i in range(2)
    ]
    equal = [str(ours) == str(theirs) for ours, theirs in zip(*beams, strict=True)]
    assert sum(equal) >= SHARE_EQUAL * 20
    assert all(isinstance(result, Translation) and len(result.hypotheses) == 2 for result in beams[0])


def test_attention_and_alignments_are_those_of_the_cpu(clients: tuple[Client, Client], texts: list[str]) -> None:
    target = str(clients[1].translate(texts[0], source="en", target="fr"))
    ours, theirs = (client.attention(texts[0], target, source="en", target="fr") for client in clients)
    assert ours.tensors.keys() == theirs.tensors.keys() != set()
    for kind, tensor in ours.tensors.items():
        weights = tensor.weights
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-3)
        np.testing.assert_allclose(weights, theirs.tensors[kind].weights, rtol=0, atol=1e-3)
    links = [client.align(texts[0], target, source="en", target="fr").word_links for client in clients]
    assert links[0] == links[1]
    assert links[0]
