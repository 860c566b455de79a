"""Two replicas on a Ray of this machine, with the configuration of deploy/ray, against a server of one's own."""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from benchmarks.faults.traffic import Traffic
from benchmarks.ray_cluster import PYTHON, ROOT, Cluster, cluster
from benchmarks.settings import SENTENCES, read_sentences
from dragoman import Client, DragomanError, Translation
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc
from dragoman_server.bundle.bundle import embedded_bundle
from support.process import server_process

pytestmark = pytest.mark.timeout(900)

TEXTS = read_sentences(SENTENCES)
NUM_CALLS, NUM_CALLERS = 2000, 16
BEAM_SIZES = (1, 4)
NUM_KILLS = 3
LANGUAGES: dict[str, Any] = {"source": "en", "target": "fr"}


@pytest.fixture(scope="module")
def replicas() -> Iterator[Cluster]:
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON.relative_to(ROOT)} is missing: make test-ray installs it")
    with cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def single() -> Iterator[str]:
    """The address of a server of one's own."""
    with server_process(embedded_bundle(), "--lanes=1", "--num-threads=1") as server:
        yield server.address


@pytest.fixture(scope="module")
def client(replicas: Cluster) -> Iterator[Client]:
    with Client(replicas.address) as found:
        yield found


def answer(translation: Translation) -> object:
    """All that may not depend on who translates, to the last bit."""
    hypotheses = [hypothesis for segment in translation.segments for hypothesis in segment.hypotheses]
    return translation.text, [(token.id, token.logprob) for each in hypotheses for token in each.tokens]


def test_2000_calls_are_answered_as_by_a_single_server(replicas: Cluster, client: Client, single: str) -> None:
    asked = [(text, beam_size) for beam_size in BEAM_SIZES for text in TEXTS]
    with Client(single) as server:
        translations = [server.translate(TEXTS, beam_size=beam_size, **LANGUAGES) for beam_size in BEAM_SIZES]
    expected = dict(zip(asked, map(answer, itertools.chain(*translations)), strict=True))
    calls = list(itertools.islice(itertools.cycle(asked), NUM_CALLS))
    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        answers = list(callers.map(lambda a: answer(client.translate(a[0], beam_size=a[1], **LANGUAGES)), calls))
    assert answers == [expected[call] for call in calls]
    assert len(replicas.replicas()) == 2


def test_both_replicas_answer(client: Client) -> None:
    assert len({client.models()[0].load_time for _ in range(40)}) == 2


def test_streams_and_exchanges_come_through(client: Client, single: str) -> None:
    paragraph = " ".join(TEXTS[:6])
    with Client(single) as server:
        expected = [answer(each) for each in server.translate([paragraph, *TEXTS], **LANGUAGES)]
    with client.stream(paragraph, **LANGUAGES) as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert ("".join(pieces), answer(stream.result)) == (stream.result.text, expected[0])
    exchanged = dict(client.exchange(TEXTS, **LANGUAGES))
    assert [answer(exchanged[index]) for index in range(len(TEXTS))] == expected[1:]  # type: ignore[arg-type]


def wrong(client: Client) -> list[Callable[[], object]]:
    """Calls that fail."""
    long = "x" * 30_000
    pair: dict[str, Any] = {"source": "en", "target": "xx"}
    return [
        lambda: client.translate("x", **pair),
        lambda: client.translate(long, beam_size=1000, **LANGUAGES),
        lambda: list(client.stream("x", **pair)),
        lambda: list(client.stream(long, **LANGUAGES)),
        lambda: list(client.exchange(["x"], **pair)),
        lambda: client.model("nobody"),
        lambda: client.attention("x", target_text="y" * 30_000, **LANGUAGES),
        lambda: client.load_model("x"),
    ]


def failure(call: Callable[[], object]) -> object:
    with pytest.raises(DragomanError) as caught:
        call()
    error = caught.value
    return type(error), error.reason, error.metadata, error.field_violations, error.retry_after


def test_errors_are_those_of_a_single_server_with_all_details(client: Client, single: str) -> None:
    with Client(single) as server:
        for ours, theirs in zip(wrong(client), wrong(server), strict=True):
            assert failure(ours) == failure(theirs)


def test_the_other_methods_answer_alike(client: Client, single: str) -> None:
    text = TEXTS[0]
    with Client(single) as server:
        target = server.translate(text, **LANGUAGES).text
        assert client.score(text, target, **LANGUAGES) == server.score(text, target, **LANGUAGES)
        assert client.align(text, target, **LANGUAGES) == server.align(text, target, **LANGUAGES)
        assert client.attention(text, **LANGUAGES).target_tokens == server.attention(text, **LANGUAGES).target_tokens
        assert client.languages() == server.languages()
        assert client.health()


def test_metadata_of_serve_and_of_callers_come_back(replicas: Cluster) -> None:
    request = pb.TranslateRequest(
        inputs=[pb.TranslationInput(text="Good morning.")], source_language_code="en", target_language_code="fr"
    )
    with grpc.insecure_channel(replicas.address) as channel:
        stub = translation_pb2_grpc.TranslationServiceStub(channel)
        named = (("x-request-id", "mine"), ("multiplexed_model_id", "default"), ("application", "dragoman"))
        _, call = stub.Translate.with_call(request, timeout=30, metadata=named)
        found = dict(call.trailing_metadata())
        assert found["x-request-id"] == "mine"
        assert found["request_id"]
        _, call = stub.Translate.with_call(request, timeout=30, metadata=(("request_id", "serves"),))
        found = dict(call.trailing_metadata())
        assert (found["x-request-id"], found["request_id"]) == ("serves", "serves")


def test_no_call_is_lost_when_replicas_are_killed(replicas: Cluster, single: str) -> None:
    traffic = Traffic(TEXTS, single)

    def faults() -> None:
        for _ in range(NUM_KILLS):
            time.sleep(1)
            replicas.kill()
            replicas.wait(2)
        time.sleep(5)

    traffic.run(replicas.address, 4, faults, {})
    for kind, record in traffic.records.items():
        print(record.described(kind))
    assert all(record.is_clean and record.num_done for record in traffic.records.values())
