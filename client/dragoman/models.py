"""The models of a server, as the SDK returns them: immutable values, free of protobuf.

Definitions are those of models.proto and, for `Pivot` and `Vocabulary`, of translation.proto.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, TypeAlias

from dragoman._repr import short_repr

_MAX_SHOWN_PAIRS = 100

Vocabulary: TypeAlias = Literal["full", "language", "shortlist"]
"""What the tokens of a translation are chosen from: all tokens of the model; those that the target language is written
with; or, for each segment, the likely translations of its own tokens and the most frequent tokens of all. Lists are
faster, and a token that is not in the list never comes."""


class ModelState(StrEnum):
    """Whether a model takes calls."""

    READY = "ready"
    """It is in memory and takes calls."""

    LISTED = "listed"
    """It takes calls, and the first of them has it loaded."""

    LOADING = "loading"
    """It is being loaded."""

    DRAINING = "draining"
    """It takes no new calls, and is freed when those that use it have ended."""

    FAILED = "failed"
    """It could not be loaded, and takes no calls."""

    UNSPECIFIED = "unspecified"
    """A state that this version of the SDK does not know."""


class Determinism(StrEnum):
    """What the answers of a model depend on."""

    BITWISE = "bitwise"
    """The same text and options have the same answer, bit for bit, whatever else the server does meanwhile."""

    LAST_BITS = "last_bits"
    """The same but for the last bits of log-probabilities, as models of fp16 and bf16 add in an order that depends on
    the batch. Where two tokens are as probable as each other to these bits, either may be chosen."""

    UNSPECIFIED = "unspecified"
    """Not known, or a value that this version of the SDK does not know."""


@dataclass(frozen=True, slots=True)
class LanguageGroup:
    """Pairs of languages: each source with each target but itself.

    A group of one source and one target may have the same language twice.
    """

    sources: tuple[str, ...]
    """Language codes of the sources."""

    targets: tuple[str, ...]
    """Language codes of the targets."""

    @property
    def num_pairs(self) -> int:
        """How many pairs there are."""
        num_all = len(self.sources) * len(self.targets)
        return num_all if num_all == 1 else num_all - len({*self.sources} & {*self.targets})

    def has_target(self, source: str) -> bool:
        """Whether one of the sources has a target, which may be the only language that there is."""
        return len(self.sources) == len(self.targets) == 1 or any(target != source for target in self.targets)

    def of(self, source: str) -> tuple[str, ...]:
        """The targets of one source; none where it is not among the sources."""
        if source not in self.sources:
            return ()
        if len(self.sources) == len(self.targets) == 1:
            return self.targets
        return tuple(target for target in self.targets if target != source)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The source and the target of each pair."""
        for source in self.sources:
            for target in self.of(source):
                yield source, target


class LanguagePairs(Mapping[str, tuple[str, ...]]):
    """The targets of each source, both sorted; read only.

    The targets of a source are made when they are asked for: models of 200 languages have 40,000 pairs.
    """

    __slots__ = ("_groups", "_sources")

    def __init__(self, groups: Iterable[LanguageGroup]) -> None:
        """Takes the pairs of all groups."""
        self._groups = tuple(groups)
        sources = {source for group in self._groups for source in group.sources if group.has_target(source)}
        self._sources = dict.fromkeys(sorted(sources))

    def __getitem__(self, source: str) -> tuple[str, ...]:
        """The targets of a source; raises KeyError where it has none."""
        if source not in self._sources:
            raise KeyError(source)
        return tuple(sorted({target for group in self._groups for target in group.of(source)}))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        """The number of sources."""
        return len(self._sources)

    def __contains__(self, source: object) -> bool:
        return source in self._sources

    def __repr__(self) -> str:
        if sum(group.num_pairs for group in self._groups) > _MAX_SHOWN_PAIRS:
            return f"<LanguagePairs: {len(self)} sources>"
        return repr(dict(self))


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of a model, in tokens, specials included."""

    max_source_tokens: int
    """Most tokens of a segment's source."""

    max_target_tokens: int
    """Most tokens of a segment's target."""

    segment_tokens: int
    """Most tokens of sentences that stay together with `segmentation="packed"`."""

    max_beam_size: int
    """The largest beam size, and the most hypotheses."""


@dataclass(frozen=True, slots=True)
class ParityCertificate:
    """How far a bundle is from the model that it was made from, in log-probabilities of tokens."""

    max_logprob_difference: float
    """Largest difference over all sentences, when the bundle was made."""

    logprob_tolerance: float
    """Largest difference with which the server serves the bundle."""

    token_agreement: float
    """Share of sentences with the same greedy tokens, when the bundle was made. 0 to 1."""

    num_sentences: int
    """Sentences that were compared when the bundle was made."""

    replayed_logprob_difference: float | None
    """Largest difference of the sample that was compared when it was loaded; None unless it is in memory."""


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """Decoding options of calls that have none."""

    beam_size: int
    """Live hypotheses of a beam search; 1 is greedy decoding."""

    length_penalty: float
    """The p in `score = sum_logprob / length ** p`."""

    min_target_tokens: int
    """End-of-sentence cannot come before this many tokens."""

    repetition_penalty: float
    """What the logits of tokens that the target has already are divided by; 1 is off."""

    no_repeat_ngram_size: int
    """No sequence of this many tokens comes twice; 0 is off."""

    vocabulary: Vocabulary | None
    """What tokens are chosen from; "full" for pairs of languages that have no such list. None from older servers."""


@dataclass(frozen=True, slots=True)
class ShortlistFacts:
    """How translations over the shortlists of a pair of languages compare with those over the full vocabulary.

    It was measured when the shortlists were made, on sentences that they were not made from.
    """

    source: str
    """Language code of the source."""

    target: str
    """Language code of the target."""

    share_identical: float
    """Share of sentences whose translation is the same. 0 to 1."""

    bleu_difference: float | None
    """BLEU of the translations, less that of those over the full vocabulary; None where there were no references."""

    mean_length: float
    """Mean number of tokens in the list of a sentence."""

    p95_length: float
    """Of 95 in 100 sentences, the list has at most this number of tokens."""

    num_sentences: int
    """Sentences that were compared."""

    per_token: int
    """The most tokens that a token of the source brings into a list."""


@dataclass(frozen=True, slots=True)
class VocabularyLists:
    """The lists of tokens that a model has, for calls that do not take the full vocabulary."""

    languages: tuple[str, ...]
    """Codes of the target languages that have a list, for `vocabulary="language"`."""

    shortlists: tuple[ShortlistFacts, ...]
    """The pairs of languages that have shortlists, for `vocabulary="shortlist"`."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Memory that a model takes up, in bytes."""

    weights_bytes: int
    """All copies of its weights; an estimate from the sizes of its files."""

    kv_cache_bytes: int
    """Keys and values: memory that is set aside now."""

    max_kv_cache_bytes: int
    """The most that keys and values may come to take up."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One version of a model that a server has.

    What only the bundle can tell is empty or None where the bundle cannot be read.
    """

    name: str
    """Its name, such as "opus-mt-en-fr"."""

    version: str
    """Its version, such as "2" or "0123456789ab"."""

    state: ModelState
    """Whether it takes calls."""

    error: str
    """Why it could not be loaded, or, if it takes calls, why the present contents of its folder could not replace it;
    else empty."""

    is_default_version: bool
    """Whether calls that give its name without a version get this one."""

    languages: tuple[LanguageGroup, ...]
    """The pairs of languages that it translates."""

    default_for: tuple[LanguageGroup, ...]
    """Pairs of languages for which calls that name no model get this one."""

    precision: str
    """Precision of its weights: "fp32", "int8", "fp16" or "bf16"."""

    device: str
    """Where it is decoded: "cpu", "cuda:0", or with several GPUs "cuda:0,1", by their numbers."""

    execution_provider: str
    """What of ONNX Runtime decodes it: "CPUExecutionProvider" or "CUDAExecutionProvider"; empty from older servers."""

    limits: ModelLimits | None
    """Limits of its segments."""

    parity: ParityCertificate | None
    """How its bundle compares with the model that it was made from."""

    determinism: Determinism
    """What its answers depend on."""

    has_attention: bool
    """Whether there are attention weights, alignments and signals."""

    defaults: ModelDefaults | None
    """Its decoding options where a call has none."""

    memory: ModelMemory | None
    """Memory that it takes up; None unless it is in memory."""

    load_time: datetime | None
    """When it was loaded, in UTC; None unless it is in memory."""

    active_calls: int
    """Calls that use it now."""

    vocabulary_lists: VocabularyLists | None
    """Its lists of tokens; None where its bundle has none."""

    @property
    def full_name(self) -> str:
        """The name with the version, "name@version": what calls take as their `model` for this version and no other."""
        return f"{self.name}@{self.version}" if self.version else self.name

    def __str__(self) -> str:
        return self.full_name

    def __repr__(self) -> str:
        num_pairs = sum(group.num_pairs for group in self.languages)
        return short_repr(self, name=self.name, version=self.version, state=str(self.state), num_pairs=num_pairs)


@dataclass(frozen=True, slots=True)
class Pivot:
    """The first of two translations, where a text went through a third language.

    No model translates the pair by itself: the text was translated into the language of the pivot,
    and that into the target. Spans are those of the source text; tokens, log-probabilities and
    scores are those of the second translation.
    """

    language: str
    """Language code of the language in between, as the model has it."""

    model: str
    """The model of the first translation, as "name@version"."""

    vocabulary: Vocabulary | None = None
    """What the tokens of the first translation were chosen from: see `Translation.vocabulary`."""
