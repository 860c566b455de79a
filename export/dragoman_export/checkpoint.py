"""A model before export: in memory, and on disk as `model.safetensors`, `config.json` and tokenizer files."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dragoman_export.model import Dimensions, Transformer
from dragoman_server.bundle.manifest import TOKENIZER_FILES, Generation, TokenizerKind
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
(TOKENIZER_FILE,) = TOKENIZER_FILES["sentencepiece"]


@dataclass(frozen=True)
class Config:
    """What must be known besides the weights to translate with a model."""

    name: str
    dimensions: Dimensions
    pad_token_id: int
    bos_token_id: int  # the decoder's first input
    eos_token_id: int
    directions: tuple[tuple[str, str], ...]  # (source language, target language)
    source_prefix_ids: dict[str, tuple[int, ...]]  # by target language: control ids put before the source
    segment_tokens: int = 100  # a longer line is better translated sentence by sentence
    training: dict[str, Any] = field(default_factory=dict)  # recipe and results, for the model card
    tokenizer: TokenizerKind = "sentencepiece"
    generation: Generation = field(default_factory=Generation)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        values = json.loads(text)
        generation = values.get("generation", {})
        suppressed = tuple(generation.get("suppressed_token_ids", ()))
        return cls(
            **{
                **values,
                "generation": Generation(**{**generation, "suppressed_token_ids": suppressed}),
                "dimensions": Dimensions(**values["dimensions"]),
                "directions": tuple((source, target) for source, target in values["directions"]),
                "source_prefix_ids": {code: tuple(ids) for code, ids in values["source_prefix_ids"].items()},
            }
        )


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in eval mode with its configuration and its tokenizer."""

    config: Config
    model: Transformer
    tokenizer: bytes  # the serialized SentencePiece model; the source's, where source and target have their own
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
        """Writes the tokenizer's files under the names that a bundle has them under."""
        first = TOKENIZER_FILES[self.config.tokenizer][0]
        for name, contents in {first: self.tokenizer, **self.companion_files}.items():
            (folder / name).write_bytes(contents)

    def open_tokenizer(self) -> TextCodec:
        """The tokenizer as the server will open it."""
        with tempfile.TemporaryDirectory() as folder:
            self.write_tokenizer(Path(folder))
            return load_tokenizer(self.config.tokenizer, Path(folder))

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Raises FileNotFoundError for a missing file, ValueError naming every missing, extra or misshapen tensor."""
        config = Config.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        first, *others = TOKENIZER_FILES[config.tokenizer]
        tokenizer = (folder / first).read_bytes()
        companions: dict[str, bytes] = {name: (folder / name).read_bytes() for name in others}
        model = Transformer(config.dimensions)
        load_tensors(model, load_file(folder / WEIGHTS_FILE))
        return cls(config, model.eval(), tokenizer, companions)


def unique_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """The parameters of a model by name, shared ones once, under the name that comes first."""
    return dict(model.named_parameters())


def load_tensors(model: Transformer, tensors: dict[str, torch.Tensor]) -> None:
    """Fills every parameter from `tensors`, converting to float32; all faults are reported together."""
    parameters = unique_tensors(model)
    faults = [f"missing {name}" for name in parameters.keys() - tensors.keys()]
    faults += [f"unexpected {name}" for name in tensors.keys() - parameters.keys()]
    faults += [
        f"{name} has shape {list(tensors[name].shape)} instead of {list(parameters[name].shape)}"
        for name in parameters.keys() & tensors.keys()
        if tensors[name].shape != parameters[name].shape
    ]
    if faults:
        raise ValueError("the weights do not fit the configuration: " + "; ".join(sorted(faults)))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
