"""The sentences on which an export is compared with its PyTorch source, and with which int8 is calibrated."""

import itertools
import random
from collections.abc import Sequence
from functools import cache
from importlib import resources

from langcodes import Language, tag_is_valid

from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.text_files import CorpusFile, read_lines
from dragoman_server.bundle.bundle import Bundle

# Between the samples that two directions begin with; no number of samples is a multiple of it.
_STRIDE = 7
_MAX_RANDOM_TOKENS = 24


def read_sources(checkpoint: Checkpoint, files: Sequence[CorpusFile], count: int) -> list[tuple[int, ...]]:
    """Encoder inputs from files of sentences, one a line, taking turns between the files.

    A file for `en-fr` holds English sentences to be translated to French. Without files they are those of
    `sample_sources`; where it has none either, random tokens, which exercise the arithmetic as well as sentences do, if
    not the same paths.

    Raises:
        ValueError: a file's direction is not one of the model, a sentence is longer than the model reads, or the files
            have fewer sentences than `count`.
    """
    if not files:
        return sample_sources(checkpoint, count) or _random_sources(checkpoint, count)
    config, tokenizer = checkpoint.config, checkpoint.open_tokenizer()
    limit = config.dimensions.max_positions
    columns = []
    for file in files:
        if file.languages not in config.directions:
            raise ValueError(
                f"the model does not translate {' to '.join(file.languages)}, the direction of {file.path}"
            )
        prefix = config.source_prefix_ids[file.languages[1]]
        column = []
        for number, line in enumerate(read_lines(file.path), start=1):
            if line.strip():
                source = (*prefix, *tokenizer.encode(line), config.eos_token_id)
                if len(source) > limit:
                    raise ValueError(
                        f"{file.path}, line {number} has {len(source)} tokens; the model reads at most {limit}"
                    )
                column.append(source)
        columns.append(column)
    rows = itertools.zip_longest(*columns)
    sources = [source for row in rows for source in row if source is not None][:count]
    if len(sources) < count:
        raise ValueError(f"the source files have {len(sources)} sentences, {count} are needed")
    return sources


def sample_sources(checkpoint: Checkpoint, count: int) -> list[tuple[int, ...]]:
    """Encoder inputs from the sample sentences of the model's source languages, taking turns between the directions.

    Fewer than `count` where there are not so many samples, none where there are none of any source language.
    """
    config, tokenizer = checkpoint.config, checkpoint.open_tokenizer()
    columns = []
    for index, (source, target) in enumerate(config.directions):
        sentences = sample_sentences(source)
        # Of many directions each gives few sentences: not all of them the same.
        start = index * _STRIDE % len(sentences) if sentences else 0
        prefix = config.source_prefix_ids[target]
        columns.append([(prefix, sentence) for sentence in (*sentences[start:], *sentences[:start])])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*columns))
    encoded = ((*turn[0], *tokenizer.encode(turn[1]), config.eos_token_id) for turn in turns if turn is not None)
    fitting = (source for source in encoded if len(source) <= config.dimensions.max_positions)
    return list(itertools.islice(fitting, count))


def measured_sources(checkpoint: Checkpoint, bundle: Bundle) -> list[tuple[int, ...]]:
    """The sentences that a bundle was measured on when it was exported, as far as they are known.

    An fp32 bundle must reproduce any sentences, so these are the exporter's own. What the tolerance of another one says
    holds of the sentences that it was measured on: the exporter's own if the golden ones are among these, else no
    others than the golden ones are known.
    """
    parity = bundle.manifest.parity
    golden = [sentence.source_ids for sentence in parity.golden]
    own = read_sources(checkpoint, (), parity.num_sentences)
    return own if bundle.manifest.precision == "fp32" or set(golden) <= set(own) else golden


def languages_without_samples(config: Config) -> list[str]:
    """The source languages of a model that the exporter ships no sentences of."""
    return sorted({source for source, _ in config.directions if not sample_sentences(source)})


@cache
def sample_sentences(language_code: str) -> tuple[str, ...]:
    """The sentences that are shipped of a language, in its script; none of most languages."""
    if not tag_is_valid(language_code):
        return ()
    wanted = _language_and_script(language_code)
    for path in (resources.files("dragoman_export") / "samples").iterdir():
        if _language_and_script(path.name.removesuffix(".txt")) == wanted:
            return tuple(path.read_text(encoding="utf-8").splitlines())
    return ()


def _language_and_script(language_code: str) -> tuple[str | None, str | None]:
    likely = Language.get(language_code).maximize()
    return likely.language, likely.script


def _random_sources(checkpoint: Checkpoint, count: int) -> list[tuple[int, ...]]:
    config = checkpoint.config
    rng = random.Random(0)
    specials = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    specials.update(itertools.chain.from_iterable(config.source_prefix_ids.values()))
    token_ids = [i for i in range(config.dimensions.source_vocabulary_size) if i not in specials]
    prefixes = sorted(config.source_prefix_ids.values())
    longest = min(_MAX_RANDOM_TOKENS, config.dimensions.max_positions - max(map(len, prefixes)) - 1)
    return [
        (*rng.choice(prefixes), *rng.choices(token_ids, k=rng.randint(1, longest)), config.eos_token_id)
        for _ in range(count)
    ]
