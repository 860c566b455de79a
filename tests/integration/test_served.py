"""The whole way, from the SDK through a real server process and ONNX Runtime and back."""

import asyncio
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece as spm

from dragoman import AsyncClient, Client, FinishReason, Translation
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.manifest import Precision
from support.process import ServerProcess, server_process

NUM_CALLERS = 64

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")


@pytest.fixture(scope="module", params=PRECISIONS)
def bundle(request: pytest.FixtureRequest, tiny_bundles: dict[Precision, Bundle]) -> Bundle:
    precision: Precision = request.param
    return tiny_bundles[precision]


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[ServerProcess]:
    with server_process(bundle.folder) as process:
        yield process


@pytest.fixture(scope="module")
def default_client() -> Iterator[Client]:
    """To a server of the embedded model."""
    with server_process(embedded_bundle()) as process, Client(process.address) as client:
        yield client


def sentences_of(bundle: Bundle, lengths: list[int]) -> list[str]:
    """Texts that become sources of exactly these lengths in tokens, tag and end-of-sentence included."""
    tokenizer = spm.SentencePieceProcessor(model_file=str(bundle.folder / "tokenizer.model"))
    words = [
        piece.removeprefix("\u2581")
        for piece in map(tokenizer.id_to_piece, range(tokenizer.get_piece_size()))
        if piece.startswith("\u2581") and len(tokenizer.encode(piece.removeprefix("\u2581"))) == 1
    ]
    assert len(words) > 1
    rng = random.Random(1)
    texts = []
    for length in lengths:
        num_words = length - 2
        text = " ".join(rng.choices(words, k=num_words))
        assert len(tokenizer.encode(text)) == num_words
        texts.append(text)
    return texts


def outcome(translation: Translation) -> tuple[object, ...]:
    """Everything that may not depend on the neighbours, to the last bit."""
    return (
        translation.text,
        tuple(translation.token_ids),
        tuple(token.logprob for token in translation.tokens),
        translation.sum_logprob,
        translation.score,
        translation.finish_reason,
    )


async def translate_together(address: str, texts: list[str], source: str, target: str) -> list[Translation]:
    """Every text in a call of its own, 64 calls at a time."""
    permits = asyncio.Semaphore(NUM_CALLERS)
    async with AsyncClient(address, timeout=120) as client:

        async def one(text: str) -> Translation:
            async with permits:
                return await client.translate(text, source=source, target=target)

        return await asyncio.gather(*map(one, texts))


def assert_same_alone_and_together(address: str, texts: list[str], source: str, target: str) -> None:
    with Client(address, timeout=120) as client:
        alone = [client.translate(text, source=source, target=target) for text in texts]
        in_one_call = client.translate(texts, source=source, target=target)
    together = asyncio.run(translate_together(address, texts, source, target))
    assert len({outcome(t) for t in alone}) > len(texts) / 2, "a model that says the same to everything proves nothing"
    for one, other, third in zip(alone, together, in_one_call, strict=True):
        assert outcome(one) == outcome(other) == outcome(third)


def test_a_translation_is_the_same_alone_and_among_64_callers(server: ServerProcess, bundle: Bundle) -> None:
    lengths = [7, 11, 15, 63, *(random.Random(2).randint(3, 60) for _ in range(96))]
    source, target = next(iter(bundle.manifest.languages))
    assert_same_alone_and_together(server.address, sentences_of(bundle, lengths), source, target)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_default_model_gives_500_sentences_the_same_alone_and_among_64_callers(
    precision: Precision, default_bundles: dict[Precision, Path]
) -> None:
    bundle = Bundle.open(default_bundles[precision])
    lengths = [7, 11, 15, 63] * 5 + [random.Random(3).randint(3, 80) for _ in range(480)]
    with server_process(bundle.folder) as server:
        assert_same_alone_and_together(server.address, sentences_of(bundle, lengths), "en", "fr")


def test_100_calls_in_flight_are_answered_after_sigterm(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["int8"]
    source, target = next(iter(bundle.manifest.languages))
    texts = sentences_of(bundle, [40] * 100)

    async def call_and_terminate(server: ServerProcess) -> list[Translation]:
        async with AsyncClient(server.address, timeout=60) as client:
            assert await client.health()
            # Two rows at a time: when the first is answered, nearly all of the others are still in the server.
            calls = [asyncio.create_task(client.translate(t, source=source, target=target)) for t in texts]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert sum(call.done() for call in calls) < len(calls)
            server.process.terminate()
            return await asyncio.gather(*calls)

    with server_process(bundle.folder, "--max-running", "2") as server:
        translations = asyncio.run(call_and_terminate(server))
        assert server.process.wait(timeout=30) == 0
    assert all(translation.token_ids for translation in translations)


def metrics_when(server: ServerProcess, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The metrics by name and labels, once they fulfil the condition."""
    for _ in range(100):
        with urllib.request.urlopen(server.metrics_url) as page:
            lines = page.read().decode().splitlines()
        values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}
        if condition(values):
            return values
        time.sleep(0.05)
    pytest.fail(f"the metrics stay at {values}")


def test_the_metrics_count_what_was_translated(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["int8"]
    source, target = next(iter(bundle.manifest.languages))
    with server_process(bundle.folder) as server:
        with Client(server.address) as client:
            translations = client.translate(sentences_of(bundle, [5, 9, 12]), source=source, target=target)
        num_tokens = sum(len(t.token_ids) for t in translations)
        # A step is counted after its answers have left.
        model = f'{{model="{bundle.manifest.name}"}}'
        values = metrics_when(server, lambda values: values[f"dragoman_generated_tokens_total{model}"] == num_tokens)
    assert values['dragoman_requests_total{code="OK",method="dragoman.v1.TranslationService/Translate"}'] == 1
    assert values[f"dragoman_source_tokens_total{model}"] == 5 + 9 + 12
    assert values[f"dragoman_num_requests_waiting{model}"] == values[f"dragoman_num_requests_running{model}"] == 0
    assert values[f"dragoman_batch_size_count{model}"] == values[f"dragoman_decode_step_seconds_count{model}"] > 0


def test_a_length_limit_is_kept_and_reported(server: ServerProcess, bundle: Bundle) -> None:
    source, target = next(iter(bundle.manifest.languages))
    with Client(server.address) as client:
        texts = sentences_of(bundle, list(range(20, 40)))
        whole = client.translate(texts, source=source, target=target)
        cut = client.translate(texts, source=source, target=target, max_target_tokens=2)
    assert any(translation.finish_reason is FinishReason.STOP for translation in whole)
    for long, short in zip(whole, cut, strict=True):
        assert short.token_ids == long.token_ids[:2]
        assert (short.finish_reason is FinishReason.LENGTH) == (len(long.token_ids) > 2)


def test_lines_and_white_space_come_back(server: ServerProcess, bundle: Bundle) -> None:
    source, target = next(iter(bundle.manifest.languages))
    first, second = sentences_of(bundle, [6, 8])
    with Client(server.address) as client:
        texts = client.translate(
            [first, second, f"  {first}\n\n\t{second} \n", "", " \n "], source=source, target=target
        )
    assert texts[2].text == f"  {texts[0].text}\n\n\t{texts[1].text} \n"
    assert (texts[3].text, texts[4].text) == ("", " \n ")


EASY = {
    ("en", "fr"): ("I don't know where he lives.", {"Je ne sais pas où il vit.", "Je ne sais pas où il habite."}),
    ("en", "de"): ("I don't know where he lives.", {"Ich weiß nicht, wo er wohnt.", "Ich weiß nicht, wo er lebt."}),
    ("en", "es"): ("I don't know where he lives.", {"No sé dónde vive.", "No sé dónde vive él."}),
    ("fr", "en"): ("Je ne sais pas où il habite.", {"I don't know where he lives."}),
    ("de", "en"): ("Ich weiß nicht, wo er wohnt.", {"I don't know where he lives."}),
    ("es", "en"): ("No tengo dinero.", {"I don't have money.", "I don't have any money.", "I have no money."}),
}


def test_the_default_model_translates_in_every_direction(default_client: Client) -> None:
    assert set(Bundle.open(embedded_bundle()).manifest.languages) == EASY.keys()
    for (source, target), (sentence, right) in EASY.items():
        assert default_client.translate(sentence, source=source, target=target).text in right


LONG = ("Tom went to the market yesterday because he wanted to buy some bread and some cheese for us. " * 6).split()


@pytest.mark.parametrize("text", ["Hello!", " ".join(LONG[:20]), " ".join(LONG[:100])], ids=len)
def test_the_default_model_copes_with_short_and_long_inputs(default_client: Client, text: str) -> None:
    num_words = len(text.split())
    for target in ("fr", "de", "es"):
        translation = default_client.translate(text, source="en", target=target)
        assert translation.finish_reason is FinishReason.STOP
        assert num_words / 3 <= len(translation.text.split()) <= 2 * num_words


def test_the_default_models_weights_align_as_the_server_does(default_client: Client) -> None:
    text, translation = "The old cat is sleeping on my chair.", "Le vieux chat dort sur ma chaise."
    aligned = default_client.align(text, translation, source="en", target="fr")
    attention = default_client.attention(text, target_text=translation, source="en", target="fr", dtype="f32")
    assert attention.alignment() == aligned
