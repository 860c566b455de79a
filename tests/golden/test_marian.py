"""Imported Marian models against `transformers`, which they were written by."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import MarianMTModel, MarianTokenizer

from dragoman import Client
from dragoman_export.bundle.parity import Comparison
from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_export.families.marian import read_marian
from dragoman_export.stated import Stated
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.framing import Framing
from dragoman_server.bundle.manifest import Generation
from dragoman_server.runtime.runner import OnnxRunner
from dragoman_server.text.tokenizer import TextCodec, load_tokenizer
from support.marian_model import huggingface_tokenizer, write_marian
from support.marian_tokenizer import EOS_ID, SOURCE_WORDS, sentences
from support.process import server_process

MAX_NEW_TOKENS = 24
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "OPUS-MT": {},
    "gelu, unscaled, deeper decoder": {
        "activation_function": "gelu",
        "scale_embedding": False,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    },
    "relu, separate embeddings": {
        "activation_function": "relu",
        "share_encoder_decoder_embeddings": False,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
    },
    "several targets": {"targets": ("fra", "deu"), "decoder_layers": 3},
    "separate vocabularies": {"separate_vocabs": True, "targets": ("fra", "deu")},
}


@dataclass(frozen=True)
class Imported:
    """A model of `transformers` and the bundle that was made of it."""

    model: MarianMTModel
    tokenizer: MarianTokenizer
    checkpoint: Checkpoint
    bundle: Bundle
    comparison: Comparison

    @property
    def codec(self) -> TextCodec:
        return load_tokenizer(self.bundle.manifest.tokenizer, self.bundle.folder)

    def sources(self) -> Iterator[tuple[int, ...]]:
        """Encoder inputs of random sentences, with the target's token where there are several."""
        framings = [self.bundle.manifest.framing_of(direction) for direction in self.bundle.manifest.languages]
        for i, text in enumerate(sentences(SOURCE_WORDS, 20, seed=1)):
            yield framings[i % len(framings)].frame(self.codec.encode(text))


@pytest.fixture(scope="module", params=list(CONFIGURATIONS.values()), ids=list(CONFIGURATIONS))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp("marian")
    model = write_marian(folder / "source", **request.param)
    checkpoint = read_marian(folder / "source", "opus", Stated())
    # What is cut off shall not look finished.
    model.generation_config.update(max_length=1 + MAX_NEW_TOKENS, forced_eos_token_id=None)
    bundle, comparison = export(checkpoint, folder / "bundle", "fp32", read_sources(checkpoint, (), 10))
    return Imported(model, huggingface_tokenizer(folder / "source"), checkpoint, bundle, comparison)


@pytest.fixture(scope="module")
def client(imported: Imported) -> Iterator[Client]:
    with server_process(imported.bundle.folder) as process, Client(process.address) as client:
        yield client


def generate(model: MarianMTModel, source: tuple[int, ...]) -> tuple[int, ...]:
    """What `transformers` generates greedily, without the token that the decoder begins with."""
    output: list[int] = model.generate(torch.tensor([source]), num_beams=1, do_sample=False)[0].tolist()
    return tuple(output[1:])


def decode(bundle: Bundle, runner: OnnxRunner, source: tuple[int, ...]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """Greedy tokens of the bundle's graphs under its generation defaults, and the log-probs of every step [T, V]."""
    manifest = bundle.manifest
    runner.encode([source], first_row=0)
    token_ids = [manifest.decoder_start_token_id]
    steps: list[NDArray[np.float32]] = []
    while len(token_ids) <= MAX_NEW_TOKENS and token_ids[-1] != manifest.eos_token_id:
        output = runner.decode_step(token_ids[-1:], [len(steps)], all_rows=[0])
        steps.append(output.all_logprobs[0].copy())
        allowed = steps[-1].copy()
        allowed[list(manifest.generation.suppressed_token_ids)] = -np.inf
        token_ids.append(int(allowed.argmax()))
    return tuple(token_ids[1:]), np.stack(steps)


@torch.inference_mode()
def test_tokens_and_log_probs_are_those_of_transformers(imported: Imported) -> None:
    pad_id = imported.model.config.pad_token_id
    runner = OnnxRunner.open(imported.bundle, max_rows=1, num_threads=1)
    targets = set()
    num_suppressed = 0
    for source in imported.sources():
        token_ids, found = decode(imported.bundle, runner, source)
        assert token_ids == generate(imported.model, source)
        decoder_input = torch.tensor([[pad_id, *token_ids[:-1]]])
        logits = imported.model(input_ids=torch.tensor([source]), decoder_input_ids=decoder_input).logits
        np.testing.assert_allclose(found, logits[0].log_softmax(-1).numpy(), atol=1e-4, rtol=0)
        targets.add(token_ids)
        num_suppressed += int((found.argmax(axis=1) == pad_id).sum())
    # Otherwise what was compared would mean little.
    assert len(targets) > 10
    assert len({len(target) for target in targets}) > 1
    assert num_suppressed > 0


def test_the_bundle_is_what_was_imported(imported: Imported) -> None:
    manifest, config = imported.bundle.manifest, imported.model.config
    assert imported.comparison.divergences == ()
    assert manifest.name == "opus"
    assert manifest.tokenizer == ("pieces_pair" if imported.tokenizer.separate_vocabs else "marian")
    assert manifest.generation == Generation(4, 1.0, False, (config.pad_token_id,))
    assert manifest.eos_token_id == EOS_ID
    assert manifest.decoder_start_token_id == manifest.pad_token_id == config.pad_token_id
    assert manifest.limits.max_source_tokens == config.max_position_embeddings
    token_ids = imported.tokenizer.get_vocab()
    if ">>fra<<" in token_ids:
        assert [*manifest.languages] == [("en", "fr"), ("en", "de")]
        assert manifest.framing_of(("en", "fr")) == Framing((token_ids[">>fra<<"],), (EOS_ID,), (), (EOS_ID,))
        assert manifest.framing_of(("en", "de")) == Framing((token_ids[">>deu<<"],), (EOS_ID,), (), (EOS_ID,))
    else:
        assert [*manifest.languages] == [("en", "fr")]
        assert manifest.framing_of(("en", "fr")) == Framing((), (EOS_ID,), (), (EOS_ID,))


TEXTS = [
    *sentences(SOURCE_WORDS, 20, seed=2),
    "",
    " ",
    "  the   old\tdog \n",
    "The DOG, sees!",
    "où est la forêt",  # pieces that the target's model alone knows
    "ê",
    "日本語 the 🙂 cat",
    "naïve▁dog",
    "a\u00a0small\u202fbird",
    "ﬁnds ①",
    "NUL \x00 inside",
    "<2fr> >> cat << 3 < 4",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_transformers(imported: Imported, text: str) -> None:
    assert [*imported.codec.encode(text), EOS_ID] == imported.tokenizer(text).input_ids


@pytest.mark.parametrize("text", TEXTS)
def test_ids_of_targets_are_those_of_transformers(imported: Imported, text: str) -> None:
    assert [*imported.codec.encode_target(text), EOS_ID] == imported.tokenizer(text_target=text).input_ids


def test_texts_are_those_of_transformers(imported: Imported) -> None:
    vocabulary_size = imported.model.config.vocab_size
    rng = np.random.default_rng(0)
    target_tokens = set(sum(imported.bundle.manifest.languages.token_ids.values(), ()))
    for _ in range(50):
        ids = [i for i in rng.integers(0, vocabulary_size, rng.integers(0, 12)).tolist() if i not in target_tokens]
        expected = imported.tokenizer.decode(ids, skip_special_tokens=True, use_source_tokenizer=False)
        assert imported.codec.decode(ids) == expected
        assert imported.codec.pieces(ids) == imported.tokenizer.convert_ids_to_tokens(ids)


def test_the_pickled_weights_of_older_folders_give_the_same_model(tmp_path: Path) -> None:
    """These have every tied tensor under all of its names, and the position tables."""
    model = write_marian(tmp_path)
    expected = read_marian(tmp_path, "opus", Stated()).model.state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = read_marian(tmp_path, "opus", Stated()).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_alignments_are_those_of_attention(imported: Imported, client: Client) -> None:
    """Both leave out the mark alone that stands before a target whose first letter is a piece of its own."""
    *_, (source, target) = imported.bundle.manifest.languages
    first, *_ = imported.codec.encode_target("êchat")
    assert imported.codec.pieces([first]) == ["\u2581"]
    for text, target_text in [("the dog", "êchat  où"), ("ﬁnds the dog", "  le chat"), ("ê dog", "un chat")]:
        found = client.align(text, target_text, source=source, target=target)
        weights = client.attention(text, target_text, source=source, target=target, dtype="f32")
        expected = weights.alignment()
        assert (found.source_tokens, found.target_tokens) == (expected.source_tokens, expected.target_tokens)
        assert np.allclose(found.token_scores, expected.token_scores, atol=1e-6)
        assert found.pharaoh() == expected.pharaoh()
        assert (found.target_text, found.target_words) == (target_text, expected.target_words)


@torch.inference_mode()
def test_an_imported_model_is_served_with_its_own_beam(imported: Imported, client: Client) -> None:
    """Text in, text out over gRPC: what `transformers` makes of it with the folder's generation_config.json."""
    manifest = imported.bundle.manifest
    *_, (source, target) = manifest.languages
    texts = sentences(SOURCE_WORDS, 4, seed=3)
    translations = client.translate(texts, source=source, target=target, max_target_tokens=MAX_NEW_TOKENS)
    streams = [
        "".join(client.stream(text, source=source, target=target, max_target_tokens=MAX_NEW_TOKENS)) for text in texts
    ]
    assert streams == [translation.text for translation in translations]
    for text, translation in zip(texts, translations, strict=True):
        ids = [*manifest.framing_of((source, target)).source_prefix, *imported.tokenizer(text).input_ids]
        output = imported.model.generate(torch.tensor([ids]), max_length=MAX_NEW_TOKENS + 1, forced_eos_token_id=None)
        assert translation.token_ids == tuple(t for t in output[0, 1:].tolist() if t != manifest.pad_token_id)
