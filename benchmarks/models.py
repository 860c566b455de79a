"""The models that are measured: the shipped one, and one of the size that is most widely used."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sentencepiece import sentencepiece_model_pb2

from benchmarks.settings import SOURCE_LANGUAGE, TARGET_LANGUAGE, Settings
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.dimensions import Dimensions
from dragoman_export.model import Transformer
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Precision
from dragoman_server.text.tokenizer import load_tokenizer

DEFAULT_CHECKPOINT = Path(__file__).parent.parent / "models" / "default"
_OPUS_VOCABULARY_SIZE = 58_101


@dataclass(frozen=True)
class Model:
    """A checkpoint and the bundle that was exported from it."""

    name: str  # in the table
    checkpoint: Checkpoint
    bundle: Bundle

    def random_sources(self, count: int, num_tokens: int, seed: int = 0) -> list[tuple[int, ...]]:
        """Sources of exactly so many tokens, end-of-sentence included, of random ids."""
        rng = random.Random(seed)
        config = self.checkpoint.config
        specials = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
        token_ids = [i for i in range(config.dimensions.source_vocabulary_size) if i not in specials]
        return [(*rng.choices(token_ids, k=num_tokens - 1), config.eos_token_id) for _ in range(count)]

    def sentence_sources(self, sentences: Sequence[str]) -> list[tuple[int, ...]]:
        """Sentences as the encoder reads them, in the language that all parts translate to."""
        manifest = self.bundle.manifest
        tokenizer = load_tokenizer(manifest.tokenizer, self.bundle.folder)
        framing = manifest.framing_of((SOURCE_LANGUAGE, TARGET_LANGUAGE))
        return [framing.frame(tokenizer.encode(text)) for text in sentences]


def default_model() -> Model:
    """The shipped model at int8."""
    return Model("default", Checkpoint.load(DEFAULT_CHECKPOINT), Bundle.open(embedded_bundle()))


def at_precision(model: Model, folder: Path, precision: Precision) -> Model:
    """The same checkpoint in another bundle, which is written to `folder`."""
    bundle, _ = export(model.checkpoint, folder, precision, read_sources(model.checkpoint, (), 4))
    return Model(model.name, model.checkpoint, bundle)


def opus_base(
    folder: Path, settings: Settings, name: str = "opus-base", seed: int = 0, precision: Precision = "int8"
) -> Model:
    """The dimensions of the OPUS-MT models, with random weights, which cost the same as trained ones.

    The bundle is written into the folder, under its name. In a quick run the model is much smaller.
    """
    default = Checkpoint.load(DEFAULT_CHECKPOINT)
    dims = Dimensions(
        source_vocabulary_size=_OPUS_VOCABULARY_SIZE,
        target_vocabulary_size=_OPUS_VOCABULARY_SIZE,
        d_model=64 if settings.is_quick else 512,
        d_feed_forward=128 if settings.is_quick else 2048,
        num_encoder_layers=1 if settings.is_quick else 6,
        num_decoder_layers=1 if settings.is_quick else 6,
        activation="silu",
        position_layout="split",
        output_bias=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Transformer(dims)
    config = Config(
        name=name,
        dimensions=dims,
        pad_token_id=default.config.pad_token_id,
        bos_token_id=default.config.pad_token_id,  # Marian's models start the decoder with padding
        eos_token_id=default.config.eos_token_id,
        languages=LanguageTable.of([("en", "fr")]),
        framing=FramingTemplate((), (default.config.eos_token_id,), ()),
    )
    checkpoint = Checkpoint(config, model.eval(), _filled_up(default.tokenizer, _OPUS_VOCABULARY_SIZE))
    sources = read_sources(checkpoint, (), 8)
    # Calibrated, as a bundle for use is.
    calibration = sources if precision == "int8" else ()
    bundle, _ = export(checkpoint, folder / name, precision, sources[:4], calibration=calibration)
    return Model("OPUS-base, cut down" if settings.is_quick else "OPUS-base", checkpoint, bundle)


def _filled_up(tokenizer: bytes, vocabulary_size: int) -> bytes:
    """The SentencePiece model with more pieces, which are in no text."""
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer)  # type: ignore[attr-defined]
    for number in range(len(model.pieces), vocabulary_size):
        model.pieces.add(piece=f"\u2581<filling {number}>", score=-1000.0)
    filled: bytes = model.SerializeToString()
    return filled
