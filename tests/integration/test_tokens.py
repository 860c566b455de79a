"""A real server with a file of tokens: who may do what, and what the log says of it."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from dragoman.v1 import attention_pb2, attention_pb2_grpc, models_pb2, models_pb2_grpc, translation_pb2_grpc
from dragoman.v1 import translation_pb2 as pb
from dragoman_server.access.tokens import make_token
from dragoman_server.bundle.bundle import embedded_bundle
from support.process import ServerProcess, server_process

MARKER = "Zyzzyva"
EN_FR: dict[str, Any] = {"source_language_code": "en", "target_language_code": "fr"}
# The lines of the log go into a file, as an operator's would.
PROGRAM = """
import os
os.dup2(os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
from dragoman_server.__main__ import main
main()
"""


class Served(NamedTuple):
    process: ServerProcess
    channel: grpc.Channel
    log: Path
    tokens: Path
    secrets: dict[str, str]

    def metadata(self, name: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.secrets[name]}"),)

    def lines(self) -> list[dict[str, Any]]:
        """Of the log, when those of the last call have been written."""
        time.sleep(0.2)
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("tokens")
    tokens, log = folder / "tokens", folder / "log"
    made = {
        name: make_token(name, options)
        for name, options in {
            "free": {},
            "slow": {"rate": "1"},
            "stream": {"rate": "20"},
            "other": {"models": "another"},
        }.items()
    }
    tokens.touch(0o600)
    tokens.write_text("".join(f"{line}\n" for _, line in made.values()), encoding="utf-8")
    program = PROGRAM.format(path=str(log))
    options = ("--tokens", str(tokens), "--log-format", "json", "--max-text-characters", "5000")
    with server_process(embedded_bundle(), *options, program=program) as process:
        no_retries = [("grpc.enable_retries", 0)]
        with grpc.insecure_channel(process.address, options=no_retries) as channel:
            yield Served(process, channel, log, tokens, {name: token for name, (token, _) in made.items()})


def translate(*texts: str, **fields: Any) -> pb.TranslateRequest:
    return pb.TranslateRequest(inputs=[pb.TranslationInput(text=text) for text in texts], **(EN_FR | fields))


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, Status]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    trailers = dict(error.trailing_metadata())
    return error.code(), Status.FromString(trailers["grpc-status-details-bin"])


def reason(status: Status) -> str:
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


def test_models_that_a_token_may_not_use_are_refused_and_not_listed(served: Served) -> None:
    translation = translation_pb2_grpc.TranslationServiceStub(served.channel)
    attention = attention_pb2_grpc.AttentionServiceStub(served.channel)
    models = models_pb2_grpc.ModelServiceStub(served.channel)
    (model,) = models.ListModels(models_pb2.ListModelsRequest(), metadata=served.metadata("free")).models
    metadata = served.metadata("other")
    for call in (
        lambda: translation.Translate(translate("a"), metadata=metadata),
        lambda: translation.Translate(translate("a", model=model.name), metadata=metadata),
        lambda: attention.Align(
            attention_pb2.AlignRequest(inputs=[attention_pb2.AlignInput(text="a")], **EN_FR), metadata=metadata
        ),
        lambda: models.GetModel(models_pb2.GetModelRequest(model=model.name), metadata=metadata),
    ):
        code, status = refusal(call)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert reason(status) == "PERMISSION_DENIED"
        assert status.message == f"the token other may not use the model {model.name!r} that this call needs"
    assert not models.ListModels(models_pb2.ListModelsRequest(), metadata=metadata).models


def test_a_call_over_the_rate_is_told_when_it_gets_in(served: Served) -> None:
    stub = translation_pb2_grpc.TranslationServiceStub(served.channel)
    metadata = served.metadata("slow")
    stub.Translate(translate(*["a"] * 40), metadata=metadata)
    code, status = refusal(lambda: stub.Translate(translate("the dog"), metadata=metadata))
    assert (code, reason(status)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    retry = RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    seconds = retry.retry_delay.ToNanoseconds() / 1e9
    assert 0 < seconds <= 39
    stub.Translate(translate("the dog"), metadata=served.metadata("free"))  # others are not concerned


def test_an_exchange_is_read_no_faster_than_its_rate(served: Served) -> None:
    stub = translation_pb2_grpc.TranslationServiceStub(served.channel)
    messages = [pb.ExchangeTranslationsRequest(config=pb.ExchangeConfig(**EN_FR))]
    messages += [
        pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(id=str(number), input=pb.TranslationInput(text="a")))
        for number in range(20)
    ]
    started = time.monotonic()
    answers = [*stub.ExchangeTranslations(iter(messages), metadata=served.metadata("stream"), timeout=30)]
    assert len(answers) == 20
    assert time.monotonic() - started >= 0.4  # the first 10 are the burst that streams have


def test_a_new_token_is_known_soon(served: Served) -> None:
    token, line = make_token("new", {})
    stub = translation_pb2_grpc.TranslationServiceStub(served.channel)
    metadata = (("authorization", f"bearer {token}"),)
    code, _ = refusal(lambda: stub.Translate(translate("a"), metadata=metadata))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    with served.tokens.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    for _ in range(100):
        try:
            stub.Translate(translate("a"), metadata=metadata)
            break
        except grpc.RpcError:
            time.sleep(0.1)
    else:
        pytest.fail("the file was not read again")
    assert metrics(served)['dragoman_token_reloads_total{outcome="ok"}'] == 1
    assert metrics(served)['dragoman_caller_requests_total{caller="new",code="OK"}'] == 1


def metrics(served: Served) -> dict[str, float]:
    lines = page(served).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def page(served: Served) -> str:
    with urllib.request.urlopen(served.process.metrics_url) as answer:
        text: str = answer.read().decode()
        return text


def calls_with(text: str, served: Served) -> Iterator[Callable[[], object]]:
    """Every method, with a text wherever it takes one; some fail."""
    translation = translation_pb2_grpc.TranslationServiceStub(served.channel)
    attention = attention_pb2_grpc.AttentionServiceStub(served.channel)
    models = models_pb2_grpc.ModelServiceStub(served.channel)
    with_token: dict[str, Any] = {"metadata": served.metadata("free"), "timeout": 30}
    text_input = pb.TranslationInput(text=text)
    prefixed = pb.TranslationInput(text=text, target_prefix=text)
    texts: Sequence[pb.TranslationInput]
    for texts in ([text_input], [prefixed], []):
        request = pb.TranslateRequest(inputs=texts, include_signals=bool(texts), **EN_FR)
        yield partial(translation.Translate, request, **with_token)
    yield lambda: translation.Translate(translate(text, model=text), **with_token)
    yield lambda: translation.Translate(translate(text, source_language_code=text), **with_token)
    yield lambda: translation.Translate(translate(text, target_language_code="xx"), **with_token)
    words = pb.DecodingOptions(suppressed_words=[text], beam_size=0)
    yield lambda: translation.Translate(translate(text, options=words), **with_token)
    yield lambda: translation.Translate(translate(text), timeout=30)
    yield lambda: translation.Translate(translate(text), metadata=(("authorization", f"Bearer {MARKER}"),), timeout=30)
    yield lambda: translation.Translate(
        translate(text), metadata=(*served.metadata("free"), ("x-other", MARKER), ("x-request-id", f"{MARKER} x"))
    )
    yield lambda: [*translation.StreamTranslation(pb.StreamTranslationRequest(input=text_input, **EN_FR), **with_token)]
    config = pb.ExchangeTranslationsRequest(config=pb.ExchangeConfig(**EN_FR))
    one = pb.ExchangeTranslationsRequest(input=pb.ExchangeInput(id=text, input=text_input))
    yield lambda: [*translation.ExchangeTranslations(iter([config, one]), **with_token)]
    yield lambda: [*translation.ExchangeTranslations(iter([one]), **with_token)]
    score = pb.ScoreRequest(inputs=[pb.ScoreInput(text=text, target_text=text), pb.ScoreInput(text=text)], **EN_FR)
    yield lambda: translation.Score(score, **with_token)
    pair = attention_pb2.AlignInput(text=text, target_text=text)
    yield lambda: attention.Align(attention_pb2.AlignRequest(inputs=[pair], **EN_FR), **with_token)
    get = attention_pb2.GetAttentionRequest(text=text, target_text=text, **EN_FR)
    yield lambda: [*attention.GetAttention(get, **with_token)]
    yield lambda: models.GetModel(models_pb2.GetModelRequest(model=text), **with_token)
    yield lambda: models.ListModels(models_pb2.ListModelsRequest(), **with_token)
    raw: grpc.UnaryUnaryMultiCallable[bytes, bytes] = served.channel.unary_unary(
        "/dragoman.v1.TranslationService/Translate"
    )
    yield lambda: raw(b"\x0a\xff" + text.encode(), **with_token)
    admin = models_pb2_grpc.ModelAdminServiceStub(served.channel)
    yield lambda: admin.LoadModel(models_pb2.LoadModelRequest(path=text), **with_token)


@pytest.mark.parametrize("text", [MARKER, f"the {MARKER} dog ", f"{MARKER}\n" * 10, f"{MARKER} " * 1000])
def test_texts_are_in_no_log_and_no_metric_and_only_as_an_excerpt_in_errors(served: Served, text: str) -> None:
    num_lines, num_calls, num_failed = len(served.lines()), 0, 0
    for call in calls_with(text, served):
        num_calls += 1
        try:
            call()
        except grpc.RpcError as error:
            num_failed += 1
            failed: Any = error
            # A whole text is in no error, nor a long part of one.
            assert failed.details().count(MARKER) <= 30
            assert len(failed.details()) <= 1024
            assert failed.code() not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
    lines = served.lines()
    assert num_failed > 5
    # The call of an unknown service has one, too, and each line is an object.
    assert [line["event"] for line in lines[num_lines:] if line["event"] == "call"] == ["call"] * num_calls
    assert MARKER not in served.log.read_text(encoding="utf-8")
    assert MARKER not in page(served)


def test_a_line_says_all_but_the_text(served: Served) -> None:
    stub = translation_pb2_grpc.TranslationServiceStub(served.channel)
    metadata = (*served.metadata("free"), ("x-request-id", "mine"))
    _, call = stub.Translate.with_call(translate("the dog", "a bird"), metadata=metadata)
    assert ("x-request-id", "mine") in call.trailing_metadata()
    line = served.lines()[-1]
    assert line.pop("duration_seconds") >= 0
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("model").startswith("default@")
    assert line == {
        "level": "info",
        "event": "call",
        "method": "dragoman.v1.TranslationService/Translate",
        "code": "OK",
        "request_id": "mine",
        "caller": "free",
        "texts": 2,
    }
