"""The specials around the token ids of a text, in source and target. No other code knows them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from dragoman_server.bundle.fields import TokenId
from dragoman_server.bundle.languages import LanguageTable, are_apart, are_told_apart
from dragoman_server.bundle.rules import Rule, are_distinct

Part = TokenId | Literal["source", "target"]
_Parts = Annotated[tuple[Part, ...], Meta(max_length=1 << 10)]


@dataclass(frozen=True, slots=True)
class Framing:
    """The specials around the token ids of a text in one direction."""

    source_prefix: tuple[int, ...]  # language tags, or a task in words
    source_suffix: tuple[int, ...]  # end-of-sentence, and language tags
    target_prefix: tuple[int, ...]  # every target is forced to begin with these, after the decoder's start
    target_suffix: tuple[int, ...]  # end-of-sentence

    @property
    def num_specials(self) -> int:
        """Number of specials of a source."""
        return len(self.source_prefix) + len(self.source_suffix)

    def frame(self, text_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of a source text -> the ids that the encoder reads."""
        return (*self.source_prefix, *text_ids, *self.source_suffix)

    def text_range(self, source_ids: Sequence[int]) -> range:
        """The places of the text among the ids that the encoder reads."""
        return range(len(self.source_prefix), len(source_ids) - len(self.source_suffix))

    def frame_target(self, text_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of a whole target text -> the ids that the decoder emits."""
        return (*self.target_prefix, *text_ids, *self.target_suffix)

    def target_text_range(self, target_ids: Sequence[int]) -> range:
        """The places of the text among the ids that the decoder emitted, which may be cut off."""
        end = len(target_ids) - len(self.target_suffix) * self.is_ended(target_ids)
        return range(min(len(self.target_prefix), end), end)

    def num_forced(self, target_ids: Sequence[int]) -> int:
        """How many of the ids that the decoder emits the framing forces: none where they do not begin with its own."""
        length = len(self.target_prefix)
        return length if tuple(target_ids[:length]) == self.target_prefix else 0

    def is_ended(self, target_ids: Sequence[int]) -> bool:
        """Whether the ids that the decoder emitted have an end, and are not cut off."""
        return tuple(target_ids[-len(self.target_suffix) :]) == self.target_suffix

    def frames(self, source_ids: Sequence[int], target_ids: Sequence[int]) -> bool:
        """Whether a source and its target are in this framing."""
        text = self.text_range(source_ids)
        return (
            text.start <= text.stop
            and self.frame(source_ids[text.start : text.stop]) == tuple(source_ids)
            and tuple(target_ids[: len(self.target_prefix)]) == self.target_prefix
        )


def decoder_inputs(start_token_id: int, target_ids: Sequence[int]) -> list[int]:
    """The ids that the decoder reads, step by step, to emit a target."""
    return [start_token_id, *target_ids[:-1]]


@dataclass(frozen=True)
class FramingTemplate:
    """The framings of all directions: token ids, and "source" or "target" in place of the ids of a language.

    | family | source_prefix | source_suffix | target_prefix |
    |---|---|---|---|
    | ours, Marian with several targets | target | end-of-sentence | |
    | M2M-100, NLLB, mBART-50 | source | end-of-sentence | target |
    | NLLB before it was corrected, mBART-25 | | end-of-sentence, source | target, or none |
    | T5: "translate English to German: " | 13959, source, 12, target, 10 | end-of-sentence | |
    | MADLAD-400 | target | end-of-sentence | |
    | OpenNMT-py | | | |
    """

    source_prefix: _Parts
    source_suffix: _Parts
    target_prefix: _Parts

    def of(self, direction: tuple[str, str], token_ids: Mapping[str, Sequence[int]], eos_token_id: int) -> Framing:
        """The framing of one direction; `token_ids` has the ids of languages."""
        ids = {side: token_ids.get(code, ()) for side, code in zip(("source", "target"), direction, strict=True)}
        prefix, suffix, forced = (
            tuple(token_id for part in parts for token_id in (ids[part] if isinstance(part, str) else (part,)))
            for parts in (self.source_prefix, self.source_suffix, self.target_prefix)
        )
        return Framing(prefix, suffix, forced, (eos_token_id,))

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, of both sides."""
        return (*self.source_prefix, *self.source_suffix, *self.target_prefix)

    @property
    def forces_a_language(self) -> bool:
        """Whether targets begin with the ids of a language."""
        return any(isinstance(part, str) for part in self.target_prefix)

    @property
    def reads_a_language(self) -> bool:
        """Whether sources have the ids of a language."""
        return any(isinstance(part, str) for part in (*self.source_prefix, *self.source_suffix))

    def max_specials(self, languages: LanguageTable) -> tuple[int, int]:
        """The largest number of specials around a source text, and before a target text, of any direction."""
        longest = {
            "source": _longest(languages.sources, languages.token_ids),
            "target": _longest(languages.targets, languages.token_ids),
        }
        source, target = (
            sum(longest[part] if isinstance(part, str) else 1 for part in parts)
            for parts in ((*self.source_prefix, *self.source_suffix), self.target_prefix)
        )
        return source, target


def _longest(codes: Collection[str], token_ids: Mapping[str, Sequence[int]]) -> int:
    return max((len(token_ids.get(code, ())) for code in codes), default=0)


class Framed(Protocol):
    """A manifest, or a configuration that becomes one: languages and the framing of their texts."""

    @property
    def languages(self) -> LanguageTable: ...
    @property
    def framing(self) -> FramingTemplate: ...
    @property
    def eos_token_id(self) -> int: ...


def _codes(languages: LanguageTable) -> list[str]:
    return [*sorted(languages.sources | languages.targets), *languages.aliases]


FRAMING_RULES: tuple[Rule[Framed], ...] = (
    Rule("languages.directions[*].sources", are_distinct, "name each language once"),
    Rule("languages.directions[*].targets", are_distinct, "name each language once"),
    Rule("languages.directions", lambda groups, _: are_apart(groups), "name each direction once"),
    Rule(
        "languages.directions[*].sources[*]",
        lambda code, m: "source" not in m.framing.parts or code in m.languages.token_ids,
        "have languages.token_ids, which framing asks for",
    ),
    Rule(
        "languages.directions[*].targets[*]",
        lambda code, m: "target" not in m.framing.parts or code in m.languages.token_ids,
        "have languages.token_ids, which framing asks for",
    ),
    Rule("languages.token_ids", lambda ids, _: are_distinct([*ids.values()], _), "have other ids for every language"),
    Rule(
        "languages.aliases[*]",
        lambda code, m: code in m.languages.sources | m.languages.targets,
        "be a language of languages.directions",
    ),
    Rule(
        "languages",
        lambda languages, _: are_told_apart(_codes(languages)),
        "have codes and aliases that differ in more than the case of letters, and _ for -",
    ),
    Rule(
        "framing.source_suffix",
        lambda parts, m: not parts or m.eos_token_id in parts,
        "have eos_token_id, {0.eos_token_id}, or be empty",
    ),
)
