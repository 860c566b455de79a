"""From cross-attention of one pair to links between its tokens and its words."""

import numpy as np

from dragoman.attention.alignment import align, rows, word_links, words
from dragoman_server.attention.results import AlignedPair, Source, target_text_and_spans, target_tokens
from dragoman_server.bundle.manifest import Alignment, Manifest
from dragoman_server.engine.sequence import Hypothesis
from dragoman_server.runtime.attention_pass import AttentionPass
from dragoman_server.text.tokenizer import TextCodec


def align_pair(
    source: Source,
    target: Hypothesis,
    given_text: str | None,
    alignment: Alignment,
    manifest: Manifest,
    tokenizer: TextCodec,
    attention_pass: AttentionPass,
) -> AlignedPair:
    """Aligns a source with a target.

    Args:
        source: as the encoder reads it.
        target: decoded or forced.
        given_text: the target where it was given as a text.
        alignment: from which weights.
        manifest: of the model.
        tokenizer: of the model.
        attention_pass: of the model.
    """
    target_ids = read_ids = target.token_ids
    if not source.framing.is_ended(target_ids) and len(target_ids) < manifest.limits.max_target_tokens:
        # A target that was cut off: one step more, so that its last token is read too.
        read_ids = (*target_ids, *source.framing.target_suffix)
    (weights,) = attention_pass.weights("cross", source.token_ids, read_ids, [alignment.layer], alignment.heads)
    cross = rows(weights.mean(axis=0), alignment.method)

    tokens = source.tokens(tokenizer)
    source_is_text = [not token.is_special for token in tokens]
    target_text, target_spans = target_text_and_spans(target_ids, given_text, source.framing, tokenizer)
    # As for readers of attention weights, who have no more than the spans to tell what is of the text.
    target_is_text = [begin < end for begin, end in target_spans] + [False] * (len(read_ids) - len(target_ids))
    of_text = [index for index, is_text in enumerate(target_is_text) if is_text]
    texts = [token for token in tokens if not token.is_special]
    emitted = target_tokens(target_ids, target.token_logprobs, tokenizer)

    links = align(cross, source_is_text, target_is_text)
    source_words, target_words = words(source.text), words(target_text)
    spans = [target_spans[index] for index in of_text]
    return AlignedPair(
        target_text,
        texts,
        [emitted[index] for index in of_text],
        spans,
        links,
        source_words,
        target_words,
        word_links(links, [token.span for token in texts], spans, source_words, target_words),
        cross[np.ix_(target_is_text, source_is_text)],
    )
