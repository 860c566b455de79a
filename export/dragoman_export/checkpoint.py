"""A model on disk before export: `model.safetensors`, `config.json`, `tokenizer.model` in one folder."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dragoman_export.model import Dimensions, Transformer

WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.model"


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

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        values = json.loads(text)
        return cls(
            **{
                **values,
                "dimensions": Dimensions(**values["dimensions"]),
                "directions": tuple((source, target) for source, target in values["directions"]),
                "source_prefix_ids": {code: tuple(ids) for code, ids in values["source_prefix_ids"].items()},
            }
        )


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in eval mode with its configuration and its serialized SentencePiece model."""

    config: Config
    model: Transformer
    tokenizer: bytes

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Writes the three files; `torch.float16` halves the size for storage (loading always gives float32)."""
        folder.mkdir(parents=True, exist_ok=True)
        # Tied weights are one parameter of the module, so the state dict holds them once already.
        tensors = {name: tensor.to(dtype).contiguous() for name, tensor in unique_tensors(self.model).items()}
        save_file(tensors, folder / WEIGHTS_FILE)
        (folder / TOKENIZER_FILE).write_bytes(self.tokenizer)
        (folder / CONFIG_FILE).write_text(self.config.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Raises FileNotFoundError for a missing file, ValueError naming every missing, extra or misshapen tensor."""
        config = Config.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tokenizer = (folder / TOKENIZER_FILE).read_bytes()
        model = Transformer(config.dimensions)
        load_tensors(model, load_file(folder / WEIGHTS_FILE))
        return cls(config, model.eval(), tokenizer)


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
