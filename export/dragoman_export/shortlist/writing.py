"""Writing `vocabulary.bin`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dragoman_export.shortlist.tables import Table
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.bundle.vocabulary import MAGIC, Head, TableHead, padded, tokenizer_digest


def vocabulary_bytes(
    manifest: Manifest, num_source_ids: int, languages: Mapping[str, NDArray[Any]], tables: Sequence[Table]
) -> bytes:
    """The contents of the file.

    Args:
        manifest: of the bundle; has the digests of its tokenizer's files.
        num_source_ids: size of the source's vocabulary.
        languages: the ids of each target language that has a list. Languages with the same ids share it.
        tables: of directions.
    """
    size = manifest.architecture.vocabulary_size
    lists: dict[bytes, int] = {}
    indexes = {code: lists.setdefault(_bits(ids, size), len(lists)) for code, ids in languages.items()}
    head = Head(
        tokenizer_digest(manifest),
        num_source_ids,
        size,
        len(lists),
        indexes,
        tuple(TableHead(*table.direction, len(table.frequent), len(table.links)) for table in tables),
    )
    encoded = json.dumps(msgspec.to_builtins(head)).encode()
    contents = bytearray(MAGIC + len(encoded).to_bytes(4, "little") + encoded)
    parts: list[bytes | NDArray[Any]] = [b"".join(lists)]
    for table in tables:
        parts += [table.offsets, table.frequent, table.links]
    for (kind, _), part in zip(head.sections(), parts, strict=True):
        contents.extend(bytes(padded(len(contents)) - len(contents)))
        contents.extend(part if isinstance(part, bytes) else part.astype(kind).tobytes())
    return bytes(contents)


def _bits(ids: NDArray[Any], size: int) -> bytes:
    is_in = np.zeros(size, bool)
    is_in[ids] = True
    return np.packbits(is_in, bitorder="little").tobytes()
