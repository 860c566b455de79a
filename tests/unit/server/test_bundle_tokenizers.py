"""What the tokenizer of a bundle must be, by its graphs and its manifest. All hashes are right."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dragoman_export.bundle.sources import read_sources
from dragoman_export.bundle.writer import export
from dragoman_export.families.marian import read_marian
from dragoman_export.stated import Stated
from dragoman_export.train.tokenizer import train_tokenizer
from dragoman_server.attention.results import Source as AttentionSource
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.framing import FramingTemplate
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import MANIFEST_FILE
from dragoman_server.errors import BundleError
from dragoman_server.text.segmentation import SourceSegment
from dragoman_server.text.tokenizer_files import TOKENIZER_FILES, TokenizerKind
from support.bundles import edit_manifest, put, replace_file
from support.marian_model import write_marian
from support.marian_tokenizer import train_sentencepiece
from support.piece_tokenizers import EOS_ID, PAD_ID, train_pieces, write_kind
from support.tiny_model import LANGUAGES, WORDS, random_checkpoint, random_sources, tokenizer


def refused(folder: Path, fault: str) -> None:
    with pytest.raises(BundleError, match=fault):
        Bundle.open(folder)


def replace_id(old: int, new: int) -> Callable[[dict[str, Any]], None]:
    """Everywhere in the sources of the certificate."""

    def edit(values: dict[str, Any]) -> None:
        for golden in values["parity"]["golden"]:
            golden["source_ids"] = [new if token_id == old else token_id for token_id in golden["source_ids"]]

    return edit


def reframed(prefix: list[int], suffix: list[int]) -> Callable[[dict[str, Any]], None]:
    """Puts ids before the certificate's sources and behind them, and the pieces that the tokenizer has for them."""

    def edit(values: dict[str, Any]) -> None:
        for golden in values["parity"]["golden"]:
            golden["source_ids"] = [*prefix, *golden["source_ids"], *suffix]
            golden["source_pieces"] = tokenizer().id_to_piece(golden["source_ids"])

    return edit


# -- one SentencePiece model -------------------------------------------------------------------------------------------


def test_a_tokenizer_with_more_pieces_than_there_are_embeddings_is_refused(folder: Path) -> None:
    replace_file(folder, "tokenizer.model", (embedded_bundle() / "tokenizer.model").read_bytes())
    refused(folder, "manifest.json: tokenizer is 'sentencepiece', must be one with .* 316 .*; its files have 8000")


def test_a_tokenizer_with_fewer_pieces_than_there_are_embeddings_is_refused(folder: Path) -> None:
    rng = random.Random(1)
    text = [" ".join(rng.choices(WORDS, k=8)) for _ in range(400)]
    other = train_tokenizer(text, 300, LANGUAGES)
    replace_file(folder, "tokenizer.model", other)
    refused(folder, r"manifest.json: tokenizer is 'sentencepiece', must be one with .* 316 .*; its files have 300")


def test_a_tokenizer_of_as_many_pieces_but_of_another_model_is_refused(folder: Path) -> None:
    golden = Bundle.open(folder).manifest.parity.golden
    pieces = {piece for sentence in golden for piece in sentence.source_pieces or ()}
    piece = max((piece for piece in pieces if piece.startswith("▁")), key=len).encode()
    model = (folder / "tokenizer.model").read_bytes()
    assert piece in model
    replace_file(folder, "tokenizer.model", model.replace(piece, piece[:-1] + b"#"))
    refused(
        folder, r"parity.golden\[\d\] is .*, must have the source_pieces .*: this is the tokenizer of another model"
    )


@pytest.mark.parametrize(
    ("edits", "fault"),
    [
        ([put("pad_token_id", 9)], "pad_token_id is 9, must be 0, which the tokenizer has for padding"),
        (
            [put("eos_token_id", 2), put("framing", "source_suffix", [2]), replace_id(3, 2)],
            "eos_token_id is 2, must be 3, which the tokenizer has",
        ),
        ([put("decoder_start_token_id", 9)], "decoder_start_token_id is 9, must be a control symbol"),
        (
            [put("languages", "token_ids", "fr", [9]), replace_id(5, 9)],
            r"ids\[fr\]\[0\] is 9, must be a control symbol",
        ),
        (
            [put("languages", "token_ids", "fr", [3]), replace_id(5, 3)],
            r"ids\[fr\]\[0\] is 3, must not be end-of-sent",
        ),
        (
            [put("languages", "token_ids", "fr", [0]), replace_id(5, 0)],
            r"ids\[fr\]\[0\] is 0, must not be end-of-sent",
        ),
        (
            [put("framing", "source_prefix", [1, "target"]), reframed([1], [])],
            r"source_prefix\[0\] is 1, must be a piece or",
        ),
        (
            [put("framing", "source_prefix", [0, "target"]), reframed([0], [])],
            r"source_prefix\[0\] is 0, must not be end-of",
        ),
        (
            [put("framing", "source_suffix", [3, 9]), reframed([], [9])],
            r"source_suffix\[1\] is 9, must be a control symbol",
        ),
    ],
)
def test_an_id_that_the_tokenizer_has_for_something_else_is_refused(
    folder: Path, edits: list[Callable[[dict[str, Any]], object]], fault: str
) -> None:
    assert tokenizer().piece_to_id("<2fr>") == 5
    for edit in edits:
        edit_manifest(folder, edit)
    refused(folder, f"manifest.json: .*{fault}")


def test_a_task_and_the_names_of_languages_may_be_words(folder: Path) -> None:
    """As T5 has them."""
    task, *names = (tokenizer().encode(word) for word in ("the", "dog", "cat"))
    token_ids = dict(zip(("de", "fr"), names, strict=True))

    def edit(values: dict[str, Any]) -> None:
        values["framing"]["source_prefix"] = [*task, "target"]
        values["languages"]["token_ids"] = token_ids
        for golden in values["parity"]["golden"]:
            golden["source_ids"] = [*task, *token_ids[golden["direction"][1]], *golden["source_ids"][1:]]
            golden["source_pieces"] = tokenizer().id_to_piece(golden["source_ids"])

    edit_manifest(folder, edit)
    assert Bundle.open(folder).manifest.framing_of(("en", "fr")).source_prefix == (*task, *token_ids["fr"])
    unknown_id = tokenizer().unk_id()
    token_ids["fr"] = [unknown_id]
    edit_manifest(folder, put("languages", "token_ids", token_ids))
    edit_manifest(folder, put("parity", "golden", [golden_of(folder, "de")]))
    refused(folder, rf"token_ids\[fr\]\[0\] is {unknown_id}, must be a control symbol")


def golden_of(folder: Path, target: str) -> dict[str, Any]:
    """A sentence of the certificate that is translated into this language."""
    golden = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["parity"]["golden"]
    return next(sentence for sentence in golden if sentence["direction"][1] == target)


@pytest.mark.parametrize("contents", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_tokenizer_is_refused(folder: Path, contents: bytes) -> None:
    replace_file(folder, "tokenizer.model", contents)
    refused(folder, "tokenizer.model cannot be loaded as a SentencePiece model")


# -- Marian's two models and a vocabulary ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def marian_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    write_marian(folder / "source")
    checkpoint = read_marian(folder / "source", "opus", Stated())
    export(checkpoint, folder / "bundle", "fp32", read_sources(checkpoint, (), 2))
    return folder / "bundle"


@pytest.fixture
def marian(marian_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(marian_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_vocabulary(folder: Path, edit: Callable[[dict[str, int]], object]) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    edit(vocabulary)
    replace_file(folder, "vocab.json", json.dumps(vocabulary).encode())


def test_a_vocabulary_with_more_ids_than_there_are_embeddings_is_refused(marian: Path) -> None:
    edit_vocabulary(marian, lambda vocabulary: vocabulary.update(more=len(vocabulary)))
    refused(marian, "manifest.json: tokenizer is 'marian', must be one with as many pieces as there are embeddings")


def test_another_padding_in_the_vocabulary_is_refused(marian: Path) -> None:
    def exchange(vocabulary: dict[str, int]) -> None:
        vocabulary[_piece_of(vocabulary, 5)], vocabulary["<pad>"] = vocabulary["<pad>"], 5

    edit_vocabulary(marian, exchange)
    refused(marian, "manifest.json: pad_token_id is .*, must be 5, which the tokenizer has for padding")


def _piece_of(vocabulary: dict[str, int], token_id: int) -> str:
    return next(piece for piece, found in vocabulary.items() if found == token_id)


def test_other_pieces_under_the_same_ids_are_refused(marian: Path) -> None:
    golden = Bundle.open(marian).manifest.parity.golden[0]

    def exchange(vocabulary: dict[str, int]) -> None:
        first, second = sorted(set(golden.source_ids) - {0, 1})[:2]
        one, other = _piece_of(vocabulary, first), _piece_of(vocabulary, second)
        vocabulary[one], vocabulary[other] = second, first

    edit_vocabulary(marian, exchange)
    refused(marian, r"parity.golden\[0\] is .*: this is the tokenizer of another model")


@pytest.mark.parametrize("name", ["source.spm", "target.spm"])
def test_a_model_of_another_language_is_refused(marian: Path, name: str) -> None:
    words = ["собака", "кот", "птица", "дерево", "дом", "река", "большой", "видит", "берёт", "находит", "красный"]
    replace_file(marian, name, train_sentencepiece(words))
    refused(
        marian, "manifest.json: tokenizer is 'marian', must be one whose vocabulary has the pieces .* a share of 0."
    )


@pytest.mark.parametrize(
    ("contents", "fault"),
    [
        (b'{"</s>": 0, "<unk>": 1, "<pad>": 2, "\\ud800": 3}', r"it has '\\ud800', half of a surrogate pair"),
        (b'{"</s>": 0, "<unk>": 1, "<pad>": 2, "<pad>": 3}', "it has the key '<pad>' twice"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"</s>": 0, "<unk>": 1, "<pad>": 1e9}', "is not an object of pieces and their ids"),
    ],
)
def test_what_is_no_vocabulary_is_refused(marian: Path, contents: bytes, fault: str) -> None:
    replace_file(marian, "vocab.json", contents)
    refused(marian, f"vocab.json .*{fault}")


# -- the kinds of M2M-100 and BART -------------------------------------------------------------------------------------

SPECIAL_OF_FRENCH: dict[TokenizerKind, str] = {"pieces": "fra_Latn", "byte_bpe": "madeupword0000"}


def export_with(kind: TokenizerKind, folder: Path, num_spare_rows: int = 2) -> Path:
    """A tiny model with a tokenizer of this kind, whose targets begin with a token of their language."""
    files = folder / "tokenizer"
    files.mkdir(parents=True)
    write_kind(kind, files)
    first, *others = ((files / name).read_bytes() for name in TOKENIZER_FILES[kind])
    vocabulary = json.loads((files / "vocab.json").read_text(encoding="utf-8"))
    size = len(vocabulary) + num_spare_rows
    checkpoint = random_checkpoint(source_vocabulary_size=size, target_vocabulary_size=size)
    config = dataclasses.replace(
        checkpoint.config,
        pad_token_id=PAD_ID,
        bos_token_id=EOS_ID,
        eos_token_id=EOS_ID,
        languages=LanguageTable.of([("en", "fr")], {"fr": (vocabulary[SPECIAL_OF_FRENCH[kind]],)}),
        framing=FramingTemplate((), (EOS_ID,), ("target",)),
        tokenizer=kind,
    )
    names = TOKENIZER_FILES[kind][1:]
    checkpoint = dataclasses.replace(
        checkpoint, config=config, tokenizer=first, companion_files=dict(zip(names, others, strict=True))
    )
    export(checkpoint, folder / "bundle", "fp32", random_sources(checkpoint, 2))
    return folder / "bundle"


@pytest.fixture(scope="module", params=SPECIAL_OF_FRENCH)
def kind(request: pytest.FixtureRequest) -> TokenizerKind:
    kind: TokenizerKind = request.param
    return kind


@pytest.fixture(scope="module")
def exported(kind: TokenizerKind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_with(kind, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def vocabulary_bundle(exported: Path, tmp_path: Path) -> Path:
    shutil.copytree(exported, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_may_have_these_tokenizers(kind: TokenizerKind, exported: Path) -> None:
    bundle = Bundle.open(exported)
    assert bundle.manifest.files.keys() >= set(TOKENIZER_FILES[kind])
    text = "The old cat"
    assert bundle.tokenizer.decode(bundle.tokenizer.encode(text)) == text


def test_more_spare_rows_than_any_model_has_are_refused(kind: TokenizerKind, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=f"tokenizer is '{kind}', must be one with as many pieces as"):
        export_with(kind, tmp_path, 256)


def test_a_word_for_a_language_is_refused(vocabulary_bundle: Path) -> None:
    bundle = Bundle.open(vocabulary_bundle)
    (word,) = bundle.manifest.languages.token_ids["fr"]
    word -= 5
    assert not bundle.tokenizer.is_control(word)

    def edit(values: dict[str, Any]) -> None:
        values["languages"]["token_ids"]["fr"] = [word]
        for golden in values["parity"]["golden"]:
            golden["token_ids"][0] = word

    edit_manifest(vocabulary_bundle, edit)
    refused(vocabulary_bundle, rf"token_ids\[fr\]\[0\] is {word}, must be a control symbol of the tokenizer")


def test_more_ids_than_embeddings_are_refused(kind: TokenizerKind, vocabulary_bundle: Path) -> None:
    edit_vocabulary(vocabulary_bundle, lambda ids: ids.update({f"more{i}": len(ids) + i for i in range(3)}))
    refused(vocabulary_bundle, f"manifest.json: tokenizer is '{kind}', must be one with as many pieces as")


def test_a_vocabulary_with_a_gap_is_refused(vocabulary_bundle: Path) -> None:
    edit_vocabulary(vocabulary_bundle, lambda ids: ids.update(more=len(ids) + 1))
    refused(vocabulary_bundle, r"vocab.json has \d+ pieces, but none with id")


@pytest.mark.parametrize(("num_rows", "is_refused"), [(384, False), (259, False), (258, True), (259 + 256, True)])
def test_a_tokenizer_of_bytes_has_no_file_and_some_spare_rows(tmp_path: Path, num_rows: int, is_refused: bool) -> None:
    checkpoint = random_checkpoint(source_vocabulary_size=num_rows, target_vocabulary_size=num_rows)
    config = dataclasses.replace(
        checkpoint.config,
        pad_token_id=0,
        bos_token_id=2,  # unknown, which a decoder may begin with
        eos_token_id=1,
        languages=LanguageTable.of([("en", "fr")]),
        framing=FramingTemplate((3 + ord("f"), 3 + ord(":")), (1,), ()),
        tokenizer="bytes",
    )
    checkpoint = dataclasses.replace(checkpoint, config=config, tokenizer=b"")

    def write() -> None:
        export(checkpoint, tmp_path / "bundle", "fp32", random_sources(checkpoint, 2))

    if is_refused:
        with pytest.raises(BundleError, match="tokenizer is 'bytes', must be one with as many pieces as"):
            write()
    else:
        write()
        bundle = Bundle.open(tmp_path / "bundle")
        assert {path.suffix for path in (tmp_path / "bundle").iterdir()} == {".json", ".onnx", ".bin"}
        assert bundle.tokenizer.decode(bundle.tokenizer.encode("é")) == "é"


def test_a_model_of_other_pieces_than_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = export_with("pieces", tmp_path)
    replace_file(folder, "tokenizer.model", train_pieces("unigram", ("γάτα", "σκύλος", "πουλί", "δέντρο"), 30))
    refused(folder, "tokenizer is 'pieces', must be one whose vocabulary has the pieces .* a share of 0")


# -- a vocabulary each for source and target ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose language is told to the encoder."""
    folder = tmp_path_factory.mktemp("pair")
    write_kind("pieces_pair", folder)
    first, *others = ((folder / name).read_bytes() for name in TOKENIZER_FILES["pieces_pair"])
    source, target = (json.loads((folder / f"{side}_vocab.json").read_bytes()) for side in ("source", "target"))
    assert len(source) < len(target)
    checkpoint = random_checkpoint(
        source_vocabulary_size=len(source), target_vocabulary_size=len(target), shared_vocabulary=False
    )
    config = dataclasses.replace(
        checkpoint.config,
        pad_token_id=source["<pad>"],
        bos_token_id=target["<pad>"],
        eos_token_id=0,
        languages=LanguageTable.of([("en", "fr")], {"fr": (source[">>fra<<"],)}),
        framing=FramingTemplate(("target",), (0,), ()),
        tokenizer="pieces_pair",
    )
    companions: dict[str, bytes] = dict(zip(TOKENIZER_FILES["pieces_pair"][1:], others, strict=True))
    checkpoint = dataclasses.replace(checkpoint, config=config, tokenizer=first, companion_files=companions)
    export(checkpoint, folder / "bundle", "fp32", random_sources(checkpoint, 2))
    return folder / "bundle"


@pytest.fixture
def pair(pair_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(pair_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def edit_side(folder: Path, side: str, edit: Callable[[dict[str, int]], object]) -> None:
    name = f"{side}_vocab.json"
    vocabulary = json.loads((folder / name).read_bytes())
    edit(vocabulary)
    replace_file(folder, name, json.dumps(vocabulary).encode())


def exchange_with(piece: str, token_id: int) -> Callable[[dict[str, int]], object]:
    def exchange(vocabulary: dict[str, int]) -> None:
        vocabulary[_piece_of(vocabulary, token_id)], vocabulary[piece] = vocabulary[piece], token_id

    return exchange


def test_a_bundle_may_have_two_vocabularies(pair: Path) -> None:
    bundle = Bundle.open(pair)
    text = "The old cat"
    assert bundle.tokenizer.decode(bundle.tokenizer.encode_target(text)) == text
    golden = bundle.manifest.parity.golden[0]
    assert golden.source_pieces[0] == ">>fra<<"
    assert golden.source_pieces == tuple(bundle.tokenizer.source_pieces(golden.source_ids))


@pytest.mark.parametrize(("side", "number"), [("source", 1), ("target", 1), ("target", -300)])
def test_each_vocabulary_must_fit_its_own_embeddings(pair: Path, side: str, number: int) -> None:
    if number > 0:
        edit_side(pair, side, lambda vocabulary: vocabulary.update(more=len(vocabulary)))
    else:
        edit_side(pair, side, lambda ids: [ids.pop(piece) for piece in [*ids] if ids[piece] > 1])
    refused(pair, "tokenizer is 'pieces_pair', must be one with as many pieces|must be one whose vocabulary has the")


def test_end_of_sentence_must_be_the_same_for_source_and_target(pair: Path) -> None:
    edit_side(pair, "target", exchange_with("</s>", 5))
    refused(pair, "eos_token_id is 0, must be the same for source and target; the target's vocabulary has .* at 5")


def test_another_end_of_sentence_of_the_source_is_refused(pair: Path) -> None:
    edit_side(pair, "source", exchange_with("</s>", 5))
    refused(pair, "eos_token_id is 0, must be 5, which the tokenizer has for end-of-sentence")


def test_a_language_must_be_a_control_symbol_of_the_side_that_has_it(pair: Path) -> None:
    """A word of the source that is a control symbol of the target."""
    tag = Bundle.open(pair).manifest.languages.token_ids["fr"][0]
    assert not Bundle.open(pair).tokenizer.is_control(tag)
    edit_side(pair, "source", exchange_with(">>fra<<", 5))
    refused(pair, rf"languages.token_ids\[fr\]\[0\] is {tag}, must be a control symbol of the tokenizer")


def test_the_decoder_must_start_with_a_control_symbol_of_the_target(pair: Path) -> None:
    tag = Bundle.open(pair).manifest.languages.token_ids["fr"][0]
    edit_manifest(pair, put("decoder_start_token_id", tag))
    refused(pair, f"decoder_start_token_id is {tag}, must be a control symbol of the tokenizer")


def test_a_language_that_targets_begin_with_is_the_targets(pair: Path) -> None:
    """Its id may be beyond the embeddings of the source."""
    bundle = Bundle.open(pair)
    (tag,) = bundle.manifest.languages.token_ids["fr"]
    target = json.loads((pair / "target_vocab.json").read_bytes())
    assert target[">>fra<<"] >= bundle.tokenizer.source_vocabulary.size

    def reframe(token_id: int) -> Callable[[dict[str, Any]], None]:
        def edit(values: dict[str, Any]) -> None:
            values["framing"] = {"source_prefix": [], "source_suffix": [0], "target_prefix": ["target"]}
            values["languages"]["token_ids"]["fr"] = [token_id]
            for golden in values["parity"]["golden"]:
                for name in ("source_ids", "source_pieces"):
                    golden[name] = [part for part in golden[name] if part not in (tag, ">>fra<<")]
                golden["token_ids"][0] = token_id

        return edit

    edit_manifest(pair, reframe(target[">>fra<<"]))
    assert Bundle.open(pair).manifest.framing_of(("en", "fr")).target_prefix == (target[">>fra<<"],)
    edit_manifest(pair, reframe(5))
    refused(pair, r"languages.token_ids\[fr\]\[0\] is 5, must be a control symbol of the tokenizer")


def test_attention_shows_the_pieces_of_each_side(pair: Path) -> None:
    bundle = Bundle.open(pair)
    codec, framing = bundle.tokenizer, bundle.manifest.framing_of(("en", "fr"))
    text = "The old cat"
    ids = codec.encode(text)
    source = AttentionSource(text, SourceSegment(0, len(text), tuple(ids)), framing.frame(ids), framing)
    assert [token.piece for token in source.tokens(codec)] == [">>fra<<", *codec.source_pieces(ids), "</s>"]
