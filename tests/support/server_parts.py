"""What the server is put together from in tests: a tiny tokenizer, a manifest, an engine that echoes."""

import asyncio
import io
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import sentencepiece

from dragoman_server import app
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Architecture, Limits, Manifest, Parity, StateTensors
from dragoman_server.config import Config, ModelOptions
from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis, Outline, Request
from dragoman_server.errors import DragomanError, EngineDeadError, QueueFullError
from dragoman_server.registry.entry import Listing
from dragoman_server.registry.model import Model
from dragoman_server.registry.opener import ModelOpener

LANGUAGES = ("en", "fr", "de")
EOS_ID = 3
VERSION = "0123456789ab"
CONFIG = Config(
    listen="127.0.0.1:0",
    metrics_listen="127.0.0.1:0",
    shutdown_grace_seconds=1000.0,  # longer than a test may take: whoever waits for its end fails
    models=ModelOptions(trust_bundles=True),  # most have no graphs, and a trial takes a second
)
LIMITS = Limits(max_source_tokens=64, max_target_tokens=96, segment_tokens=24)
SENTENCES = (
    "The old cat is sleeping on my chair.",
    "Le vieux chat dort sur ma chaise.",
    "Die alte Katze schläft auf meinem Stuhl.",
    "How are you? I am well, thank you!",
)


def train_tokenizer(path: Path) -> None:
    """The settings are those of the exporter, the vocabulary hardly more than letters and bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=EOS_ID,
        control_symbols=[f"<2{language}>" for language in LANGUAGES],
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def tiny_manifest() -> Manifest:
    directions = [(a, b) for a in LANGUAGES for b in LANGUAGES if "en" in (a, b) and a != b]
    return Manifest(
        name="tiny",
        architecture=Architecture(1, 1, 1, 8, 400),
        precision="fp32",
        languages=LanguageTable.of(directions, {language: (4 + index,) for index, language in enumerate(LANGUAGES)}),
        framing=FramingTemplate(("target",), (EOS_ID,), ()),
        decoder_start_token_id=2,
        eos_token_id=EOS_ID,
        pad_token_id=0,
        limits=LIMITS,
        state=StateTensors(("self.key", "self.value"), ("cross.key", "cross.value")),
        parity=Parity(0.0, 0.0, 0.0, 1.0, 0, ()),
        files={},
    )


def tiny_bundle(folder: Path) -> Bundle:
    """A bundle without graphs, for servers with an engine that needs none."""
    bundle = Bundle(folder, tiny_manifest(), VERSION)
    train_tokenizer(folder / "tokenizer.model")
    return bundle


def echo(request: Request) -> Completion:
    """The source itself after what is forced, each token with log-probability -0.5, cut off at the limit.

    The hypotheses are all the same, each following one with 1 less for every token.
    """
    is_forced = request.prefix_ids[-1:] == (EOS_ID,)
    target = request.prefix_ids if is_forced else (*request.prefix_ids, *request.source_ids[1:])
    token_ids = target[: request.max_target_tokens]
    reason = FinishReason.STOP if token_ids == target else FinishReason.LENGTH
    hypotheses = tuple(
        Hypothesis(token_ids, (-0.5 - rank,) * len(token_ids), reason, request.options.length_penalty)
        for rank in range(request.options.num_hypotheses)
    )
    return Completion(hypotheses, 0.25, 0.125, 0.5)


class FakeEngine:
    """Answers at once, or when told to.

    Args:
        complete: gives the answer to a request.

    Attributes:
        requests: all that were submitted.
        callers: the call that each is of.
        identities: the caller of each.
        futures: their futures, in the same order.
        progress: what tells each how far it is, by the ids it begins with.
        is_holding: whether answers wait for `release`.
        is_full: whether there is room only for what is unlimited.
        refusal: what `submit` raises.
        early_refusal: what `check` raises.
        seconds_of_one: how long it says that each request takes.
        seconds_after: that `check` was told of.
        num_expected: requests that it is told are made ready.
        num_pending_rows: as the test has set it.
    """

    def __init__(self, complete: Callable[[Request], Completion] = echo) -> None:
        self._complete = complete
        self.requests: list[Request] = []
        self.callers: list[object] = []
        self.identities: list[object] = []
        self.futures: list[Future[Completion]] = []
        self.progress: list[Callable[[tuple[int, ...]], None]] = []
        self.is_holding = self.is_full = False
        self.refusal: Exception | None = None
        self.early_refusal: Exception | None = None
        self.stalled_seconds = 0.0
        self.num_given_back = self.num_pending_rows = 0
        self.seconds_of_one = 0.0
        self.num_expected = 0
        self.seconds_after: list[float] = []

    def start(self) -> None:
        pass

    def check(self, outline: Outline) -> None:
        self.seconds_after.append(outline.seconds_after)
        if self.early_refusal is not None:
            raise self.early_refusal

    def seconds(self, outline: Outline) -> float:
        return outline.num_requests * self.seconds_of_one

    @contextmanager
    def expecting(self, outline: Outline) -> Iterator[None]:
        self.num_expected += outline.num_requests
        yield
        self.num_expected -= outline.num_requests

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        identity: object = None,
        is_unlimited: bool = False,
    ) -> list[Future[Completion]]:
        if self.refusal is not None:
            raise self.refusal
        if self.is_full and not is_unlimited:
            raise QueueFullError("the queue is full", retry_after_seconds=1.0)
        futures: list[Future[Completion]] = [Future() for _ in requests]
        self.requests += requests
        self.callers += [caller] * len(requests)
        self.identities += [identity] * len(requests)
        self.futures += futures
        self.progress += [partial(on_progress or (lambda _, __: None), index) for index in range(len(requests))]
        if not self.is_holding:
            self._answer(requests, futures)
        return futures

    def give_back_memory(self) -> None:
        self.num_given_back += 1

    def release(self, index: int | None = None) -> None:
        """Answers all that was submitted, or the one at this place."""
        places = slice(None) if index is None else slice(index, index + 1)
        self._answer(self.requests[places], self.futures[places])

    def _answer(self, requests: Sequence[Request], futures: Sequence[Future[Completion]]) -> None:
        for request, future in zip(requests, futures, strict=True):
            if not future.done():
                future.set_result(self._complete(request))

    def fail(self, error: DragomanError) -> None:
        for future in self.futures:
            if not future.done():
                future.set_exception(error)

    def stop(self) -> None:
        self.refusal = self.refusal or EngineDeadError("the engine was stopped")
        self.fail(EngineDeadError("the engine was stopped"))

    async def submitted(self, count: int = 1) -> None:
        """Returns when `count` requests have arrived in all."""
        while len(self.requests) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@dataclass
class RunningServer:
    """A server in this process, on a port of its own."""

    address: str
    metrics_url: str
    admin_address: str | None
    line: str  # what it printed
    engine: FakeEngine
    exit_code: "asyncio.Task[int]"

    def die(self) -> None:
        """What a dying engine does: answers everyone, refuses the next, and tells."""
        error = EngineDeadError("the engine has died")
        self.engine.refusal = error
        self.engine.fail(error)
        self.on_death()

    def on_death(self) -> None:
        raise NotImplementedError


@asynccontextmanager
async def running_server(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Config
) -> AsyncIterator[RunningServer]:
    """Serves `bundle` with a FakeEngine; the ports in `config` should be 0. Ends it by SIGTERM."""
    engine = FakeEngine()
    callbacks = {}

    def open_model(*_: object, **keywords: object) -> Model:
        callbacks.update(keywords)
        return Model(bundle, engine)

    monkeypatch.setattr(ModelOpener, "peek", lambda *_: Listing(bundle, 1))
    monkeypatch.setattr(Model, "open", open_model)
    monkeypatch.setattr(Model, "kv_bytes_per_token", 32)
    monkeypatch.setattr(Model, "max_kv_bytes", 4096)
    capsys.readouterr()
    task = asyncio.create_task(app.serve(config))
    line = ""
    while not line.endswith("\n") and not task.done():
        line += capsys.readouterr().out
        await asyncio.sleep(0.005)
    if task.done():
        task.result()
    found = re.search(
        r" on (\S+)(?: with (?:mutual )?TLS)?, metrics on ([^\s,]+)(?:, administration on (\S+).*)?$", line.strip()
    )
    assert found is not None, line
    server = RunningServer(found[1], found[2], found[3], line, engine, task)
    server.on_death = callbacks["on_death"]  # type: ignore[method-assign, assignment]
    try:
        yield server
    finally:
        if not task.done():
            engine.release()
            os.kill(os.getpid(), signal.SIGTERM)
        await task
