"""Calls of every kind through the SDK, each compared with the answer that a server without faults gave."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE
from dragoman import AsyncClient, Client, DragomanError, TranslateOptions, Translation
from dragoman._channel import channel_options
from dragoman.v1 import translation_pb2 as pb
from dragoman.v1 import translation_pb2_grpc

_LANGUAGES: Final[Any] = {"source": SOURCE_LANGUAGE, "target": TARGET_LANGUAGE}
_TIMEOUT_SECONDS: Final = 60.0
_TEXTS_PER_STREAM: Final = 4
_TEXTS_PER_EXCHANGE: Final = 60
# A stream is resumed exactly where decoding is one of these.
_STREAM_OPTIONS: Final[Sequence[TranslateOptions]] = (
    {"beam_size": 1},
    {"beam_size": 4},
    {"temperature": 1.0, "seed": 7},
)

UNARY, STREAM, EXCHANGE = "unary", "stream", "exchange"
# Through gRPC alone: what fails is not sent again. Servers that are NOT_SERVING are left, as by the SDK.
PLAIN = "plain"

Answer = tuple[object, ...]


@dataclass
class Record:
    """What became of the calls of one kind."""

    num_done: int = 0
    num_different: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of each call that did not fail."""

    @property
    def is_clean(self) -> bool:
        """Whether no call failed, and none was answered differently."""
        return not self.failures and not self.num_different

    def described(self, kind: str) -> str:
        """A line for people, and one for each kind of failure."""
        in_order = sorted(self.seconds) or [0.0]
        middle, late = in_order[len(in_order) // 2], in_order[int(len(in_order) * 0.99)]
        lines = [
            f"{kind:9}{self.num_done:7} calls, {self.failures.total()} failed, {self.num_different} differ, "
            f"p50 {middle * 1e3:.0f} ms, p99 {late * 1e3:.0f} ms, longest {in_order[-1]:.2f} s"
        ]
        lines += [f"    {count:5} x {what}" for what, count in self.failures.most_common()]
        return "\n".join(lines)


class Traffic:
    """Callers that call until they are told to end.

    Args:
        texts: sentences.
        reference: the address of a server without faults; it is asked for all answers here.

    Attributes:
        records: what became of the calls of the latest run, by their kind.
    """

    def __init__(self, texts: Sequence[str], reference: str) -> None:
        self.records: Mapping[str, Record] = {}
        self._texts = texts
        self._paragraphs = [
            " ".join(texts[first : first + _TEXTS_PER_STREAM]) for first in range(0, len(texts), _TEXTS_PER_STREAM)
        ]
        with Client(reference, timeout=600.0) as client:
            self._answers = dict(zip(texts, map(_answer, client.translate(texts, **_LANGUAGES)), strict=True))
            self._streamed = [
                list(map(_answer, client.translate(self._paragraphs, **_LANGUAGES, **options)))
                for options in _STREAM_OPTIONS
            ]
        self._lock = threading.Lock()
        self._are_over: frozenset[str] = frozenset()  # kinds of which no more calls are made

    def run(
        self,
        address: str,
        num_callers: int,
        faults: Callable[[], None],
        least: Mapping[str, int],
        *,
        has_plain: bool = False,
    ) -> None:
        """Puts `num_callers` of every kind on the servers, half of them async, until the faults are over.

        Args:
            address: what clients are made with: one for all sync callers and one for all async ones.
            num_callers: of every kind; of exchanges, which are many texts at a time, no more than two.
            faults: does them; runs on a thread of its own.
            least: calls of a kind that are made in any case.
            has_plain: whether there are callers, too, who send nothing again.
        """
        self.records = {kind: Record() for kind in (UNARY, STREAM, EXCHANGE, *([PLAIN] if has_plain else []))}
        self._are_over = frozenset()
        failures: list[BaseException] = []

        def do_faults() -> None:
            try:
                faults()
                while missing := {kind for kind, number in least.items() if self.records[kind].num_done < number}:
                    self._are_over = frozenset(self.records) - missing
                    time.sleep(0.1)
            except BaseException as error:
                failures.append(error)
            finally:
                self._are_over = frozenset(self.records)

        with Client(address, timeout=_TIMEOUT_SECONDS) as client:
            threads = [threading.Thread(target=do_faults)]
            for number in range(num_callers // 2):
                calls = [(UNARY, self._unary), (STREAM, self._stream)]
                calls += [(EXCHANGE, self._exchange)] if number == 0 else []
                threads += [threading.Thread(target=self._repeat, args=(*call, client, number)) for call in calls]
            for thread in threads:
                thread.start()
            num_async = num_callers - num_callers // 2
            asyncio.run(self._run_async(address, num_async, num_async if has_plain else 0))
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]

    # -- the calls, from threads

    def _repeat(self, kind: str, call: Callable[[Client, int], None], client: Client, number: int) -> None:
        for turn in itertools.count(number * 31):
            if kind in self._are_over:
                return
            call(client, turn)

    def _unary(self, client: Client, turn: int) -> None:
        text, started = self._text(turn), time.monotonic()
        try:
            answer = client.translate(text, **_LANGUAGES)
        except Exception as error:
            self._failed(UNARY, error)
        else:
            self._done(UNARY, started, _answer(answer) == self._answers[text])

    def _stream(self, client: Client, turn: int) -> None:
        text, options, expected = self._paragraph(turn)
        started = time.monotonic()
        try:
            with client.stream(text, **_LANGUAGES, **options) as stream:
                pieces = list(stream)
            self._done(STREAM, started, ("".join(pieces), *_answer(stream.result)) == (expected[0], *expected))
        except Exception as error:
            self._failed(STREAM, error)

    def _exchange(self, client: Client, turn: int) -> None:
        seen: dict[int, Answer] = {}
        texts, started = self._several(turn), time.monotonic()
        try:
            for index, result in client.exchange(texts, **_LANGUAGES):
                self._seen(seen, index, result)
            self._done(EXCHANGE, started, seen == self._expected(texts))
        except Exception as error:
            self._failed(EXCHANGE, error)

    # -- the same from asyncio

    async def _run_async(self, address: str, num_callers: int, num_plain: int) -> None:
        options = [*channel_options(address, is_health_checked=True), ("grpc.enable_retries", 0)]
        async with (
            AsyncClient(address, timeout=_TIMEOUT_SECONDS) as client,
            grpc.aio.insecure_channel(address, options) as channel,
        ):
            stub: Any = translation_pb2_grpc.TranslationServiceStub(channel)

            async def repeat(kind: str, call: Callable[[Any, int], Any], caller: object, number: int) -> None:
                for turn in itertools.count(number * 17 + 5):
                    if kind in self._are_over:
                        return
                    await call(caller, turn)

            await asyncio.gather(
                repeat(EXCHANGE, self._exchange_async, client, 0),
                *(repeat(UNARY, self._unary_async, client, number) for number in range(num_callers)),
                *(repeat(STREAM, self._stream_async, client, number) for number in range(num_callers)),
                *(repeat(PLAIN, self._plain, stub, number) for number in range(num_plain)),
            )

    async def _plain(self, stub: Any, turn: int) -> None:
        text, started = self._text(turn), time.monotonic()
        languages: Any = {"source_language_code": SOURCE_LANGUAGE, "target_language_code": TARGET_LANGUAGE}
        request = pb.TranslateRequest(inputs=[pb.TranslationInput(text=text)], **languages)
        try:
            response = await stub.Translate(request, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            self._failed(PLAIN, error)
        else:
            (result,) = response.results
            self._done(PLAIN, started, result.translation.text == self._answers[text][0])

    async def _unary_async(self, client: AsyncClient, turn: int) -> None:
        text, started = self._text(turn), time.monotonic()
        try:
            answer = await client.translate(text, **_LANGUAGES)
        except Exception as error:
            self._failed(UNARY, error)
        else:
            self._done(UNARY, started, _answer(answer) == self._answers[text])

    async def _stream_async(self, client: AsyncClient, turn: int) -> None:
        text, options, expected = self._paragraph(turn)
        started = time.monotonic()
        try:
            async with client.stream(text, **_LANGUAGES, **options) as stream:
                pieces = [piece async for piece in stream]
            self._done(STREAM, started, ("".join(pieces), *_answer(stream.result)) == (expected[0], *expected))
        except Exception as error:
            self._failed(STREAM, error)

    async def _exchange_async(self, client: AsyncClient, turn: int) -> None:
        seen: dict[int, Answer] = {}
        texts, started = self._several(turn), time.monotonic()
        try:
            async for index, result in client.exchange(texts, **_LANGUAGES):
                self._seen(seen, index, result)
            self._done(EXCHANGE, started, seen == self._expected(texts))
        except Exception as error:
            self._failed(EXCHANGE, error)

    # -- what is asked and what is answered

    def _text(self, turn: int) -> str:
        return self._texts[turn % len(self._texts)]

    def _paragraph(self, turn: int) -> tuple[str, TranslateOptions, Answer]:
        place, kind = turn % len(self._paragraphs), turn % len(_STREAM_OPTIONS)
        return self._paragraphs[place], _STREAM_OPTIONS[kind], self._streamed[kind][place]

    def _several(self, turn: int) -> list[str]:
        return [self._text(turn + offset) for offset in range(_TEXTS_PER_EXCHANGE)]

    def _expected(self, texts: Sequence[str]) -> dict[int, Answer]:
        return {index: self._answers[text] for index, text in enumerate(texts)}

    def _seen(self, seen: dict[int, Answer], index: int, result: Translation | DragomanError) -> None:
        if isinstance(result, DragomanError):
            raise result
        # A result that comes twice is none that was expected.
        seen[index] = ("twice",) if index in seen else _answer(result)

    def _done(self, kind: str, started: float, is_same: bool) -> None:
        with self._lock:
            record = self.records[kind]
            record.num_done += 1
            record.num_different += not is_same
            record.seconds.append(time.monotonic() - started)

    def _failed(self, kind: str, error: Exception) -> None:
        what = f"{type(error).__name__}: {getattr(error, 'reason', '')} {error}"
        with self._lock:
            self.records[kind].failures[what[:200]] += 1


def _answer(translation: Translation) -> Answer:
    """All that may not depend on who translates, to the last bit."""
    hypotheses = (hypothesis for segment in translation.segments for hypothesis in segment.hypotheses)
    tokens = tuple((token.id, token.logprob) for hypothesis in hypotheses for token in hypothesis.tokens)
    return translation.text, translation.score, tokens
