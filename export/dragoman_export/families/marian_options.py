"""The options of a Marian model, which say what it computes, as dimensions; what is not known here is refused.

Marian stores them with the weights. Source: `src/models/transformer.h` and `src/models/encoder_decoder.cpp` of Marian.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dragoman_export.dimensions import Dimensions
from dragoman_export.families.marian_yaml import Value
from dragoman_export.reading import listed

NORM_EPSILON = 1e-6  # of `layerNorm` and `rmsNorm` in `src/layers/generic.h`
# Marian's table of positions has no end; Hugging Face's converter gives OPUS-MT models as many.
MAX_POSITIONS = 512

_ACTIVATIONS: dict[Value, Literal["relu", "gelu", "silu"]] = {"relu": "relu", "gelu": "gelu", "swish": "silu"}
# Values that options must have, if present; the first is what Marian takes where an option is missing.
_REQUIRED: dict[str, tuple[Value, ...]] = {
    "type": ("transformer",),
    "transformer-decoder-autoreg": ("self-attention",),
    "transformer-ffn-depth": (2,),
    "transformer-decoder-ffn-depth": (0, 2),
    "transformer-tied-layers": ([],),
    "transformer-attention-mask": ("default",),
    "input-types": ([], ["sequence"], ["sequence", "sequence"]),
    "lemma-dim-emb": (0,),
    "lemma-dependency": ("",),
}
# Of no meaning for a Transformer with attention in its decoder.
_IGNORED = """
    version original-type dim-rnn enc-type enc-cell enc-cell-depth dec-cell dec-cell-base-depth dec-cell-high-depth skip
    layer-normalization transformer-rnn-projection transformer-dim-aan transformer-aan-depth transformer-aan-activation
    transformer-aan-nogate transformer-guided-alignment-layer transformer-depth-scaling transformer-alibi-shift
    bert-train-type-embeddings bert-type-vocab-size ulr-trainable-transformation ulr-dim-emb factors-combine
    factors-dim-emb special-vocab separator-symbol max-length char-stride char-highway char-conv-filters-num
    char-conv-filters-widths
"""
_USED = """
    dim-vocabs dim-emb enc-depth dec-depth transformer-heads transformer-dim-ffn transformer-decoder-dim-ffn
    transformer-ffn-activation transformer-preprocess transformer-postprocess transformer-postprocess-emb
    transformer-postprocess-top tied-embeddings tied-embeddings-src tied-embeddings-all output-omit-bias
"""
_KNOWN = frozenset((*_REQUIRED, *_IGNORED.split(), *_USED.split()))
# Values of an option that is switched off.
_OFF: tuple[Value, ...] = (False, 0, "", [], None)
_SIZES = ("dim-emb", "enc-depth", "dec-depth", "transformer-heads", "transformer-dim-ffn")
_FLAGS = ("tied-embeddings", "tied-embeddings-src", "tied-embeddings-all", "output-omit-bias")


# Before this version, keys and values of pre-norm models were those of states without a norm.
_FIRST_PRE_NORM = (1, 11)
_VERSION = re.compile(r"v?(\d+)\.(\d+)")


class Norms(NamedTuple):
    """Where a model has norms, and of which kind."""

    place: Literal["post", "pre"]
    kind: Literal["layer", "rms"]
    is_embedding_normed: bool


def read_dimensions(options: Mapping[str, Value], rows: tuple[int, int], origin: str) -> Dimensions:
    """The dimensions of a model.

    Args:
        options: of the model.
        rows: of the embeddings of source and target. The vocabularies need not be that large.
        origin: where the options are, for errors.

    Raises:
        ValueError: naming every option that changes what is computed and is not known here.
    """
    faults = [
        f"{name} is {_shown(value)}, must be {_shown(_REQUIRED[name][0])}"
        for name, value in options.items()
        if name in _REQUIRED and value not in _REQUIRED[name]
    ]
    if "type" not in options:
        faults.append("type is missing, must be 'transformer'")
    faults += [
        f"{name} is {_shown(value)}, which is not supported"
        for name, value in options.items()
        if name not in _KNOWN and not any(value is off or value == off for off in _OFF)
    ]
    sizes = {name: options.get(name) for name in _SIZES}
    faults += [
        f"{name} is {_shown(value)}, must be an integer of at least 1"
        for name, value in sizes.items()
        if type(value) is not int or value < 1
    ]
    flags = {name: options.get(name, False) for name in _FLAGS}
    faults += [
        f"{name} is {_shown(value)}, must be true or false"
        for name, value in flags.items()
        if not isinstance(value, bool)
    ]
    decoder_width = options.get("transformer-decoder-dim-ffn", 0)
    if decoder_width not in (0, sizes["transformer-dim-ffn"]):
        faults.append(
            f"transformer-decoder-dim-ffn is {_shown(decoder_width)}, must be transformer-dim-ffn, "
            f"{sizes['transformer-dim-ffn']}"
        )
    activation = _ACTIVATIONS.get(_hashable(options.get("transformer-ffn-activation", "swish")))
    if activation is None:
        faults.append(
            f"transformer-ffn-activation is {_shown(options['transformer-ffn-activation'])}, must be one of "
            + ", ".join(map(str, _ACTIVATIONS))
        )
    norms = _norms(options, faults)
    if faults or activation is None or norms is None:
        raise ValueError(f"{origin}: {listed(faults)}")
    numbers: dict[str, Any] = sizes
    try:
        return Dimensions(
            source_vocabulary_size=rows[0],
            target_vocabulary_size=rows[1],
            d_model=numbers["dim-emb"],
            num_heads=numbers["transformer-heads"],
            d_feed_forward=numbers["transformer-dim-ffn"],
            num_encoder_layers=numbers["enc-depth"],
            num_decoder_layers=numbers["dec-depth"],
            max_positions=MAX_POSITIONS,
            shared_vocabulary=bool(flags["tied-embeddings-all"] or flags["tied-embeddings-src"]),
            tied_projection=bool(flags["tied-embeddings-all"] or flags["tied-embeddings"]),
            norm=norms.place,
            norm_kind=norms.kind,
            norm_epsilon=NORM_EPSILON,
            activation=activation,
            position_layout="fairseq",
            embedding_norm=norms.is_embedding_normed,
            output_bias=True,
        )
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def _norms(options: Mapping[str, Value], faults: list[str]) -> Norms | None:
    """What the operations around sub-layers and stacks come to; None, with a fault, where that is something else.

    They are letters: `d` is dropout, which does nothing here, `a` adds what went into the sub-layer, `n` is a layer
    norm and `r` an RMS norm.
    """
    names = ("preprocess", "postprocess", "postprocess-emb", "postprocess-top")
    given = {name: options.get(f"transformer-{name}", "dan" if name == "postprocess" else "") for name in names}
    before, after, embedding, top = (str(given[name] or "").replace("d", "") for name in names)
    for kind, letter in (("layer", "n"), ("rms", "r")):
        for place, expected in (("post", ("", f"a{letter}", "")), ("pre", (letter, "a", letter))):
            if (before, after, top) == expected and embedding in ("", letter):
                if place == "pre":
                    _check_version(options.get("version"), faults)
                return Norms(place, kind, bool(embedding))  # type: ignore[arg-type]
    shown = ", ".join(f"transformer-{name} {_shown(value)}" for name, value in given.items())
    faults.append(
        f"the norms are {shown}; of these four, post-norm has '', 'dan', 'd' and '', pre-norm 'n', 'da', 'd' and 'n'; "
        "the third may be 'n', and r may stand for n in all"
    )
    return None


def _check_version(version: Value, faults: list[str]) -> None:
    found = _VERSION.match(version) if isinstance(version, str) else None
    if found is None or (int(found[1]), int(found[2])) < _FIRST_PRE_NORM:
        faults.append(
            f"version is {_shown(version)} of a model with pre-norm: before 1.11, Marian had no norm before its keys "
            "and values, which is not supported"
        )


def _hashable(value: Value) -> Value:
    return None if isinstance(value, list) else value


def _shown(value: Value | Sequence[Any]) -> str:
    return f"{value!r:.80}"
