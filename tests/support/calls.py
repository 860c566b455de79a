"""Calls of the translator, as tests make them."""

from collections.abc import Sequence
from dataclasses import fields, replace

from dragoman_server.config import InputLimits
from dragoman_server.errors import InvalidInputError
from dragoman_server.service.calls import (
    CallContext,
    DecodingFields,
    Pair,
    ScoreCall,
    TextInput,
    TranslateCall,
    TranslateConfig,
)
from dragoman_server.service.results import TranslatedText, TranslateOutcome
from dragoman_server.text.segmentation import Segmentation

NOW = CallContext()
INPUT_LIMITS = InputLimits(max_inputs=4, max_text_characters=3_000)
MAX_SEGMENTS = 500
MAX_ROWS = 8
LONG_LINE = " ".join(f"The cat number {number} sleeps." for number in range(1000, 1008))


def config(**values: object) -> TranslateConfig:
    """From English to French; decoding options and the fields of a config by their names."""
    options = {name: values.pop(name) for name in [f.name for f in fields(DecodingFields)] if name in values}
    decoding = DecodingFields(**options)  # type: ignore[arg-type]
    return replace(TranslateConfig("en", "fr", options=decoding), **values)  # type: ignore[arg-type]


def call(*texts: str | TextInput, **values: object) -> TranslateCall:
    return TranslateCall([TextInput(text) if isinstance(text, str) else text for text in texts], config(**values))


def score_call(*pairs: tuple[str, str | Sequence[int] | None], **values: object) -> ScoreCall:
    inputs = [Pair(text, target) for text, target in pairs]
    return ScoreCall(inputs, config(segmentation=Segmentation.LINE, **values))


def translated(outcome: TranslateOutcome, index: int = 0) -> TranslatedText:
    result = outcome.results[index]
    assert isinstance(result, TranslatedText)
    return result


def refused(outcome: TranslateOutcome, index: int = 0) -> tuple[str, str]:
    """Field and reason of an input's only violation."""
    result = outcome.results[index]
    assert isinstance(result, InvalidInputError)
    (violation,) = result.violations
    return violation.field, violation.reason


def violations(outcome: TranslateOutcome, index: int = 0) -> list[tuple[str, str]]:
    """Field and description of every violation of an input."""
    result = outcome.results[index]
    assert isinstance(result, InvalidInputError)
    return [(violation.field, violation.description) for violation in result.violations]
