"""Small random models in Marian's own format, written by the names and shapes of Marian's source."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pytest
import sentencepiece
from numpy.typing import NDArray

from dragoman_export.families.marian_native import read_marian_native
from dragoman_export.stated import Stated
from support.marian_tokenizer import EOS_ID as EOS_ID
from support.marian_tokenizer import SOURCE_WORDS, TARGET_WORDS, pieces_of, sentences, target_token
from support.marian_tokenizer import UNK_ID as UNK_ID
from support.piece_tokenizers import SENTENCES, train_pieces

Array = NDArray[np.float32]
Tokenizers = Literal["one list", "two lists", "one model", "two models"]

# As Marian stores them.
OPTIONS: dict[str, Any] = {
    "bert-train-type-embeddings": True,
    "bert-type-vocab-size": 2,
    "dec-cell": "gru",
    "dec-cell-base-depth": 2,
    "dec-cell-high-depth": 1,
    "dec-depth": 1,
    "dim-emb": 64,
    "dim-rnn": 1024,
    "enc-cell": "gru",
    "enc-cell-depth": 1,
    "enc-depth": 2,
    "enc-type": "bidirectional",
    "factors-combine": "sum",
    "factors-dim-emb": 0,
    "input-types": [],
    "layer-normalization": False,
    "lemma-dependency": "",
    "lemma-dim-emb": 0,
    "output-omit-bias": False,
    "right-left": False,
    "skip": False,
    "special-vocab": [],
    "tied-embeddings": False,
    "tied-embeddings-all": True,
    "tied-embeddings-src": False,
    "transformer-aan-activation": "swish",
    "transformer-aan-depth": 2,
    "transformer-aan-nogate": False,
    "transformer-decoder-autoreg": "self-attention",
    "transformer-decoder-dim-ffn": 0,
    "transformer-decoder-ffn-depth": 0,
    "transformer-depth-scaling": False,
    "transformer-dim-aan": 2048,
    "transformer-dim-ffn": 96,
    "transformer-ffn-activation": "swish",
    "transformer-ffn-depth": 2,
    "transformer-guided-alignment-layer": "last",
    "transformer-heads": 4,
    "transformer-no-projection": False,
    "transformer-pool": False,
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": "",
    "transformer-preprocess": "",
    "transformer-rnn-projection": False,
    "transformer-tied-layers": [],
    "transformer-train-position-embeddings": False,
    "type": "transformer",
    "ulr": False,
    "ulr-dim-emb": 0,
    "ulr-trainable-transformation": False,
    "version": "v1.12.0 65bf82f 2023-02-21 09:56:29 -0800",
}
# Arguments of `write_native`.
PRE_NORM = {"transformer_preprocess": "n", "transformer_postprocess": "da", "transformer_postprocess_top": "n"}
STORED_OPTIONS = "special:model.yml"
VOCABULARY = "opus.spm32k-spm32k.vocab.yml"  # where source and target have one list
PAIR = Stated(pair="en-fr")
Edit = Callable[[dict[str, Any]], object]


class Native(NamedTuple):
    """A folder, and what is in it."""

    folder: Path
    vocabularies: tuple[Path, Path]
    arrays: dict[str, NDArray[Any]]

    @property
    def model(self) -> Path:
        return self.folder / "model.npz"


def entries_of(vocabulary: Path) -> list[str]:
    """All entries of a file in the order of their ids."""
    if vocabulary.suffix == ".spm":
        processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
        return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    lines = vocabulary.read_text(encoding="utf-8").splitlines()
    return [line.rpartition(": ")[0].strip('"') for line in lines]


def write_native(
    folder: Path,
    tokenizers: Tokenizers = "one list",
    targets: Sequence[str] = (),
    eos_bias: float = 3.0,
    seed: int = 0,
    decoder: Mapping[str, Any] | None = None,
    **options: Any,
) -> Native:
    """Writes a whole model; `options` are Marian's with underscores, `decoder` is more of decoder.yml."""
    folder.mkdir(parents=True, exist_ok=True)
    names, sizes = write_vocabularies(folder, tokenizers, targets)
    settings = OPTIONS | {name.replace("_", "-"): value for name, value in options.items()} | {"dim-vocabs": sizes}
    arrays: dict[str, NDArray[Any]] = {**random_weights(settings, seed, eos_bias)}
    arrays[STORED_OPTIONS] = as_bytes(as_yaml(settings))
    np.savez(folder / "model.npz", **cast("dict[str, Any]", arrays))
    values = {"relative-paths": True, "models": ["model.npz"], "vocabs": [*names]}
    values |= {"beam-size": 4, "normalize": 1, "word-penalty": 0, "mini-batch": 1, "maxi-batch": 1}
    (folder / "decoder.yml").write_text(as_yaml(values | dict(decoder or {})), encoding="utf-8")
    return Native(folder, (folder / names[0], folder / names[1]), arrays)


def as_yaml(values: Mapping[str, Any]) -> str:
    """As yaml-cpp writes it."""
    return "".join(f"{name}:{_emitted(value)}\n" for name, value in values.items())


def _emitted(value: Any) -> str:
    match value:
        case []:
            return "\n  []"
        case list():
            return "".join(f"\n  -{_emitted(item)}" for item in value)
        case bool():
            return f" {str(value).lower()}"
        case "":
            return ' ""'
        case _:
            return f" {value}"


def refused(folder: Path, fault: str, error: type[Exception] = ValueError) -> None:
    """Requires that a folder of a model for one pair is refused, with the fault as a pattern of the message."""
    with pytest.raises(error, match=fault):
        read_marian_native(folder, "model", PAIR)


# -- changes ----------------------------------------------------------------------------------------------------------


def edit_arrays(folder: Path, edit: Edit) -> None:
    with np.load(folder / "model.npz") as archive:
        arrays: dict[str, Any] = dict(archive)
    edit(arrays)
    np.savez(folder / "model.npz", **arrays)


def set_options(folder: Path, **options: Any) -> None:
    """Changes what the model says of itself."""

    def edit(arrays: dict[str, Any]) -> None:
        values = OPTIONS | {"dim-vocabs": [len(arrays["Wemb"])] * 2}
        values |= {name.replace("_", "-"): value for name, value in options.items()}
        arrays[STORED_OPTIONS] = as_bytes(as_yaml({name: value for name, value in values.items() if value is not ...}))

    edit_arrays(folder, edit)


def as_bytes(text: str) -> Any:
    return np.frombuffer(text.encode() + b"\0", np.int8)


def set_decoder(folder: Path, **settings: Any) -> None:
    values = {"models": ["model.npz"], "vocabs": [VOCABULARY] * 2, "beam-size": 4, "normalize": 1}
    values |= {name.replace("_", "-"): value for name, value in settings.items()}
    (folder / "decoder.yml").write_text(as_yaml({k: v for k, v in values.items() if v is not ...}), encoding="utf-8")


# -- vocabularies ------------------------------------------------------------------------------------------------------


def write_vocabularies(
    folder: Path, tokenizers: Tokenizers, targets: Sequence[str]
) -> tuple[tuple[str, str], list[int]]:
    """Writes the files of texts and pieces; returns the names of the vocabularies and their sizes."""
    tags = [*map(target_token, targets)]
    if tokenizers in ("one model", "two models"):
        models = {"vocab.spm": marian_sentencepiece(SENTENCES, 260, tags)}
        if tokenizers == "two models":
            models = {"vocab.src.spm": marian_sentencepiece(SENTENCES[:4], 180, tags)}
            models["vocab.trg.spm"] = marian_sentencepiece(SENTENCES, 220, [])
        for name, model in models.items():
            (folder / name).write_bytes(model)
        sizes = [sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size() for model in models.values()]
        source, *others = models
        return (source, others[0] if others else source), [sizes[0], sizes[-1]]
    pieces = []
    for side, words in (("source", SOURCE_WORDS), ("target", TARGET_WORDS)):
        model = train_pieces("unigram", tuple(sentences(words, 20)), 90, normalization_rule_name="identity")
        (folder / f"{side}.spm").write_bytes(model)
        pieces.append(pieces_of(model))
    if tokenizers == "one list":
        entries = [*tags, *sorted({*pieces[0], *pieces[1]})]
        _write_list(folder / VOCABULARY, entries)
        return (VOCABULARY, VOCABULARY), [len(entries) + 2] * 2
    names = "opus.spm32k-spm32k.src.vocab.yml", "opus.spm32k-spm32k.trg.vocab.yml"
    lists = [*tags, *pieces[0]], pieces[1]
    for name, entries in zip(names, lists, strict=True):
        _write_list(folder / name, entries)
    return names, [len(entries) + 2 for entries in lists]


def _write_list(path: Path, entries: Sequence[str]) -> None:
    lines = [f'"{entry}": {number}' for number, entry in enumerate(("</s>", "<unk>", *entries))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def marian_sentencepiece(texts: tuple[str, ...], size: int, tags: Sequence[str], **others: Any) -> bytes:
    """With the ids that Marian trains them with."""
    options: dict[str, Any] = {"bos_id": -1, "eos_id": EOS_ID, "unk_id": UNK_ID, "user_defined_symbols": [*tags]}
    # The table of another rule of normalisation would be most of the file.
    return train_pieces("bpe", texts, size, normalization_rule_name="identity", **(options | others))


# -- weights -----------------------------------------------------------------------------------------------------------


def random_weights(options: Mapping[str, Any], seed: int, eos_bias: float) -> dict[str, Array]:
    """All parameters that Marian's Transformer has with these options; outputs depend on the source and end."""
    rng = np.random.default_rng(seed)
    weights = {name: _random(name, shape, rng, eos_bias) for name, shape in _shapes(options)}
    # The norm before the output. The output may be the embedding: else the likeliest token would be the one before.
    name = "decoder_top" if options["transformer-postprocess-top"] else f"decoder_l{options['dec-depth']}_ffn_ffn"
    scale = next(weights[f"{name}_{kind}"] for kind in ("ln_scale", "rms_scale") if f"{name}_{kind}" in weights)
    scale[:] = rng.normal(0, 3, scale.shape)  # wide enough that ties are rare
    return weights


def _shapes(options: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    width, inner = options["dim-emb"], options["transformer-dim-ffn"]
    source_size, target_size = options["dim-vocabs"]
    kinds = {"n": ("ln_scale", "ln_bias"), "r": ("rms_scale",)}

    def norms(prefix: str, operations: str, suffix: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
        for operation in operations:
            yield from ((f"{prefix}_{kind}{suffix}", (1, width)) for kind in kinds.get(operation, ()))

    if options["tied-embeddings-all"] or options["tied-embeddings-src"]:
        yield "Wemb", (source_size, width)
    else:
        yield from (("encoder_Wemb", (source_size, width)), ("decoder_Wemb", (target_size, width)))
    if not (options["tied-embeddings-all"] or options["tied-embeddings"]):
        yield "decoder_ff_logit_out_Wt", (target_size, width)
    if not options["output-omit-bias"]:
        yield "decoder_ff_logit_out_b", (1, target_size)
    before, after = options["transformer-preprocess"], options["transformer-postprocess"]
    for side, depth, attentions in (("encoder", "enc-depth", ["self"]), ("decoder", "dec-depth", ["self", "context"])):
        yield from norms(f"{side}_emb", options["transformer-postprocess-emb"], "_pre")
        yield from norms(f"{side}_top", options["transformer-postprocess-top"])
        for layer in range(1, options[depth] + 1):
            for attention in attentions:
                prefix = f"{side}_l{layer}_{attention}"
                for letter in "qkvo":
                    yield from ((f"{prefix}_W{letter}", (width, width)), (f"{prefix}_b{letter}", (1, width)))
                yield from norms(f"{prefix}_Wo", before, "_pre")
                yield from norms(f"{prefix}_Wo", after)
            prefix = f"{side}_l{layer}_ffn"
            yield from ((f"{prefix}_W1", (width, inner)), (f"{prefix}_b1", (1, inner)))
            yield from ((f"{prefix}_W2", (inner, width)), (f"{prefix}_b2", (1, width)))
            yield from norms(f"{prefix}_ffn", before, "_pre")
            yield from norms(f"{prefix}_ffn", after)


def _random(name: str, shape: tuple[int, int], rng: np.random.Generator, eos_bias: float) -> Array:
    fan_in, fan_out = shape
    if name == "decoder_ff_logit_out_b":
        values = rng.normal(0, 0.1, shape)
        values[0, EOS_ID] = eos_bias
        values[0, UNK_ID] = 2.0  # so that it would win now and then, if it were not suppressed
    elif "_scale" in name:
        values = rng.normal(1, 0.2, shape)
    elif fan_in == 1:
        values = rng.normal(0, 0.1, shape)
    elif name.endswith(("Wemb", "logit_out_Wt")):
        values = rng.normal(0, fan_out**-0.5, shape)
    else:
        values = rng.uniform(-1, 1, shape) * (6 / (fan_in + fan_out)) ** 0.5
        if name.endswith("_Wq"):
            values *= 3  # attention that picks a few tokens out
    return values.astype(np.float32)
