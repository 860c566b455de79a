"""CTranslate2 behind a plain gRPC server with dynamic batching: what one would write around it in an afternoon.

It speaks the same `dragoman.v1` Translate as Dragoman, so that the same load generator calls both, and does less: no
checks, no limits, no segmentation, and no tokens and log-probs in its answers.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import ctranslate2
import grpc
import typer

from dragoman.v1 import translation_pb2 as pb
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.text.tokenizer import load_tokenizer

Source = list[str]
_Waiting = tuple[Source, "asyncio.Future[ctranslate2.TranslationResult]"]
_Context = grpc.aio.ServicerContext[pb.TranslateRequest, pb.TranslateResponse]


class Batcher:
    """Collects sources until there are enough or the first has waited long enough, then translates them in a thread.

    There is a thread for each worker of CTranslate2, and no batch is collected while all have one.
    """

    def __init__(
        self,
        translate: Callable[[Sequence[Source]], Sequence[ctranslate2.TranslationResult]],
        num_workers: int,
        max_rows: int,
        max_delay_seconds: float,
    ) -> None:
        self._translate = translate
        self._max_rows, self._max_delay_seconds = max_rows, max_delay_seconds
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(max_workers=num_workers)
        self._free = asyncio.Semaphore(num_workers)

    async def submit(self, source: Source) -> ctranslate2.TranslationResult:
        """The result for one source."""
        future: asyncio.Future[ctranslate2.TranslationResult] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((source, future))
        return await future

    async def run(self) -> None:
        """Translates batch after batch, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._free.acquire()
                group.create_task(self._answer(await self._collect()))

    async def _answer(self, batch: list[_Waiting]) -> None:
        sources = [source for source, _ in batch]
        results = await asyncio.get_running_loop().run_in_executor(self._threads, self._translate, sources)
        self._free.release()
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():  # the caller may have left
                future.set_result(result)

    async def _collect(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        end = asyncio.get_running_loop().time() + self._max_delay_seconds
        while len(batch) < self._max_rows:
            try:
                batch.append(self._queue.get_nowait())
                continue
            except asyncio.QueueEmpty:
                pass
            try:
                async with asyncio.timeout_at(end):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return batch


class Handler:
    """Answers Translate calls of any number of texts."""

    def __init__(self, bundle: Bundle, batcher: Batcher) -> None:
        self._manifest = bundle.manifest
        self._tokenizer = load_tokenizer(bundle.manifest.tokenizer, bundle.folder)
        self._batcher = batcher

    async def translate(self, request: pb.TranslateRequest, _: _Context) -> pb.TranslateResponse:
        """Translates each text as one segment."""
        framing = self._manifest.framing_of((request.source_language_code, request.target_language_code))
        encode = self._tokenizer.encode
        sources = [[*map(str, framing.frame(encode(text.text)))] for text in request.inputs]
        response = pb.TranslateResponse()
        for source, result in zip(sources, await asyncio.gather(*map(self._batcher.submit, sources)), strict=True):
            target = list(map(int, result.hypotheses[0]))
            translation = response.results.add().translation
            translation.text = self._tokenizer.decode(target)
            translation.segments.add(source_tokens=len(source)).hypotheses.add(
                text=translation.text, score=result.scores[0]
            )
            translation.stats.source_tokens = len(source)
            translation.stats.target_tokens = len(target) + 1  # end-of-sentence is decoded and left out of the answer
        return response


async def _serve(
    translator: ctranslate2.Translator, bundle: Bundle, workers: int, max_rows: int, max_delay_ms: float
) -> None:
    most = bundle.manifest.limits.max_target_tokens

    def translate(batch: Sequence[Source]) -> list[ctranslate2.TranslationResult]:
        limit = min(3 * max(map(len, batch)) + 32, most)
        results: list[ctranslate2.TranslationResult] = translator.translate_batch(
            list(batch), max_batch_size=max_rows, beam_size=1, max_decoding_length=limit, return_scores=True
        )
        return results

    batcher = Batcher(translate, workers, max_rows, max_delay_ms / 1000)
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        Handler(bundle, batcher).translate,
        request_deserializer=pb.TranslateRequest.FromString,
        response_serializer=pb.TranslateResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("dragoman.v1.TranslationService", {"Translate": method})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving on 127.0.0.1:{port}", flush=True)
    await batcher.run()


def main(
    model: Annotated[Path, typer.Argument(help="CTranslate2 model, its vocabulary the ids in decimal.")],
    bundle: Annotated[Path, typer.Argument(help="Bundle of the same model, for its tokenizer and special ids.")],
    compute_type: Annotated[str, typer.Option(help="float32 or int8.")] = "float32",
    workers: Annotated[int, typer.Option(min=1, help="Batches translated side by side.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads within an operator of each.")] = 1,
    max_rows: Annotated[int, typer.Option(min=1, help="Texts translated together.")] = 32,
    max_delay_ms: Annotated[float, typer.Option(min=0, help="How long a text may wait for others.")] = 5.0,
) -> None:
    """Serve on a free port of this machine and print its address when ready."""
    translator = ctranslate2.Translator(
        str(model), device="cpu", compute_type=compute_type, inter_threads=workers, intra_threads=threads
    )
    asyncio.run(_serve(translator, Bundle.open(bundle), workers, max_rows, max_delay_ms))


if __name__ == "__main__":
    typer.run(main)
