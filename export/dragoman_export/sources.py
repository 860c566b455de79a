"""The sentences on which an export is compared with its PyTorch source."""

import itertools
import random
from collections.abc import Sequence

from dragoman_export.checkpoint import Checkpoint
from dragoman_export.evaluation import read_lines
from dragoman_export.train.corpus import CorpusFile


def read_sources(checkpoint: Checkpoint, files: Sequence[CorpusFile], count: int) -> list[tuple[int, ...]]:
    """Encoder inputs from files of sentences, one a line, taking turns between the files.

    A file for `en-fr` holds English sentences to be translated to French. Without files, random tokens of random length
    stand in, in all directions: they exercise the arithmetic as well as sentences do, if not the same paths.

    Raises:
        ValueError: a file's direction is not one of the model, or there are fewer sentences than `count`.
    """
    config = checkpoint.config
    if not files:
        return _random_sources(checkpoint, count)
    tokenizer = checkpoint.open_tokenizer()
    columns = []
    for file in files:
        if file.languages not in config.directions:
            raise ValueError(f"the model does not translate {'-'.join(file.languages)}, the direction of {file.path}")
        prefix = config.source_prefix_ids[file.languages[1]]
        lines = [line for line in read_lines(file.path) if line.strip()]
        columns.append([(*prefix, *tokenizer.encode(line), config.eos_token_id) for line in lines])
    rows = itertools.zip_longest(*columns)
    sources = [source for row in rows for source in row if source is not None][:count]
    if len(sources) < count:
        raise ValueError(f"the source files have {len(sources)} sentences, {count} are needed")
    return sources


def _random_sources(checkpoint: Checkpoint, count: int) -> list[tuple[int, ...]]:
    config = checkpoint.config
    rng = random.Random(0)
    specials = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    specials.update(itertools.chain.from_iterable(config.source_prefix_ids.values()))
    token_ids = [i for i in range(config.dimensions.source_vocabulary_size) if i not in specials]
    prefixes = sorted(config.source_prefix_ids.values())
    longest = min(60, config.dimensions.max_positions - max(map(len, prefixes)) - 1)
    return [
        (*rng.choice(prefixes), *rng.choices(token_ids, k=rng.randint(1, longest)), config.eos_token_id)
        for _ in range(count)
    ]
