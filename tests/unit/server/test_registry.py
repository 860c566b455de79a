"""Which model a call is given, and for how long."""

from collections.abc import AsyncIterator

import pytest

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.errors import InferenceError, InvalidInputError, ModelNotFoundError, UnsupportedLanguageError
from dragoman_server.registry.registry import Registry
from dragoman_server.service.calls import ExchangeInput, StreamCall, TextInput, TranslateConfig
from dragoman_server.service.results import ExchangeOutcome
from dragoman_server.service.translate import Translator
from support.calls import NOW, call, config
from support.server_parts import FakeEngine


@pytest.mark.parametrize("name", ["", "tiny", "tiny@0123456789ab"])
async def test_a_lease_has_the_model_and_its_direction(registry: Registry, bundle: Bundle, name: str) -> None:
    async with registry.lease(name, "en-US", "fr") as lease:
        assert (lease.model.name, lease.direction) == (bundle.resource_name, ("en", "fr"))
        assert registry.num_leases == 1
    assert registry.num_leases == 0


async def test_there_is_no_other_model(registry: Registry) -> None:
    async with registry.lease("other", "en", "fr") as lease:
        assert isinstance(lease.direction, ModelNotFoundError)
        assert str(lease.direction) == "there is no such model; this server has 'tiny'"


@pytest.mark.parametrize(("source", "target"), [("fr", "de"), ("", "fr"), ("en", "x" * 100_000), ("a-" * 50_000, "fr")])
async def test_a_pair_that_the_model_does_not_translate_has_no_direction(
    registry: Registry, source: str, target: str
) -> None:
    async with registry.lease("", source, target) as lease:
        assert isinstance(lease.direction, UnsupportedLanguageError)


async def test_a_call_that_fails_gives_its_model_back(
    translator: Translator, registry: Registry, engine: FakeEngine
) -> None:
    with pytest.raises(InvalidInputError):
        await translator.translate(call("a", max_target_tokens=0), NOW)
    engine.refusal = InferenceError("no memory")
    with pytest.raises(InferenceError):
        await translator.translate(call("a"), NOW)
    assert registry.num_leases == 0


async def test_a_stream_has_its_model_until_it_is_closed(translator: Translator, registry: Registry) -> None:
    parts = translator.stream(StreamCall(TextInput("One.\nTwo."), config()), NOW)
    await anext(parts)
    assert registry.num_leases == 1
    await parts.aclose()
    assert registry.num_leases == 0


async def test_an_exchange_has_each_of_its_models_once_until_it_is_closed(
    translator: Translator, registry: Registry
) -> None:
    async def messages() -> AsyncIterator[TranslateConfig | ExchangeInput]:
        for index in range(3):
            yield config()
            yield ExchangeInput(str(index), TextInput("One."))

    outcomes = translator.exchange(messages(), NOW)
    assert isinstance(await anext(outcomes), ExchangeOutcome)
    assert len([outcome async for outcome in outcomes]) == 2
    assert registry.num_leases == 0
    outcomes = translator.exchange(messages(), NOW)
    await anext(outcomes)
    await anext(outcomes)
    assert registry.num_leases == 1
    await outcomes.aclose()
    assert registry.num_leases == 0
