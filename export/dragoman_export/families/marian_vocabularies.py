"""The vocabularies of a model in Marian's own format, as a tokenizer of a bundle.

A vocabulary is a SentencePiece model whose ids are those of the embeddings (`.spm`), or a list of pieces and their ids
(`.yml`, `.json`, or a piece on each line). With the latter, texts are cut up by source.spm and target.spm beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dragoman_export.families.huggingface import TokenizerFiles
from dragoman_export.families.marian_yaml import read_yaml
from dragoman_export.reading import read_bytes
from dragoman_server.text.tokenizer import END_OF_SENTENCE, PADDING, UNKNOWN, all_pieces, load_model, target_language

# Embeddings beyond the vocabulary that a bundle may have; one is the token that the decoder begins with.
_MAX_SPARE_ROWS = 254
_CONTROL_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(32))
# Names for the token that the decoder begins with. No text becomes any of them.
_START_NAMES = (PADDING, "<s>", "<mask>")


class Vocabularies(NamedTuple):
    """A tokenizer, and the ids that a bundle has of it."""

    files: TokenizerFiles
    source: Mapping[str, int]
    end_of_sentence_id: int
    padding_id: int
    start_id: int  # of the decoder: the row behind those of Marian
    unknown_id: int
    control_ids: tuple[int, ...]  # of bytes that no text has


class _Side(NamedTuple):
    path: Path
    model: bytes  # of SentencePiece
    ids: dict[str, int]


def read_vocabularies(folder: Path, paths: tuple[Path, Path], rows: tuple[int, int]) -> Vocabularies:
    """The vocabularies of source and target, which may be one.

    Args:
        folder: of the model.
        paths: of the vocabularies.
        rows: number of embeddings of source and target.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a vocabulary is damaged or does not fit.
        BundleError: a SentencePiece model is damaged.
    """
    sides = [_read_side(folder, *side) for side in zip(("source", "target"), paths, rows, strict=True)]
    source, target = sides
    end_ids = [side.ids[END_OF_SENTENCE] for side in sides]
    if end_ids[0] != end_ids[1]:
        raise ValueError(
            f"{source.path} has {END_OF_SENTENCE} at {end_ids[0]}, but {target.path.name} at {end_ids[1]}; they must "
            "be the same"
        )
    start_id = rows[1]
    name = next((name for name in _START_NAMES if name not in target.ids), None)
    if name is None:
        raise ValueError(f"{target.path} has all of {', '.join(_START_NAMES)}; one of them must be free")
    of_target = target.ids | {name: start_id}
    if source.ids == target.ids and rows[0] == rows[1] and name == PADDING:
        files = TokenizerFiles("marian", (source.model, target.model, _json(of_target)))
        padding_id = start_id
    else:
        files = TokenizerFiles("pieces_pair", (source.model, _json(source.ids), target.model, _json(of_target)))
        padding_id = source.ids.get(PADDING, end_ids[0])
    control_ids = tuple(sorted(target.ids[piece] for piece in _CONTROL_BYTES & target.ids.keys()))
    return Vocabularies(files, source.ids, end_ids[0], padding_id, start_id, target.ids[UNKNOWN], control_ids)


def _json(ids: Mapping[str, int]) -> bytes:
    return json.dumps(ids, ensure_ascii=False).encode()


def _read_side(folder: Path, side: str, path: Path, num_rows: int) -> _Side:
    if path.suffix == ".fsv":
        raise ValueError(f"{path} is a factored vocabulary, which is not supported")
    if path.suffix == ".spm":
        model, ids = read_bytes(path), _sentencepiece_ids(path)
    else:
        ids = _listed_ids(path)
        if not (folder / f"{side}.spm").exists():
            raise FileNotFoundError(
                f"{folder} has no {side}.spm, by which texts are cut up into the pieces of {path.name}; BPE of "
                "subword-nmt is not supported"
            )
        model = read_bytes(folder / f"{side}.spm")
        load_model(folder / f"{side}.spm", Path.read_bytes)  # which refuses a damaged one
    if missing := [piece for piece in (END_OF_SENTENCE, UNKNOWN) if piece not in ids]:
        raise ValueError(f"{path} has no entry for {', '.join(missing)}")
    # Marian leaves out what is beyond the embeddings, too.
    for piece in [piece for piece, token_id in ids.items() if token_id >= num_rows]:
        if target_language(piece) is not None:
            raise ValueError(f"{path} has the language {piece} at {ids[piece]}, but there are {num_rows} embeddings")
        del ids[piece]
    size = max(ids.values(), default=-1) + 1
    if num_rows - size > _MAX_SPARE_ROWS:
        raise ValueError(f"{path} has {size} entries, but there are {num_rows} embeddings")
    if missing := [piece for piece in (END_OF_SENTENCE, UNKNOWN) if piece not in ids]:
        raise ValueError(f"{path} has {', '.join(missing)} beyond the {num_rows} embeddings")
    return _Side(path, model, ids)


def _sentencepiece_ids(path: Path) -> dict[str, int]:
    processor = load_model(path, Path.read_bytes)
    pieces = all_pieces(processor)
    for name, token_id in ((END_OF_SENTENCE, processor.eos_id()), (UNKNOWN, processor.unk_id())):
        if token_id < 0:
            raise ValueError(f"{path} has no {name}")
        pieces[token_id] = name  # whatever the model calls it
    return {piece: token_id for token_id, piece in enumerate(pieces)}


def _listed_ids(path: Path) -> dict[str, int]:
    if path.suffix in (".yml", ".yaml", ".json"):
        values = read_yaml(path)
    else:
        lines = read_bytes(path).decode(errors="replace").removesuffix("\n").split("\n")
        values = {line: number for number, line in enumerate(lines)}
        if len(values) < len(lines) or "" in values:
            raise ValueError(f"{path} has an entry twice, or an empty line")
    ids: dict[str, int] = {}
    for piece, token_id in values.items():
        if type(token_id) is not int or token_id < 0:
            raise ValueError(f"{path} has {piece!r:.80} with {token_id!r:.80}, not an id")
        ids[piece] = token_id
    if len(set(ids.values())) < len(ids):
        raise ValueError(f"{path} has one id for several pieces")
    return ids
