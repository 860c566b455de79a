"""The bundle format: what stands in `manifest.json`. Standard library only; written by the exporter, read here."""

import dataclasses
import json
import math
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dragoman_server.errors import BundleError

FORMAT_VERSION = 3
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20

Precision = Literal["fp32", "int8"]
TokenizerKind = Literal["sentencepiece", "marian"]  # one joint model; or Marian's two models and a vocabulary
# From which row of cross-attention a target token is aligned: that of the step which emits it, or of the step which
# reads it, one later (Shift-Att, Chen et al. 2020).
AlignmentMethod = Literal["output_row", "shifted"]
# How lines are cut into segments where a caller does not say. Most models were trained on single sentences.
DefaultSegmentation = Literal["sentence", "line", "packed"]


@dataclass(frozen=True)
class Architecture:
    """The shapes the engine needs to know; the graphs know the rest."""

    num_encoder_layers: int
    num_decoder_layers: int
    num_heads: int
    d_head: int
    vocabulary_size: int  # of the target


@dataclass(frozen=True)
class Limits:
    """All in tokens."""

    max_source_tokens: int  # with language tag and end-of-sentence
    max_target_tokens: int  # with end-of-sentence
    segment_tokens: int  # up to which sentences stay together where lines are "packed"


@dataclass(frozen=True)
class Generation:
    """The bundle's generation defaults: how it decodes where a caller does not say. Definitions are Hugging Face's."""

    beam_size: int = 1  # 1 is greedy
    length_penalty: float = 1.0  # the score is sum_logprob / num_tokens ** length_penalty
    early_stopping: bool = False  # whether to stop as soon as there are beam_size hypotheses
    suppressed_token_ids: tuple[int, ...] = ()  # never generated, whatever a caller says


@dataclass(frozen=True)
class Alignment:
    """From which cross-attention weights words are aligned where a caller does not say."""

    method: AlignmentMethod
    layer: int  # of the decoder, from 0
    heads: tuple[int, ...]  # from 0; the mean of their weights is taken


@dataclass(frozen=True)
class StateTensors:
    """Names of the step graph's inputs that live in the KV pool, by kind; a value's name follows its key's."""

    self_kv: tuple[str, ...]  # grows by one position a step, written in place
    cross_kv: tuple[str, ...]  # fixed once the source is encoded


@dataclass(frozen=True)
class Golden:
    """One sentence of the parity certificate with what PyTorch made of it."""

    source_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # greedy, end-of-sentence included
    token_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Parity:
    """The parity certificate: how far ONNX Runtime was from PyTorch at export, and samples to replay."""

    max_logprob_difference: float  # largest seen at export, teacher-forced, natural log
    logprob_tolerance: float  # a replay beyond this is refused
    max_attention_difference: float
    token_agreement: float  # share of sentences with identical greedy ids
    num_sentences: int
    golden: tuple[Golden, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything the server knows about a model apart from its weights."""

    name: str
    architecture: Architecture
    precision: Precision
    directions: tuple[tuple[str, str], ...]  # (source language code, target language code)
    source_prefix_ids: dict[str, tuple[int, ...]]  # by target language: control ids that open every source
    decoder_start_token_id: int
    eos_token_id: int
    pad_token_id: int
    limits: Limits
    state: StateTensors
    parity: Parity
    files: dict[str, str]  # file name -> sha256, hex
    tokenizer: TokenizerKind = "sentencepiece"
    segmentation: DefaultSegmentation = "sentence"  # may be absent
    generation: Generation = field(default_factory=Generation)
    alignment: Alignment | None = None  # None, or absent, where it was never tuned
    format_version: int = FORMAT_VERSION

    @property
    def best_alignment(self) -> Alignment:
        """What was tuned, else what is best for most models."""
        return self.alignment or default_alignment(self.architecture)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises BundleError naming the file, the field and the fault."""
        path = folder / MANIFEST_FILE
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{folder} is not a model bundle: it has no {MANIFEST_FILE} that is a plain file")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} is {path.stat().st_size} bytes long; at most {MAX_MANIFEST_BYTES} are read")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Raises ValueError naming the first field that is missing, unknown or of the wrong type."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("the manifest is not a JSON object")
        # Before anything else: a newer format may have other fields.
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"format_version is {values.get('format_version')!r}; this server reads version {FORMAT_VERSION}"
            )
        manifest: Manifest = _read(cls, {"segmentation": "sentence"} | values, "")
        manifest._check()
        return manifest

    def _check(self) -> None:
        sizes = dataclasses.asdict(self.architecture) | dataclasses.asdict(self.limits)
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, must be at least 1")
        kinds_by_name = {"precision": Precision, "tokenizer": TokenizerKind, "segmentation": DefaultSegmentation}
        for name, kinds in kinds_by_name.items():
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(get_args(kinds))}")
        self._check_generation()
        if self.alignment is not None:
            _check_alignment(self.alignment, self.architecture)
        for _, target in self.directions:
            if target not in self.source_prefix_ids:
                raise ValueError(f"source_prefix_ids has no entry for target language {target!r}")
        num_tensors = 2 * self.architecture.num_decoder_layers
        for kind, names in (("self_kv", self.state.self_kv), ("cross_kv", self.state.cross_kv)):
            if len(names) != num_tensors:
                raise ValueError(f"state.{kind} names {len(names)} tensors, the decoder layers need {num_tensors}")
        if not self.parity.golden:
            raise ValueError("parity.golden is empty: nothing shows that the model does what its source does")
        for index, golden in enumerate(self.parity.golden):
            if not 0 < len(golden.token_ids) == len(golden.token_logprobs):
                raise ValueError(
                    f"parity.golden[{index}] has {len(golden.token_ids)} token_ids and "
                    f"{len(golden.token_logprobs)} token_logprobs; it needs as many of each, and at least one"
                )
        for name in self.files:
            if Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"files: {name!r} is not a plain file name")

    def _check_generation(self) -> None:
        if self.generation.beam_size < 1:
            raise ValueError(f"generation.beam_size is {self.generation.beam_size}, must be at least 1")
        for token_id in self.generation.suppressed_token_ids:
            if not 0 <= token_id < self.architecture.vocabulary_size:
                raise ValueError(f"generation.suppressed_token_ids has {token_id}, which is not in the vocabulary")
            if token_id == self.eos_token_id:
                raise ValueError(
                    f"generation.suppressed_token_ids has end-of-sentence ({token_id}): no target would end"
                )


def default_alignment(architecture: Architecture) -> Alignment:
    """For models that nobody tuned: shifted rows of all heads of the middle layer, the third of six.

    It is the one of Chen et al. 2020, "Accurate Word Alignment Induction from Neural Machine Translation". Of an even
    number of layers it is the earlier of the two in the middle.
    """
    layer = (architecture.num_decoder_layers - 1) // 2
    return Alignment("shifted", layer, tuple(range(architecture.num_heads)))


def _check_alignment(alignment: Alignment, architecture: Architecture) -> None:
    if alignment.method not in get_args(AlignmentMethod):
        methods = ", ".join(get_args(AlignmentMethod))
        raise ValueError(f"alignment.method is {alignment.method!r}, must be one of {methods}")
    if not 0 <= alignment.layer < architecture.num_decoder_layers:
        last = architecture.num_decoder_layers - 1
        raise ValueError(f"alignment.layer is {alignment.layer}, must be from 0 to {last}")
    for head in alignment.heads:
        if not 0 <= head < architecture.num_heads:
            raise ValueError(f"alignment.heads has {head}, must be from 0 to {architecture.num_heads - 1}")
    if len(set(alignment.heads)) != len(alignment.heads) or not alignment.heads:
        raise ValueError(f"alignment.heads is {list(alignment.heads)}, must name at least one head, and each once")


def _read(kind: Any, value: Any, path: str) -> Any:
    """Builds `kind` (a dataclass, tuple, dict, scalar type or `X | None`) from parsed JSON, strictly.

    A field that may be None may be absent.
    """
    origin: Any = get_origin(kind)
    arguments: tuple[Any, ...] = get_args(kind)
    name = path.rstrip(".") or "the manifest"
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not an object")
        fields = dataclasses.fields(kind)
        names = {f.name for f in fields}
        value = dict.fromkeys((f.name for f in fields if get_origin(f.type) is types.UnionType), None) | value
        if value.keys() != names:
            missing, unknown = sorted(names - value.keys()), sorted(value.keys() - names)
            raise ValueError(f"{name}: missing fields {missing}, unknown fields {unknown}")
        return kind(**{f.name: _read(f.type, value[f.name], f"{path}{f.name}.") for f in fields})
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{name} is not a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError(f"{name} has {len(value)} elements, not {len(arguments)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_read(k, v, f"{name}[{i}].") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not an object")
        return {k: _read(arguments[1], v, f"{name}[{k}].") for k, v in value.items()}
    if origin is Literal:
        kind = str
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r}, not of type {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, not a finite number")
    return value
