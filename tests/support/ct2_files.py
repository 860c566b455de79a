"""Folders in CTranslate2's layout, written without CTranslate2, with whatever one wants in them."""

import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.marian_tokenizer import SOURCE_WORDS, TARGET_WORDS, pieces_of, train_sentencepiece

D_MODEL, D_FEED_FORWARD, NUM_POSITIONS = 16, 24, 32
EOS_ID = 3
_TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

Variables = dict[str, NDArray[Any]]


def write_text(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def write_variable(name: str, array: NDArray[Any]) -> bytes:
    shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
    return write_text(name) + shape + struct.pack("<BI", _TYPES[array.dtype.name], array.nbytes) + array.tobytes()


def write_model_file(
    path: Path,
    variables: Mapping[str, NDArray[Any]],
    aliases: Mapping[str, str],
    version: int = 6,
    spec: str = "TransformerSpec",
    revision: int = 7,
) -> None:
    """Writes model.bin as `ModelSpec._serialize` of `ctranslate2` does."""
    parts = [struct.pack("<I", version), write_text(spec), struct.pack("<II", revision, len(variables))]
    parts += [write_variable(name, np.asarray(array)) for name, array in variables.items()]
    parts += [
        struct.pack("<I", len(aliases)),
        *(write_text(alias) + write_text(name) for alias, name in aliases.items()),
    ]
    path.write_bytes(b"".join(parts))


class Folder:
    """A small random model with one vocabulary for both sides; its parts are there to be changed before `write`."""

    def __init__(self, **settings: Any) -> None:
        self.model = _model()
        self.vocabularies = {"shared_vocabulary.json": ["<unk>", "<blank>", "<s>", "</s>", *pieces_of(self.model)]}
        self.config: dict[str, Any] = {
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "decoder_start_token": "<s>",
            "add_source_bos": False,
            "add_source_eos": True,
            "layer_norm_epsilon": None,
            "multi_query_attention": False,
        }
        self.variables = random_variables(len(self.vocabularies["shared_vocabulary.json"])) | settings
        self.aliases = {
            "encoder/embeddings_0/weight": "decoder/embeddings/weight",
            "decoder/projection/weight": "decoder/embeddings/weight",
        }
        self.version, self.spec, self.revision = 6, "TransformerSpec", 7

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.bin"
        write_model_file(file, self.variables, self.aliases, self.version, self.spec, self.revision)
        (folder / "config.json").write_text(json.dumps(self.config), encoding="utf-8")
        for name, tokens in self.vocabularies.items():
            text = json.dumps(tokens) if name.endswith(".json") else "".join(f"{token}\n" for token in tokens)
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "sentencepiece.model").write_bytes(self.model)
        return folder


@cache
def _model() -> bytes:
    return train_sentencepiece([*SOURCE_WORDS, *TARGET_WORDS])


def random_variables(vocabulary_size: int) -> Variables:
    """Those of a pre-norm model with a layer in each stack and learned positions."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.normal(scale=D_MODEL**-0.5, size=shape).astype(np.float32)

    variables: Variables = {"decoder/embeddings/weight": normal(vocabulary_size, D_MODEL)}
    for side in ("encoder", "decoder"):
        numbers = {"num_heads": np.int16(2), "pre_norm": np.int8(1), "activation": np.int8(0)}
        variables |= {f"{side}/{name}": np.array(number) for name, number in numbers.items()}
        variables[f"{side}/position_encodings/encodings"] = normal(NUM_POSITIONS, D_MODEL)
        scopes = {"self_attention": ((3, D_MODEL), (1, D_MODEL))}
        if side == "decoder":
            scopes["attention"] = ((1, D_MODEL), (2, D_MODEL), (1, D_MODEL))  # type: ignore[assignment]
        norms = [f"{side}/layer_norm", *(f"{side}/layer_0/{scope}/layer_norm" for scope in (*scopes, "ffn"))]
        for norm in norms:
            variables |= {f"{norm}/gamma": 1 + normal(D_MODEL), f"{norm}/beta": normal(D_MODEL)}
        linears = {
            f"{scope}/linear_{i}": (factor * size, D_MODEL)
            for scope, sizes in scopes.items()
            for i, (factor, size) in enumerate(sizes)
        }
        linears |= {"ffn/linear_0": (D_FEED_FORWARD, D_MODEL), "ffn/linear_1": (D_MODEL, D_FEED_FORWARD)}
        for name, shape in linears.items():
            variables[f"{side}/layer_0/{name}/weight"] = normal(*shape)
            variables[f"{side}/layer_0/{name}/bias"] = normal(shape[0])
    return variables


def quantized(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """As `LayerSpec._quantize` does at int8: the numbers, and the scale of each row."""
    largest = np.abs(weight).max(axis=1)
    scale = (127 / np.where(largest == 0, 127, largest)).astype(np.float32)
    return np.rint(weight * scale[:, None]).astype(np.int8), scale
