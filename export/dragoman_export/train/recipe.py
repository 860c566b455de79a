"""From prepared text to a `Trainer`: configuration, directions, development sets."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import sentencepiece as spm

from dragoman_export.checkpoint import Config
from dragoman_export.dimensions import Dimensions
from dragoman_export.languages import Pair
from dragoman_export.train.batches import directions_of
from dragoman_export.train.corpus import TextPair
from dragoman_export.train.prepared import Prepared, TokenRows
from dragoman_export.train.run_folder import RunFolder
from dragoman_export.train.tokenizer import BOS_ID, EOS_ID, PAD_ID, language_tag
from dragoman_export.train.training import DevelopmentSet, Report, Trainer, TrainingOptions
from dragoman_server.bundle.framing import Framing, FramingTemplate
from dragoman_server.bundle.languages import LanguageTable

MAX_DEVELOPMENT_PAIRS = 200  # of a set, so that validation stays short


@dataclasses.dataclass(frozen=True)
class DirectionOptions:
    """The directions to train on, and how often an epoch shows their pairs."""

    both: bool = True
    weights: Mapping[tuple[str, str], float] = dataclasses.field(default_factory=dict)


def make_trainer(
    name: str,
    folder: RunFolder,
    prepared: Prepared,
    directions: DirectionOptions,
    dimensions: Dimensions,
    options: TrainingOptions,
    device: str = "cpu",
    report: Report = lambda _: None,
) -> Trainer:
    """A trainer for all texts.

    The vocabulary sizes in `dimensions` are replaced by those of the tokenizer.

    Raises:
        ValueError: the tokenizer has no tag for a language, a weight is for an unknown direction, or the
            trainer refuses its options.
    """
    processor = spm.SentencePieceProcessor(model_proto=prepared.tokenizer)
    targets = {
        target for text in prepared.texts for target in (text.languages if directions.both else text.languages[1:])
    }
    token_ids = {language: (_tag_id(processor, language),) for language in sorted(targets)}
    template = FramingTemplate(source_prefix=("target",), source_suffix=(EOS_ID,), target_prefix=())

    def framing_of(direction: Pair) -> Framing:
        return template.of(direction, token_ids, EOS_ID)

    parts = directions_of(prepared.texts, framing_of, directions.both, directions.weights)
    pairs_of_languages = dict.fromkeys((part.source_language, part.target_language) for part in parts)
    unknown = directions.weights.keys() - pairs_of_languages.keys()
    if unknown:
        raise ValueError(f"a weight is given for {'-'.join(min(unknown))}, which is not trained on")
    size = processor.get_piece_size()
    config = Config(
        name=name,
        dimensions=dataclasses.replace(dimensions, source_vocabulary_size=size, target_vocabulary_size=size),
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        languages=LanguageTable.of(pairs_of_languages, token_ids),
        framing=template,
        training={"pairs": dict(zip(_labels(prepared), map(len, prepared.texts), strict=True))},
    )
    development = _development(prepared, processor, framing_of, directions.both)
    return Trainer(folder, config, prepared.tokenizer, parts, development, options, device, report)


def _tag_id(processor: spm.SentencePieceProcessor, language: str) -> int:
    tag = language_tag(language)
    token_id: int = processor.piece_to_id(tag)
    if not processor.is_control(token_id):
        raise ValueError(f"the tokenizer has no {tag}, so that no {language} can be asked for")
    return token_id


def _labels(prepared: Prepared) -> list[str]:
    """`en-fr`, followed by the name of the text where several have these languages."""
    languages = ["-".join(text.languages) for text in prepared.texts]
    counts = Counter(languages)
    return [
        label if counts[label] == 1 else f"{label} {text.name}"
        for label, text in zip(languages, prepared.texts, strict=True)
    ]


def _development(
    prepared: Prepared, processor: spm.SentencePieceProcessor, framing_of: Callable[[Pair], Framing], both: bool
) -> list[DevelopmentSet]:
    sets = []
    for label, text in zip(_labels(prepared), prepared.texts, strict=True):
        pairs = text.development[:MAX_DEVELOPMENT_PAIRS]
        if not pairs:
            continue
        sides: Sequence[TokenRows] = [TokenRows.of(processor.encode([pair[side] for pair in pairs])) for side in (0, 1)]
        small = dataclasses.replace(text, weight=1.0, sides=(sides[0], sides[1]), links=None)
        turned: list[TextPair] = [(second, first) for first, second in pairs]
        first, second = text.languages
        for direction, of_direction in zip(directions_of([small], framing_of, both, {}), (pairs, turned), strict=False):
            name = label.replace(f"{first}-{second}", f"{direction.source_language}-{direction.target_language}", 1)
            sets.append(DevelopmentSet(name, of_direction, direction))
    return sets
