"""The sentences on which an export is compared with its PyTorch source, and with which int8 is calibrated."""

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources

from langcodes import Language, tag_distance, tag_is_valid

from dragoman_export.checkpoint import Checkpoint, Config
from dragoman_export.greedy import Source, num_parameters
from dragoman_export.model import Transformer
from dragoman_export.text_files import CorpusFile, read_lines
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction, LanguageTable

# On which a model is compared with its export, and with which int8 is calibrated.
NUM_SOURCES = 200
# A large model is compared on fewer: PyTorch and ONNX Runtime together take about a second for each 250 million
# parameters of a sentence.
_MAX_COMPARED_PARAMETERS = 20_000_000_000
_MIN_COMPARED = 32

# Between the samples that two directions begin with; no number of samples is a multiple of it.
_STRIDE = 7
# By `tag_distance`: two codes of one language, such as Norwegian and Bokmål, or Persian and Dari.
_MAX_DISTANCE = 4
_MAX_RANDOM_TOKENS = 24
_MAX_RANDOM_DIRECTIONS = 1000
# The tags of samples, by how much is translated from and to these languages, roughly. All others come after them.
_MOST_SERVED = (
    "en",
    "zh",
    "es",
    "fr",
    "de",
    "pt",
    "ru",
    "ja",
    "ar",
    "it",
    "ko",
    "nl",
    "pl",
    "tr",
    "hi",
    "id",
    "vi",
    "uk",
    "cs",
    "sv",
    "zh-Hant",
    "fa",
    "he",
    "ro",
    "el",
    "hu",
    "th",
    "da",
    "fi",
    "nb",
    "bg",
    "sk",
    "hr",
    "ca",
    "bn",
    "ur",
    "ta",
    "te",
    "ms",
    "lt",
    "sl",
    "et",
    "lv",
    "sr",
    "mr",
    "sw",
    "fil",
    "gu",
    "kn",
    "ml",
    "pa",
    "af",
    "sq",
    "mk",
    "bs",
    "is",
    "az",
    "kk",
    "ka",
    "hy",
    "be",
    "eu",
    "gl",
    "ne",
    "uz",
    "my",
    "km",
    "si",
    "am",
)


def read_sources(checkpoint: Checkpoint, files: Sequence[CorpusFile], count: int) -> list[Source]:
    """Sources from files of sentences, one a line, taking turns between the files.

    A file for `en-fr` holds English sentences to be translated to French. Without files the sources are those of
    `sample_sources`. Where there are no samples either, they are random tokens, which exercise the same arithmetic.

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
        if file.languages not in config.languages:
            raise ValueError(
                f"the model does not translate {' to '.join(file.languages)}, the direction of {file.path}"
            )
        direction, framing = Direction(*file.languages), config.framing_of(file.languages)
        column = []
        for number, line in enumerate(read_lines(file.path), start=1):
            if line.strip():
                source = Source(direction, framing.frame(tokenizer.encode(line)))
                if len(source.ids) > limit:
                    raise ValueError(
                        f"{file.path}, line {number} has {len(source.ids)} tokens; the model reads at most {limit}"
                    )
                column.append(source)
        columns.append(column)
    rows = itertools.zip_longest(*columns)
    sources = [source for row in rows for source in row if source is not None][:count]
    if len(sources) < count:
        raise ValueError(f"the source files have {len(sources)} sentences, {count} are needed")
    return sources


def num_compared(model: Transformer) -> int:
    """On how many sentences a model is compared where nobody says how many."""
    return min(NUM_SOURCES, max(_MIN_COMPARED, _MAX_COMPARED_PARAMETERS // num_parameters(model)))


def sample_sources(checkpoint: Checkpoint, count: int) -> list[Source]:
    """Sources from the sample sentences of the model's source languages, taking turns between the directions.

    There are fewer than `count` where there are fewer samples, and none where no source language has samples.
    """
    config, tokenizer = checkpoint.config, checkpoint.open_tokenizer()
    encoded = (
        Source(direction, config.framing_of(direction).frame(tokenizer.encode(sentence)))
        for direction, sentence in _turns(config.languages)
    )
    fitting = (source for source in encoded if len(source.ids) <= config.dimensions.max_positions)
    return list(itertools.islice(fitting, count))


def _turns(languages: LanguageTable) -> Iterator[tuple[Direction, str]]:
    """Sample sentences, one for each direction, then another one for each, and so on."""
    for turn in range(max((len(sample_sentences(source)) for source in languages.sources), default=0)):
        for index, direction in enumerate(_spread(languages)):
            sentences = sample_sentences(direction.source)
            if turn < len(sentences):
                # Where there are many directions, each gives few sentences; they should not all be the same.
                yield direction, sentences[(index * _STRIDE + turn) % len(sentences)]


def _spread(languages: LanguageTable) -> Iterator[Direction]:
    """All directions, group by group; each language of a group comes once before any comes again.

    The most served languages come first, so that they get one sentence more where not all get as many.
    """
    for group in languages.directions:
        sources, targets = (sorted(codes, key=_rank) for codes in (group.sources, group.targets))
        for step in range(len(targets)):
            for index, source in enumerate(sources):
                direction = Direction(source, targets[(index + step) % len(targets)])
                if direction in group:
                    yield direction


@cache
def _rank(language_code: str) -> int:
    """The place of a language among those that are served most."""
    own = _samples_of(language_code)
    return _MOST_SERVED.index(own) if own in _MOST_SERVED else len(_MOST_SERVED)


def measured_sources(checkpoint: Checkpoint, bundle: Bundle) -> list[Source]:
    """The sentences that a bundle was measured on when it was exported, as far as they are known.

    An fp32 bundle must reproduce any sentences, so these are the exporter's samples. The tolerance of an int8 bundle
    holds for the sentences that it was measured on: the exporter's samples if the golden sentences are among them, else
    only the golden sentences are known.
    """
    parity = bundle.manifest.parity
    golden = [Source(sentence.direction, sentence.source_ids) for sentence in parity.golden]
    own = read_sources(checkpoint, (), parity.num_sentences)
    return own if bundle.manifest.precision == "fp32" or set(golden) <= set(own) else golden


def languages_without_samples(config: Config) -> list[str]:
    """The source languages of a model for which the exporter ships no sentences."""
    return sorted(source for source in config.languages.sources if not sample_sentences(source))


@cache
def sample_sentences(language_code: str) -> tuple[str, ...]:
    """The sentences that are shipped for a language, in its script, under its tag or the nearest one; else none."""
    own = _samples_of(language_code)
    if own is None:
        return ()
    path = resources.files("dragoman_export") / "samples" / f"{own}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


@cache
def _samples_of(language_code: str) -> str | None:
    """The tag that the samples of a language are shipped under."""
    if not tag_is_valid(language_code):
        return None
    wanted = _language_and_script(language_code)
    if wanted in (tags := _sample_tags()):
        return tags[wanted]
    near = [(tag_distance(language_code, tag), tag) for (_, script), tag in tags.items() if script == wanted[1]]
    distance, nearest = min(near, default=(_MAX_DISTANCE + 1, ""))
    return nearest if distance <= _MAX_DISTANCE else None


@cache
def _sample_tags() -> dict[tuple[str | None, str | None], str]:
    """The tags of all samples by language and script."""
    names = (path.name for path in (resources.files("dragoman_export") / "samples").iterdir())
    tags = (name.removesuffix(".txt") for name in names if name.endswith(".txt"))
    return {_language_and_script(tag): tag for tag in tags}


def _language_and_script(language_code: str) -> tuple[str | None, str | None]:
    likely = Language.get(language_code).maximize()
    # Korean is written in Hangul, or, as its likely script is called, with Chinese characters among it.
    return likely.language, "Kore" if likely.script == "Hang" else likely.script


def _random_sources(checkpoint: Checkpoint, count: int) -> list[Source]:
    config = checkpoint.config
    rng = random.Random(0)
    framing = config.framing
    specials = {config.pad_token_id, config.bos_token_id, config.eos_token_id}
    specials.update(part for part in framing.parts if isinstance(part, int))
    specials.update(itertools.chain.from_iterable(config.languages.token_ids.values()))
    token_ids = [i for i in range(config.dimensions.source_vocabulary_size) if i not in specials]
    directions = list(itertools.islice(_spread(config.languages), _MAX_RANDOM_DIRECTIONS))
    num_specials, _ = framing.max_specials(config.languages)
    longest = min(_MAX_RANDOM_TOKENS, config.dimensions.max_positions - num_specials)
    sources = []
    for _ in range(count):
        direction = rng.choice(directions)
        text_ids = rng.choices(token_ids, k=rng.randint(1, longest))
        sources.append(Source(direction, config.framing_of(direction).frame(text_ids)))
    return sources
