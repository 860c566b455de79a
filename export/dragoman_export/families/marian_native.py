"""Import of models in Marian's own format: `model.npz` with its options inside, vocabularies, and `decoder.yml`.

Marian's decoder begins with a vector of zeros in place of an embedding. Here that is an embedding behind Marian's, all
zeros: that of the token that the decoder begins with, which is never emitted.

Source: `src/models/transformer.h`, `src/layers/output.cpp` and `src/translator` of Marian.
"""

import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dragoman_export.checkpoint import Checkpoint, blank_model, load_tensors, unique_tensors
from dragoman_export.dimensions import Dimensions
from dragoman_export.families.huggingface import make_checkpoint
from dragoman_export.families.marian_languages import marian_languages
from dragoman_export.families.marian_options import read_dimensions
from dragoman_export.families.marian_settings import read_settings
from dragoman_export.families.marian_vocabularies import read_vocabularies
from dragoman_export.families.marian_yaml import Value, parse_yaml
from dragoman_export.model import Transformer
from dragoman_export.npz import read_npz
from dragoman_export.reading import SizeFields, check_weights, listed, require_sizes
from dragoman_export.stated import Stated

OPTIONS = "special:model.yml"
_NEVER = -100.0  # as a bias: a probability that is 0 in float32
_EMBEDDINGS = ("source_embedding.tokens.weight", "target_embedding.tokens.weight", "output_weight")
_SIZE_FIELDS = SizeFields(axes=("dim-emb", "transformer-dim-ffn"), layers=("enc-depth", "dec-depth"), positions=())
_OUTPUT, _LEGACY_OUTPUT, _OUTPUT_BIAS = (f"decoder_ff_logit_out_{name}" for name in ("Wt", "W", "b"))


def read_marian_native(folder: Path, name: str, stated: Stated) -> Checkpoint:
    """Reads a model with its vocabularies, languages and generation defaults.

    Languages are those of tags such as `>>fra<<` in the source's vocabulary, or those that the user states.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model computes something that is not known here, or a file is damaged; names all faults of a
            kind.
        BundleError: a SentencePiece model is damaged.
    """
    settings = read_settings(folder)
    arrays = read_npz(settings.model)
    origin = f"{settings.model}: {OPTIONS}"
    options = _read_options(arrays.pop(OPTIONS, None), origin)
    tensors = _tensors(arrays, settings.model)
    rows = _num_rows(options, tensors, settings.model)
    dimensions = read_dimensions(options, rows, origin)
    require_sizes(origin, _SIZE_FIELDS, {name: cast("int", options[name]) for name in chain(*_SIZE_FIELDS)}, tensors)
    vocabularies = read_vocabularies(folder, settings.vocabularies, rows)
    model = _build(
        dimensions,
        tensors,
        settings.model,
        has_bias=options.get("output-omit-bias") is not True,
        extends_source=dimensions.shared_vocabulary or vocabularies.files.kind == "marian",
    )
    end_id = vocabularies.end_of_sentence_id
    table, framing = marian_languages(vocabularies.source, (None, None), None, stated, end_id)
    integers = {
        "pad_token_id": vocabularies.padding_id,
        "decoder_start_token_id": vocabularies.start_id,
        "eos_token_id": end_id,
    }
    suppressed = (vocabularies.start_id, *(vocabularies.unknown_id,) * settings.suppresses_unknown)
    suppressed += vocabularies.control_ids * settings.suppresses_control
    generation = dataclasses.replace(settings.generation, suppressed_token_ids=suppressed)
    return make_checkpoint(name, model, integers, vocabularies.files, table, framing, generation)


def _read_options(contents: NDArray[Any] | None, origin: str) -> dict[str, Value]:
    if contents is None:
        raise ValueError(f"{origin} is missing, which says what the model computes")
    try:
        text = contents.tobytes().partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{origin} is not text in UTF-8: {error}") from error
    return parse_yaml(text, origin)


def _tensors(arrays: MutableMapping[str, NDArray[Any]], path: Path) -> dict[str, Tensor]:
    """The weights in float32. Each array is let go as soon as it is copied."""
    faults = [
        f"{name} is of {array.dtype}: quantised weights are not read"
        if array.dtype.itemsize == 1
        else f"{name} is of {array.dtype}, not of floating-point numbers"
        for name, array in arrays.items()
        if array.dtype.kind != "f"
    ]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")
    tensors = {}
    with np.errstate(over="ignore"):  # what is beyond float32 is infinite, which is refused
        for name in [*arrays]:
            tensors[name] = torch.from_numpy(arrays.pop(name).astype(np.float32))
    check_weights(path, tensors)
    return tensors


def _num_rows(options: Mapping[str, Value], tensors: Mapping[str, Tensor], path: Path) -> tuple[int, int]:
    """The number of embeddings of source and target."""
    names = ["Wemb"] * 2 if _is_shared(options) else ["encoder_Wemb", "decoder_Wemb"]
    faults = [f"missing {name}" for name in dict.fromkeys(names) if name not in tensors]
    faults += [f"{name} is no matrix" for name in dict.fromkeys(names) if name in tensors and tensors[name].dim() != 2]
    if faults:
        raise ValueError(f"{path}: {listed(faults)}")
    source, target = (len(tensors[name]) for name in names)
    if options.get("dim-vocabs", [source, target]) != [source, target]:
        raise ValueError(
            f"{path}: dim-vocabs is {options['dim-vocabs']!r:.80}, but there are {source} embeddings of the source and "
            f"{target} of the target"
        )
    return source, target


def _is_shared(options: Mapping[str, Value]) -> bool:
    return options.get("tied-embeddings-all") is True or options.get("tied-embeddings-src") is True


# -- weights -----------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """The parameter of ours that a tensor of Marian's becomes, maybe transposed."""

    name: str
    is_transposed: bool = False


def _build(
    dimensions: Dimensions, tensors: Mapping[str, Tensor], path: Path, *, has_bias: bool, extends_source: bool
) -> Transformer:
    """The model in eval mode, with the weights of a file and, behind its tokens, the one that the decoder begins with.

    Args:
        dimensions: of the model without that token.
        tensors: of the file, by Marian's names.
        path: of the file.
        has_bias: whether the output has one.
        extends_source: whether the source has that token, too.

    Raises:
        ValueError: naming every tensor that is missing, unexpected or of another shape.
    """
    places = dict(_places(dimensions, has_bias=has_bias, is_output_transposed=_LEGACY_OUTPUT in tensors))
    faults = [f"missing {name}" for name in places.keys() - tensors.keys()]
    faults += [f"unexpected {name}" for name in tensors.keys() - places.keys()]
    ours = {place.name: name for name, place in places.items() if name in tensors}
    weights: dict[str, Tensor] = {}
    for name, parameter in unique_tensors(blank_model(dimensions)).items():
        if name not in ours:
            continue
        place, tensor, shape = places[ours[name]], tensors[ours[name]], list(parameter.shape)
        expected = [1, *shape] if len(shape) == 1 else shape[::-1] if place.is_transposed else shape
        if list(tensor.shape) != expected:
            faults.append(f"{ours[name]} has shape {list(tensor.shape)} instead of {expected}")
            continue
        weights[name] = tensor[0] if len(shape) == 1 else tensor.T if place.is_transposed else tensor
    if faults:
        raise ValueError(f"{path}: the weights do not fit the options: {listed(sorted(faults))}")
    if not has_bias:
        weights["output_bias"] = torch.zeros(dimensions.target_vocabulary_size)
    for name in _EMBEDDINGS if extends_source else _EMBEDDINGS[1:]:
        if name in weights:
            weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name][:1])])
    weights["output_bias"] = torch.cat([weights["output_bias"], torch.tensor([_NEVER])])
    model = Transformer(
        dataclasses.replace(
            dimensions,
            source_vocabulary_size=dimensions.source_vocabulary_size + extends_source,
            target_vocabulary_size=dimensions.target_vocabulary_size + 1,
        )
    )
    load_tensors(model, weights)
    return model.eval()


def _places(dimensions: Dimensions, *, has_bias: bool, is_output_transposed: bool) -> Iterator[tuple[str, _Place]]:
    """The tensors of a model."""
    if dimensions.shared_vocabulary:
        yield "Wemb", _Place("source_embedding.tokens.weight")
    else:
        yield "encoder_Wemb", _Place("source_embedding.tokens.weight")
        yield "decoder_Wemb", _Place("target_embedding.tokens.weight")
    if not dimensions.tied_projection:
        yield _LEGACY_OUTPUT if is_output_transposed else _OUTPUT, _Place("output_weight", is_output_transposed)
    if has_bias:
        yield _OUTPUT_BIAS, _Place("output_bias")
    norm = "ln" if dimensions.norm_kind == "layer" else "rms"
    suffix = "_pre" if dimensions.norm == "pre" else ""
    for side, ours, num_layers in (
        ("encoder", "source", dimensions.num_encoder_layers),
        ("decoder", "target", dimensions.num_decoder_layers),
    ):
        norms = {f"{side}_emb": f"{ours}_embedding.norm"} if dimensions.embedding_norm else {}
        yield from _norms({f"{name}_{norm}": norms[name] for name in norms}, "_pre")
        if dimensions.norm == "pre":
            yield from _norms({f"{side}_top_{norm}": f"{side}_norm"}, "")
        for i in range(num_layers):
            theirs, layer = f"{side}_l{i + 1}", f"{side}_layers.{i}"
            attentions = {"self": "self_attention"} | ({"context": "cross_attention"} if side == "decoder" else {})
            for kind, module in attentions.items():
                for letter, linear in zip("qkvo", ("query", "key", "value", "output"), strict=True):
                    yield from _linear(f"{theirs}_{kind}", letter, f"{layer}.{module}.{linear}")
                yield from _norms({f"{theirs}_{kind}_Wo_{norm}": f"{layer}.{module}_residual.norm"}, suffix)
            yield from _linear(f"{theirs}_ffn", "1", f"{layer}.feed_forward.inner")
            yield from _linear(f"{theirs}_ffn", "2", f"{layer}.feed_forward.outer")
            yield from _norms({f"{theirs}_ffn_ffn_{norm}": f"{layer}.feed_forward_residual.norm"}, suffix)


def _linear(theirs: str, suffix: str, ours: str) -> Iterator[tuple[str, _Place]]:
    yield f"{theirs}_W{suffix}", _Place(f"{ours}.weight", is_transposed=True)
    yield f"{theirs}_b{suffix}", _Place(f"{ours}.bias")


def _norms(names: Mapping[str, str], suffix: str) -> Iterator[tuple[str, _Place]]:
    for theirs, ours in names.items():
        yield f"{theirs}_scale{suffix}", _Place(f"{ours}.weight")
        if theirs.endswith("ln"):
            yield f"{theirs}_bias{suffix}", _Place(f"{ours}.bias")
