"""Two models in a row: from German into a pivot, and from that into a target, with engines that translate texts."""

import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.engine.sequence import Completion, FinishReason, Hypothesis, Request
from dragoman_server.registry.model import Model
from dragoman_server.registry.registry import Registry
from dragoman_server.service.calls import (
    CallContext,
    ExchangeInput,
    StreamCall,
    TextInput,
    TranslateCall,
    TranslateConfig,
)
from dragoman_server.service.results import ExchangeOutcome, StreamOutcome, TranslatedText
from dragoman_server.service.translate import Translator
from support.calls import INPUT_LIMITS, MAX_ROWS, MAX_SEGMENTS, NOW, call, config
from support.server_parts import VERSION, FakeEngine

Translation = Callable[[str], str]  # of one segment


@dataclass
class Leg:
    """A model of one direction, and its engine."""

    model: Model
    engine: FakeEngine

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        source: str,
        target: str,
        translation: Translation,
        aliases: Mapping[str, str] | None = None,
        **manifest: object,
    ) -> "Leg":
        """A model named after its direction; `manifest` replaces fields."""
        languages = replace(LanguageTable.of([(source, target)], {target: (4,)}), aliases={**(aliases or {})})
        changes = {"name": f"{source}-{target}", "languages": languages} | manifest
        own = Bundle(bundle.folder, replace(bundle.manifest, **changes), VERSION)  # type: ignore[arg-type]
        engine = FakeEngine(lambda request: answer(own, translation, request))
        return cls(Model(own, engine), engine)


def renamed(model: Model, source: str, target: str) -> Model:
    """A model as one of this direction, which has it write the first of its own languages."""
    languages = model.manifest.languages
    tag = languages.token_ids[next(iter(languages)).target]
    table = LanguageTable.of([(source, target)], {target: tag})
    manifest = replace(model.manifest, name=f"{source}-{target}", languages=table)
    return Model(replace(model.bundle, manifest=manifest), model.engine)


def answer(bundle: Bundle, translation: Translation, request: Request) -> Completion:
    """The translation of the text that the ids stand for, its tokens less and less probable, cut off at the limit."""
    text = translation(bundle.tokenizer.decode(request.source_ids))
    whole = (*bundle.tokenizer.encode_target(text), bundle.manifest.eos_token_id)
    token_ids = whole[: request.max_target_tokens]
    logprobs = tuple(-0.25 * (1 + place) for place in range(len(token_ids)))
    reason = FinishReason.STOP if token_ids == whole else FinishReason.LENGTH
    hypothesis = Hypothesis(token_ids, logprobs, reason, request.options.length_penalty)
    return Completion((hypothesis,), 0.25, 0.125, 0.5)


def reworded(text: str, seed: int = 0) -> str:
    """One of many forms that translations have, by the text: other sentences, other words, none, in another script."""
    form = zlib.crc32(text.encode(), seed) % 12
    match form:
        case 0:
            return "12"
        case 1:
            return ""
        case 2:
            return text.strip(".!?。")
        case 3:
            return f"{text.strip('.')}. And more."
        case 4:
            return "First. Then `code. More code` and 12:30. {name}."
        case 5:
            return f"这是一个句子。{text}"
        case 6:
            return "这是一个句子。还有一个。"
        case _:
            return text.swapcase()


# -- calls


DE_ES = {"source_language_code": "de", "target_language_code": "es"}


def translator_of(first: Model, second: Model) -> closing[Translator]:
    """A translator of two other models, to be used as a context."""
    return closing(Translator(Registry.of(first, second), INPUT_LIMITS, MAX_SEGMENTS, MAX_ROWS))


def across(*texts: str | TextInput, **values: object) -> TranslateCall:
    return call(*texts, **DE_ES | values)


def stream_call(text: str, **values: object) -> StreamCall:
    return StreamCall(TextInput(text), config(**DE_ES | values))


async def streamed(translator: Translator, asked: StreamCall, context: CallContext = NOW) -> tuple[str, TranslatedText]:
    """All deltas together, and the whole."""
    *deltas, outcome = [part async for part in translator.stream(asked, context)]
    assert isinstance(outcome, StreamOutcome)
    return "".join(map(str, deltas)), outcome.result


async def exchanged(
    translator: Translator, *texts: str | TextInput, context: CallContext = NOW, **values: object
) -> dict[str, ExchangeOutcome]:
    """The outcome of every text, by its number."""

    async def messages() -> AsyncIterator[TranslateConfig | ExchangeInput]:
        yield config(**DE_ES | values)
        for number, text in enumerate(texts):
            yield ExchangeInput(str(number), text if isinstance(text, TextInput) else TextInput(text))

    return {outcome.id: outcome async for outcome in translator.exchange(messages(), context)}
