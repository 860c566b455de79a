"""A model before export: in memory, and on disk as `model.safetensors`, `config.json` and tokenizer files."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import sentencepiece as spm
import torch
from safetensors.torch import save_file

from dragoman_export.dimensions import Dimensions
from dragoman_export.languages import Pair
from dragoman_export.model import Transformer
from dragoman_export.reading import SizeFields, listed, read_bytes, read_json, read_safetensors, require_sizes
from dragoman_server.bundle.framing import FRAMING_RULES, Framing, FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Architecture, DefaultSegmentation, Generation
from dragoman_server.bundle.rules import about, check
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerKind

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
(TOKENIZER_FILE,) = TOKENIZER_FILES["sentencepiece"]

SEGMENT_TOKENS = 100  # some sentences

# Of `Dimensions`.
_SIZE_FIELDS = SizeFields(
    axes=("source_vocabulary_size", "target_vocabulary_size", "d_model", "d_feed_forward"),
    layers=("num_encoder_layers", "num_decoder_layers"),
    positions=("max_positions", "position_offset"),
)


@dataclass(frozen=True)
class Config:
    """All that translating with a model takes beside its weights and its tokenizer."""

    name: str
    dimensions: Dimensions
    pad_token_id: int
    bos_token_id: int  # the decoder's first input
    eos_token_id: int
    languages: LanguageTable
    framing: FramingTemplate
    segmentation: DefaultSegmentation = "sentence"
    segment_tokens: int = SEGMENT_TOKENS  # up to which sentences stay together where lines are packed
    training: dict[str, Any] = field(default_factory=dict)  # recipe and results, for the model card
    tokenizer: TokenizerKind = "sentencepiece"
    generation: Generation = field(default_factory=Generation)

    @property
    def architecture(self) -> Architecture:
        """The dimensions as a bundle's manifest has them."""
        dims = self.dimensions
        return Architecture(
            num_encoder_layers=dims.num_encoder_layers,
            num_decoder_layers=dims.num_decoder_layers,
            num_heads=dims.num_heads,
            d_head=dims.d_head,
            vocabulary_size=dims.target_vocabulary_size,
            state_size=None if dims.d_model == dims.d_attention else dims.d_model,
        )

    def framing_of(self, direction: Pair) -> Framing:
        """The specials around texts in one direction."""
        return self.framing.of(direction, self.languages.token_ids, self.eos_token_id)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Reads the output of `to_json`, of this version or from before framings; fields with a default may be missing.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is not JSON, or naming the field that is missing, unknown, of another type or out of range.
        """
        values = read_json(path)
        if "model_type" in values:
            raise ValueError(f"{path} is of a model in Hugging Face's layout, which is read by dragoman-export import")
        try:
            if "source_prefix_ids" in values:
                values = _with_framing(values)
            unknown = sorted(values.keys() - {f.name for f in dataclasses.fields(cls)})
            if unknown:
                raise ValueError(f"{path} has the unknown field {unknown[0]!r:.80}")
            config = msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"{path}: {error}") from error
        faults = [
            f"{name} is {token_id}, must be from 0 to {size - 1}"
            for name, size, token_ids in config._token_ids()
            for token_id in token_ids
            if not 0 <= token_id < size
        ]
        if config.segment_tokens < 1:
            faults.append(f"segment_tokens is {config.segment_tokens}, must be at least 1")
        if faults:
            raise ValueError(f"{path}: {listed(faults)}")
        with about(str(path)):
            check(FRAMING_RULES, config, config)
        return config

    def _token_ids(self) -> Iterator[tuple[str, int, Iterable[int]]]:
        """The fields that hold ids, with the sizes of their vocabularies and their values."""
        source_size, target_size = self.dimensions.source_vocabulary_size, self.dimensions.target_vocabulary_size
        for name in ("pad_token_id", "eos_token_id"):
            yield name, min(source_size, target_size), (getattr(self, name),)
        yield "bos_token_id", target_size, (self.bos_token_id,)
        framing = self.framing
        sizes = [target_size] * framing.forces_a_language + [source_size] * framing.reads_a_language
        of_languages = chain.from_iterable(self.languages.token_ids.values())
        yield "languages.token_ids", min(sizes, default=source_size), of_languages
        for name, size, parts in (
            ("framing.source_prefix", source_size, framing.source_prefix),
            ("framing.source_suffix", source_size, framing.source_suffix),
            ("framing.target_prefix", target_size, framing.target_prefix),
        ):
            yield name, size, (part for part in parts if isinstance(part, int))
        yield "generation.suppressed_token_ids", target_size, self.generation.suppressed_token_ids


class _Prefixes(TypedDict):
    """Fields of a configuration from before framings."""

    directions: tuple[Pair, ...]
    source_prefix_ids: dict[str, tuple[int, ...]]  # by target language
    eos_token_id: int


def _with_framing(values: dict[str, Any]) -> dict[str, Any]:
    """Converts a configuration from before framings, so that models trained then stay usable."""
    prefixes = msgspec.convert(values, _Prefixes)
    token_ids = {code: ids for code, ids in prefixes["source_prefix_ids"].items() if ids}
    languages = LanguageTable.of(prefixes["directions"], token_ids)
    framing = FramingTemplate(("target",) if token_ids else (), (prefixes["eos_token_id"],), ())
    others = {name: value for name, value in values.items() if name not in ("directions", "source_prefix_ids")}
    return others | {"languages": dataclasses.asdict(languages), "framing": dataclasses.asdict(framing)}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in eval mode with its configuration and its tokenizer."""

    config: Config
    model: Transformer
    tokenizer: bytes  # its first file, such as the SentencePiece model of the source; nothing where it has no files
    companion_files: dict[str, bytes] = field(default_factory=dict)  # the tokenizer's other files by name

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes all files; `torch.float16` halves the size for storage (loading always gives float32)."""
        folder.mkdir(parents=True, exist_ok=True)
        # Tied weights are one parameter of the module, so the state dict holds them once already.
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in unique_tensors(self.model).items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        self.write_tokenizer(folder)
        (folder / CONFIG_FILE).write_text(self.config.to_json(), encoding="utf-8")

    def write_tokenizer(self, folder: Path) -> None:
        """Writes the tokenizer's files under the names that they have in a bundle."""
        for name, contents in self._tokenizer_files().items():
            (folder / name).write_bytes(contents)

    def _tokenizer_files(self) -> dict[str, bytes]:
        first: dict[str, bytes] = dict.fromkeys(TOKENIZER_FILES[self.config.tokenizer][:1], self.tokenizer)
        return {**first, **self.companion_files}

    def tokenizer_hashes(self) -> dict[str, str]:
        """The SHA-256 hashes of the tokenizer's files by their names in a bundle, as a manifest has them."""
        return {name: hashlib.sha256(contents).hexdigest() for name, contents in self._tokenizer_files().items()}

    def open_tokenizer(self) -> TextCodec:
        """The tokenizer as the server will open it."""
        files = self._tokenizer_files()
        return load_tokenizer(self.config.tokenizer, Path(), lambda path: files[path.name])

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether a folder has a configuration as `save` writes it, and not one of another toolkit.

        Raises:
            ValueError: the configuration is no JSON object.
        """
        path = folder / CONFIG_FILE
        return path.exists() and "dimensions" in read_json(path)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Reads the files that `save` writes.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or does not fit the others: names every missing, extra or misshapen tensor.
            BundleError: a tokenizer file is damaged.
        """
        config = Config.read(folder / CONFIG_FILE)
        files: dict[str, bytes] = {name: read_bytes(folder / name) for name in TOKENIZER_FILES[config.tokenizer]}
        load_tokenizer(config.tokenizer, folder)  # which refuses damaged files
        if config.tokenizer == "sentencepiece":
            num_pieces = spm.SentencePieceProcessor(model_proto=files[TOKENIZER_FILE]).get_piece_size()
            if num_pieces > (size := config.dimensions.source_vocabulary_size):
                raise ValueError(
                    f"{folder / TOKENIZER_FILE} has {num_pieces} pieces, but source_vocabulary_size is {size}"
                )
        tensors = read_safetensors(folder / WEIGHTS_FILE)
        require_sizes(str(folder / CONFIG_FILE), _SIZE_FIELDS, dataclasses.asdict(config.dimensions), tensors)
        check_tensors(blank_model(config.dimensions), tensors)
        model = Transformer(config.dimensions)
        load_tensors(model, tensors)
        return cls.of(config, model.eval(), files)

    @classmethod
    def of(cls, config: Config, model: Transformer, tokenizer_files: Mapping[str, bytes]) -> "Checkpoint":
        """The parts of a model, with the files of its tokenizer by name."""
        first = TOKENIZER_FILES[config.tokenizer][:1]
        others = {name: contents for name, contents in tokenizer_files.items() if name not in first}
        return cls(config, model, b"".join(tokenizer_files[name] for name in first), others)


def blank_model(dimensions: Dimensions) -> Transformer:
    """A model whose parameters have shapes but no memory."""
    with torch.device("meta"):
        return Transformer(dimensions)


def unique_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The parameters of a model by name, shared ones once, under the name that comes first."""
    return dict(model.named_parameters())


def load_tensors(model: Transformer, tensors: dict[str, torch.Tensor]) -> None:
    """Fills every parameter from `tensors`, converting to float32; all faults are reported together."""
    check_tensors(model, tensors)
    with torch.no_grad():
        for name, parameter in unique_tensors(model).items():
            parameter.copy_(tensors[name])


def check_tensors(model: Transformer, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ValueError naming every tensor that the model lacks, has not, or has in another shape."""
    parameters = unique_tensors(model)
    faults = [f"missing {name}" for name in parameters.keys() - tensors.keys()]
    faults += [f"unexpected {name}" for name in tensors.keys() - parameters.keys()]
    faults += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(parameters[name].shape)}"
        for name in parameters.keys() & tensors.keys()
        if tensors[name].shape != parameters[name].shape
    ]
    if faults:
        raise ValueError(f"the weights do not fit the configuration in {CONFIG_FILE}: {listed(sorted(faults))}")
