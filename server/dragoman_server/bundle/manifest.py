"""The bundle format: the names of its files, and the fields of `manifest.json`; written by the exporter, read here.

Types and ranges are declared with the fields, rules between fields in `_RULES`.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypedDict, TypeVar, get_args

import msgspec
from msgspec import Meta

from dragoman.types import AttentionKind
from dragoman_server.bundle.fields import Count, LanguageCode, LogProb, Name, Sha256, TokenId, TokenIds
from dragoman_server.bundle.framing import FRAMING_RULES, Framing, FramingTemplate
from dragoman_server.bundle.languages import Direction, LanguageTable
from dragoman_server.bundle.rules import Rule, are_distinct, check
from dragoman_server.text import strict_json
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerFile, TokenizerKind

_T = TypeVar("_T")

FORMAT_VERSION = 5
MANIFEST_FILE = "manifest.json"
# Nothing else is ever opened.
FileName = Literal[
    "encoder.onnx",
    "decoder_step.onnx",
    "attention.onnx",
    "weights.bin",
    "vocabulary.bin",
    TokenizerFile,
]
ENCODER_FILE: Final = "encoder.onnx"
DECODER_STEP_FILE: Final = "decoder_step.onnx"
ATTENTION_FILE: Final = "attention.onnx"
WEIGHTS_FILE: Final = "weights.bin"
VOCABULARY_FILE: Final = "vocabulary.bin"

# fp32 and int8 are for CPUs, fp16 and bf16 for CUDA, with other graphs; fp16 also runs, slowly, on a CPU.
Precision = Literal["fp32", "int8", "fp16", "bf16"]
CUDA_PRECISIONS: Final = frozenset[Precision](("fp16", "bf16"))
# The row of cross-attention by which a target token is aligned: that of the step which emits it, or of the step which
# reads it, one later (Shift-Att, Chen et al. 2020).
AlignmentMethod = Literal["output_row", "shifted"]
# The segmentation of calls that do not choose one. Most models were trained on single sentences.
DefaultSegmentation = Literal["sentence", "line", "packed"]

# A replay with a larger tolerance would show nothing. fp32 differs by rounding alone.
MAX_TOLERANCE: Final[dict[Precision, float]] = {"fp32": 0.01, "int8": 5.0, "fp16": 0.5, "bf16": 5.0}


@dataclass(frozen=True)
class Architecture:
    """The shapes the engine needs to know; the graphs know the rest."""

    num_encoder_layers: Annotated[int, Meta(ge=1, le=256)]
    num_decoder_layers: Annotated[int, Meta(ge=1, le=256)]
    num_heads: Annotated[int, Meta(ge=1, le=1024)]
    d_head: Annotated[int, Meta(ge=1, le=1024)]
    vocabulary_size: Count  # of the target
    state_size: Annotated[int, Meta(ge=1, le=65536)] | None = None  # of hidden states; None: that of all heads

    @property
    def d_model(self) -> int:
        """The width of hidden states."""
        return self.state_size or self.num_heads * self.d_head

    @property
    def num_layers(self) -> dict[AttentionKind, int]:
        """Number of layers with attention of a kind."""
        return {
            "encoder": self.num_encoder_layers,
            "decoder": self.num_decoder_layers,
            "cross": self.num_decoder_layers,
        }


@dataclass(frozen=True)
class Limits:
    """All in tokens."""

    max_source_tokens: Count  # specials included
    max_target_tokens: Count  # specials included
    segment_tokens: Count  # up to which sentences stay together where lines are "packed"


@dataclass(frozen=True)
class Generation:
    """The bundle's defaults of decoding options. Definitions are Hugging Face's."""

    beam_size: Annotated[int, Meta(ge=1, le=4096)] = 1  # 1 is greedy
    # The score is sum_logprob / num_tokens ** length_penalty. The range is that of calls.
    length_penalty: Annotated[float, Meta(ge=-10.0, le=10.0)] = 1.0
    # Whether to stop as soon as there are beam_size hypotheses; "narrowing": the beam is Marian's.
    early_stopping: bool | Literal["never", "narrowing"] = False
    suppressed_token_ids: tuple[TokenId, ...] = ()  # never generated, whatever the options of a call
    # Ranges are those of calls.
    min_target_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] = 1.0
    no_repeat_ngram_size: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0


@dataclass(frozen=True)
class Alignment:
    """The default cross-attention weights for word alignment."""

    method: AlignmentMethod
    layer: Annotated[int, Meta(ge=0)]  # of the decoder, from 0
    # From 0; the mean of their weights is taken.
    heads: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]


@dataclass(frozen=True)
class StateTensors:
    """Names of the step graph's inputs that live in the KV pool, by kind; a value's name follows its key's."""

    self_kv: tuple[str, ...]  # grows by one position a step, written in place
    cross_kv: tuple[str, ...]  # fixed once the source is encoded


@dataclass(frozen=True)
class Golden:
    """One sentence of the parity certificate with PyTorch's translation."""

    direction: Direction
    source_ids: TokenIds
    source_pieces: tuple[str, ...]  # the tokenizer's vocabulary entries of source_ids
    token_ids: TokenIds  # forced ones, then greedy ones, end-of-sentence included
    token_logprobs: tuple[LogProb, ...]


@dataclass(frozen=True)
class Parity:
    """The parity certificate: how far the bundle was from PyTorch's float32 at export, and samples to replay."""

    max_logprob_difference: Annotated[float, Meta(ge=0.0, le=1e4)]  # largest seen, teacher-forced, natural log
    logprob_tolerance: Annotated[float, Meta(ge=0.0)]  # a replay beyond this is refused
    max_attention_difference: Annotated[float, Meta(ge=0.0, le=1e4)]
    token_agreement: Annotated[float, Meta(ge=0.0, le=1.0)]  # share of sentences with identical greedy ids
    num_sentences: Count
    golden: Annotated[tuple[Golden, ...], Meta(min_length=1, max_length=64)]


@dataclass(frozen=True)
class ShortlistFacts:
    """What the shortlists of one direction change, measured on sentences that they were not made of."""

    direction: Direction
    per_token: Count  # the most tokens that a source token brings into a list
    num_sentences: Count
    share_identical: Annotated[float, Meta(ge=0.0, le=1.0)]  # greedy translations with the ids of the full vocabulary
    bleu_difference: Annotated[float, Meta(ge=-100.0, le=100.0)] | None  # to the full vocabulary; None: no references
    mean_length: Annotated[float, Meta(ge=1.0, le=1 << 24)]  # of the lists, in tokens
    p95_length: Annotated[float, Meta(ge=1.0, le=1 << 24)]  # 95th percentile
    speed_ratio: Annotated[float, Meta(ge=0.0, le=1e6)]  # of the sentences, all at once, where the lists were made


@dataclass(frozen=True)
class VocabularyFacts:
    """What VOCABULARY_FILE has."""

    shortlists: tuple[ShortlistFacts, ...]  # one for each direction that has them
    languages: tuple[LanguageCode, ...]  # target languages that have a list


@dataclass(frozen=True)
class Manifest:
    """Everything the server knows about a model apart from its weights."""

    name: Name
    architecture: Architecture
    precision: Precision
    languages: LanguageTable
    framing: FramingTemplate
    decoder_start_token_id: TokenId
    eos_token_id: TokenId
    pad_token_id: TokenId
    limits: Limits
    state: StateTensors
    parity: Parity
    files: dict[FileName, Sha256]
    tokenizer: TokenizerKind = "sentencepiece"
    generation: Generation = field(default_factory=Generation)
    alignment: Alignment | None = None  # None where it was never tuned
    segmentation: DefaultSegmentation = "sentence"
    vocabulary: VocabularyFacts | None = None  # None where there is no VOCABULARY_FILE
    format_version: int = FORMAT_VERSION

    @property
    def best_alignment(self) -> Alignment:
        """The tuned choice, else one that is good for most models."""
        return self.alignment or default_alignment(self.architecture)

    @property
    def required_files(self) -> tuple[FileName, ...]:
        """The files that the bundle has beside its manifest; it may have ATTENTION_FILE."""
        return required_files(self.tokenizer)

    def framing_of(self, direction: tuple[str, str]) -> Framing:
        """The specials around texts in one direction."""
        return self.framing.of(direction, self.languages.token_ids, self.eos_token_id)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises ValueError naming the first field that is missing, unknown, or at fault."""
        values = strict_json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("the manifest is not a JSON object")
        # Before anything else: another format may have other fields.
        if (version := values.get("format_version")) != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {version!r:.80}; this server reads version {FORMAT_VERSION}{_remedy(values)}"
            )
        manifest = _convert(values, cls)
        for fault in _other_fields(values, dataclasses.asdict(manifest), ""):
            raise ValueError(fault)
        check(FRAMING_RULES, manifest, manifest)
        check(_RULES, manifest, manifest)
        return manifest


def required_files(tokenizer: TokenizerKind) -> tuple[FileName, ...]:
    """The files that every bundle with this kind of tokenizer has beside its manifest; it may have ATTENTION_FILE."""
    return (ENCODER_FILE, DECODER_STEP_FILE, WEIGHTS_FILE, *TOKENIZER_FILES[tokenizer])


class _Names(TypedDict):
    name: Name
    languages: LanguageTable


def check_names(name: str, languages: LanguageTable) -> None:
    """Raises ValueError where no bundle may have this name or these languages; to be called before one is made."""
    _convert({"name": name, "languages": dataclasses.asdict(languages)}, _Names)


def default_alignment(architecture: Architecture) -> Alignment:
    """For untuned models: shifted rows of all heads of the middle layer, the third of six.

    This is the choice of Chen et al. 2020, "Accurate Word Alignment Induction from Neural Machine Translation". Of an
    even number of layers it is the earlier of the two in the middle.
    """
    layer = (architecture.num_decoder_layers - 1) // 2
    return Alignment("shifted", layer, tuple(range(architecture.num_heads)))


def state_tensors(num_decoder_layers: int) -> StateTensors:
    """The names in Hugging Face optimum's manner."""
    self_kv, cross_kv = (
        tuple(f"past_key_values.{layer}.{side}.{kv}" for layer in range(num_decoder_layers) for kv in ("key", "value"))
        for side in ("decoder", "encoder")
    )
    return StateTensors(self_kv, cross_kv)


def present(state_tensor: str) -> str:
    """The output of the step graph that continues one of its state inputs."""
    return state_tensor.replace("past_key_values.", "present.")


def _remedy(values: dict[str, Any]) -> str:
    """The end of a message about an older bundle: the command that makes a new one."""
    version = values.get("format_version")
    if type(version) is not int or version > FORMAT_VERSION:
        return ""
    precision = values.get("precision")
    is_trained_here = values.get("tokenizer", "sentencepiece") == "sentencepiece"
    command = ("export CHECKPOINT" if is_trained_here else "import MODEL") + " NEW_BUNDLE"
    if precision in get_args(Precision) and precision != "fp32":
        command += f" --precision {precision}"
    return f": make the bundle anew from its source by `dragoman-export {command}`"


def _leaves_room(template: FramingTemplate, manifest: Manifest) -> bool:
    num_source, num_target = template.max_specials(manifest.languages)
    limits = manifest.limits
    # A token of text, and in a target end-of-sentence.
    return num_source + 1 <= limits.max_source_tokens and num_target + 2 <= limits.max_target_tokens


_WITHOUT_FACTS = f"have no {VOCABULARY_FILE} where vocabulary is null"

_RULES: tuple[Rule[Manifest], ...] = (
    Rule("limits.max_target_tokens", lambda limit, _: limit >= 2, "be at least 2: a token and end-of-sentence"),
    Rule(
        "framing",
        _leaves_room,
        "leave room for text, with limits of {0.limits.max_source_tokens} and {0.limits.max_target_tokens} tokens",
    ),
    Rule(
        "limits.segment_tokens",
        lambda limit, m: limit <= m.limits.max_source_tokens,
        "be at most limits.max_source_tokens, {0.limits.max_source_tokens}",
    ),
    *(
        Rule(
            name,
            lambda part, m: isinstance(part, str) or part < m.architecture.vocabulary_size,
            "be below architecture.vocabulary_size, {0.architecture.vocabulary_size}",
        )
        for name in (
            "framing.target_prefix[*]",
            "decoder_start_token_id",
            "eos_token_id",
            "generation.suppressed_token_ids[*]",
            "parity.golden[*].token_ids[*]",
        )
    ),
    Rule(
        "languages.token_ids[*][*]",
        lambda token_id, m: not m.framing.forces_a_language or token_id < m.architecture.vocabulary_size,
        "be below architecture.vocabulary_size, {0.architecture.vocabulary_size}: targets begin with it",
    ),
    Rule("framing.target_prefix[*]", lambda part, m: part != m.eos_token_id, "not be eos_token_id, {0.eos_token_id}"),
    Rule(
        "state",
        lambda state, m: state == state_tensors(m.architecture.num_decoder_layers),
        "have the keys and values of architecture.num_decoder_layers, {0.architecture.num_decoder_layers}",
    ),
    Rule(
        "generation.suppressed_token_ids",
        lambda ids, m: m.eos_token_id not in ids,
        "not have end-of-sentence ({0.eos_token_id}): no target would end",
    ),
    Rule(
        "generation.suppressed_token_ids",
        lambda ids, m: 2 * len(ids) < m.architecture.vocabulary_size,
        "leave more than half of the {0.architecture.vocabulary_size} tokens",
    ),
    Rule(
        "alignment.layer",
        lambda layer, m: layer < m.architecture.num_decoder_layers,
        "be below architecture.num_decoder_layers, {0.architecture.num_decoder_layers}",
    ),
    Rule(
        "alignment.heads[*]",
        lambda head, m: head < m.architecture.num_heads,
        "be below architecture.num_heads, {0.architecture.num_heads}",
    ),
    Rule("alignment.heads", are_distinct, "name each head once"),
    Rule(
        "parity.logprob_tolerance",
        lambda tolerance, m: tolerance <= MAX_TOLERANCE[m.precision],
        "be at most " + ", ".join(f"{most} at {precision}" for precision, most in MAX_TOLERANCE.items()),
    ),
    Rule(
        "parity.golden[*]",
        lambda golden, _: len(golden.token_ids) == len(golden.token_logprobs),
        "have as many token_logprobs as token_ids",
    ),
    Rule(
        "parity.golden[*].source_ids",
        lambda ids, m: len(ids) <= m.limits.max_source_tokens,
        "be no longer than limits.max_source_tokens, {0.limits.max_source_tokens}",
    ),
    Rule(
        "parity.golden[*].token_ids",
        lambda ids, m: len(ids) <= m.limits.max_target_tokens,
        "be no longer than limits.max_target_tokens, {0.limits.max_target_tokens}",
    ),
    Rule("parity.golden[*].direction", lambda d, m: d in m.languages, "be one of languages.directions"),
    Rule(
        "parity.golden[*]",
        lambda golden, m: m.framing_of(golden.direction).frames(golden.source_ids, golden.token_ids),
        "have ids in the framing of its direction",
    ),
    Rule(
        "files",
        lambda files, m: files.keys() >= set(m.required_files),
        "have {0.required_files} where tokenizer is {0.tokenizer}",
    ),
    Rule("vocabulary", lambda _, m: VOCABULARY_FILE in m.files, f"be null where files have no {VOCABULARY_FILE}"),
    Rule("files", lambda files, m: m.vocabulary is not None or VOCABULARY_FILE not in files, _WITHOUT_FACTS),
    Rule("vocabulary.shortlists[*].direction", lambda d, m: d in m.languages, "be one of languages.directions"),
    Rule(
        "vocabulary.shortlists",
        lambda shortlists, _: are_distinct([facts.direction for facts in shortlists], _),
        "name each direction once",
    ),
    Rule("vocabulary.languages[*]", lambda code, m: code in m.languages.targets, "be a target of languages.directions"),
    Rule("vocabulary.languages", are_distinct, "name each language once"),
)


# Fields that came after the others of this version. A manifest from before them has their defaults.
_LATER_FIELDS: dict[str, set[str]] = {
    "": {"vocabulary"},
    "architecture": {"state_size"},
    "generation": {"min_target_tokens", "repetition_penalty", "no_repeat_ngram_size"},
}


def _other_fields(found: Any, kept: Any, path: str) -> Iterator[str]:
    """Faults of fields that a document has beyond those that were read, or lacks."""
    if isinstance(kept, dict):
        if unknown := sorted(found.keys() - kept.keys()):
            yield f"{path or 'the manifest'} has the unknown field {unknown[0]!r:.80}"
        if missing := sorted(kept.keys() - found.keys() - _LATER_FIELDS.get(path, set())):
            yield f"{path or 'the manifest'} has no field {missing[0]}"
        for key in found:
            yield from _other_fields(found[key], kept[key], f"{path}.{key}".lstrip("."))
    elif isinstance(kept, tuple):
        for index, (value, other) in enumerate(zip(found, kept, strict=True)):
            yield from _other_fields(value, other, f"{path}[{index}]")


def _convert(values: dict[str, Any], kind: type[_T]) -> _T:
    """Raises ValueError naming the first field at fault and its value."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        # It says, for instance: Expected `int`, got `str` - at `$.limits.segment_tokens`
        text, _, place = str(error).replace("`", "").partition(" - at ")
    path = place.removeprefix("key in ").lstrip("$.")
    if (
        not path or "..." in path or place.startswith("key")
    ):  # it does not name the key where an object may have any keys
        raise ValueError(f"{path or 'the manifest'}: {text}")
    value: Any = values
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        value = value[name or int(index)]
    raise ValueError(f"{path} is {value!r:.80}: {text}")
