"""What attention says of a translation: numbers for a reader, and what is unusual.

The definitions are those of `Signals` in translation.proto.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dragoman_server.attention.results import Source
from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.sequence import FinishReason, Hypothesis
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.text.tokenizer import Span, TextCodec
from dragoman_server.text.verbatim import is_copied

_LEAST = np.finfo(np.float32).tiny  # in place of zero, where there is none

# A source token is covered when the weights on it, summed over the target, reach this.
COVERED_WEIGHT = 0.2
# Tokens of a sequence that counts as repeated, and bytes where tokens are bytes.
REPEATED_TOKENS, REPEATED_BYTES = 4, 16

# Beyond these something is unusual. Of the default model's translations of 200 sentences of everyday English into each
# of its other languages, no more than one in a hundred is, whichever of its heads is looked at.
MIN_COVERAGE = 0.5  # the least that was seen; one in twenty is below 0.7
MAX_ENTROPY = 0.95  # nearly even: single heads reach 0.9 with sources of two words, the mean of all heads 0.95
MAX_END_OF_SENTENCE_SHARE = 0.6  # one in a hundred is above 0.4
MAX_REPETITION = 0.3  # one in a hundred is above 0.2
MIN_LENGTH_RATIO, MAX_LENGTH_RATIO = 0.4, 2.5  # one in a hundred is below 0.7 or above 2
# Where tokens are bytes: a letter is one in Latin script and three in others.
MAX_BYTES_OF_LETTER = 3
# The most letters that the vocabulary has no words for were 11 % of a sentence, in 53,000 sentences of the four
# languages of the default model; all of a text in another script are.
MAX_UNSPELT_SHARE = 0.3
# A few tokens make any ratio. Both sides together have at least so many where theirs counts.
MIN_TOKENS_FOR_RATIO = 12


class Suspicion(enum.Enum):
    """What is unusual about a translation; the values name it in metrics."""

    UNCOVERED = "uncovered"
    DETACHED = "detached"
    REPETITIVE = "repetitive"
    LENGTH = "length"
    CUT_OFF = "cut_off"
    NOT_COPIED = "not_copied"
    UNKNOWN_SCRIPT = "unknown_script"


@dataclass(frozen=True, slots=True)
class Signals:
    """How a translation sits on its source."""

    source_coverage: float
    uncovered_spans: Sequence[Span]
    attention_entropy: float
    end_of_sentence_share: float
    repetition: float
    length_ratio: float
    suspicions: Sequence[Suspicion]


def segment_signals(
    source: Source, target: Hypothesis, manifest: Manifest, tokenizer: TextCodec, attention_pass: AttentionPass
) -> Signals:
    """The signals of one segment, from a pass over it.

    Args:
        source: as the encoder reads it.
        target: its translation.
        manifest: of the model.
        tokenizer: of the model.
        attention_pass: of the model.
    """
    alignment = manifest.best_alignment
    (weights,) = attention_pass.weights("cross", source.token_ids, target.token_ids, [alignment.layer], alignment.heads)
    of_source = source.framing.text_range(source.token_ids)
    of_target = source.framing.target_text_range(target.token_ids)
    spans = source.spans(tokenizer)
    return signals(
        # Without prefixes: weights on and of language tags belong to no word.
        weights.mean(axis=0)[of_target.start :, of_source.start :],
        spans,
        target.token_ids[of_target.start : of_target.stop],
        target.finish_reason is FinishReason.LENGTH,
        is_copied(source.segment_text, tokenizer.decode(target.token_ids)),
        _unspelt_share(source, spans, tokenizer),
        are_bytes=manifest.tokenizer == "bytes",
    )


def signals(
    cross: NDArray[np.float32],
    source_spans: Sequence[Span],
    target_ids: Sequence[int],
    is_cut_off: bool,
    is_copied: bool,
    unspelt_share: float,
    are_bytes: bool = False,
) -> Signals:
    """The signals of one segment.

    Args:
        cross: [T, S], the mean of the heads that align best: a row for each step from the text's first token on, the
            one that emits end-of-sentence included; columns for the tokens of the source's text and what follows them,
            end-of-sentence at least.
        source_spans: what each token of the source's text stands for.
        target_ids: the target without end-of-sentence.
        is_cut_off: whether the target reached its limit.
        is_copied: whether it has the numbers, addresses, placeholders and the like of the source.
        unspelt_share: how many of the source's letters the vocabulary has no words for, 0 to 1.
        are_bytes: whether tokens are bytes.
    """
    weights = cross / np.maximum(cross.sum(axis=1, keepdims=True), _LEAST)
    num_tokens = len(source_spans)
    is_covered = weights[:, :num_tokens].sum(axis=0) >= COVERED_WEIGHT
    coverage = float(is_covered.mean())
    entropy = _entropy(weights)
    end_of_sentence_share = float(weights[:, num_tokens:].sum(axis=1).mean()) if len(weights) else 0.0
    repetition = _repetition(target_ids, REPEATED_BYTES if are_bytes else REPEATED_TOKENS)
    length_ratio = len(target_ids) / len(source_spans)

    def suspicions() -> Iterator[Suspicion]:
        if coverage < MIN_COVERAGE:
            yield Suspicion.UNCOVERED
        if entropy > MAX_ENTROPY or end_of_sentence_share > MAX_END_OF_SENTENCE_SHARE:
            yield Suspicion.DETACHED
        if repetition > MAX_REPETITION:
            yield Suspicion.REPETITIVE
        is_long = len(target_ids) + len(source_spans) >= MIN_TOKENS_FOR_RATIO
        slack = MAX_BYTES_OF_LETTER if are_bytes else 1
        if is_long and not MIN_LENGTH_RATIO / slack <= length_ratio <= MAX_LENGTH_RATIO * slack:
            yield Suspicion.LENGTH
        if is_cut_off:
            yield Suspicion.CUT_OFF
        if not is_copied:
            yield Suspicion.NOT_COPIED
        if unspelt_share > MAX_UNSPELT_SHARE:
            yield Suspicion.UNKNOWN_SCRIPT

    return Signals(
        coverage,
        _uncovered(source_spans, is_covered.tolist()),
        entropy,
        end_of_sentence_share,
        repetition,
        length_ratio,
        tuple(suspicions()),
    )


def _unspelt_share(source: Source, spans: Sequence[Span], tokenizer: TextCodec) -> float:
    """How many of a segment's letters the vocabulary has no words for, 0 to 1; `spans` are those of its tokens."""
    token_ids = source.segment.token_ids
    are_unspelt = dict(zip(spans, map(tokenizer.is_unspelt, token_ids), strict=True))  # a letter's bytes once
    nums_letters = {(begin, end): sum(map(str.isalpha, source.text[begin:end])) for begin, end in are_unspelt}
    num_unspelt = sum(number for span, number in nums_letters.items() if are_unspelt[span])
    return num_unspelt / max(sum(nums_letters.values()), 1)


def _uncovered(spans: Sequence[Span], is_covered: Sequence[bool]) -> list[Span]:
    """What neighbouring tokens that are not covered stand for together."""
    uncovered: list[Span] = []
    follows = False
    for (begin, end), covered in zip(spans, is_covered, strict=True):
        if covered or begin == end:
            follows = follows and not covered
        elif follows:
            uncovered[-1] = (uncovered[-1][0], end)
        else:
            uncovered.append((begin, end))
            follows = True
    return uncovered


def _entropy(weights: NDArray[np.float32]) -> float:
    """The mean over rows of their entropy, as a share of the largest one possible."""
    num_rows, num_columns = weights.shape
    if not num_rows or num_columns == 1:
        return 0.0
    logs = np.log(np.maximum(weights, _LEAST))
    return float(-(weights * logs).sum(axis=1).mean() / np.log(num_columns))


def _repetition(token_ids: Sequence[int], length: int) -> float:
    """The share of tokens that stand in a sequence of this length which came before."""
    seen: set[tuple[int, ...]] = set()
    repeated: set[int] = set()
    for begin in range(len(token_ids) - length + 1):
        places = range(begin, begin + length)
        sequence = tuple(token_ids[place] for place in places)
        if sequence in seen:
            repeated.update(places)
        seen.add(sequence)
    return len(repeated) / max(len(token_ids), 1)
