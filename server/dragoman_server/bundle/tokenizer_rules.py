"""Rules for the tokenizer of a bundle, by its manifest and its graphs."""

from dataclasses import dataclass

from dragoman_server.bundle.graph_rules import Sizes
from dragoman_server.bundle.manifest import Golden, Manifest
from dragoman_server.bundle.rules import Rule, check
from dragoman_server.text.tokenizer import UNKNOWN, TextCodec
from dragoman_server.text.tokenizer_files import TokenizerKind

# Embeddings whose id no piece has. The model may choose such an id; a tokenizer takes it for unknown.
MAX_SPARE_ROWS: dict[TokenizerKind, int] = {
    "sentencepiece": 0,
    "marian": 255,
    "pieces": 255,
    "pieces_pair": 255,
    "byte_bpe": 255,
    "bytes": 255,
}
# Share of a SentencePiece model's pieces that must have ids in a separate vocabulary; most often, all have.
_MIN_KNOWN_SHARE = 0.5


@dataclass(frozen=True)
class _Facts:
    tokenizer: TextCodec
    manifest: Manifest
    sizes: Sizes

    @property
    def known_share(self) -> float:
        return min(self.tokenizer.source_vocabulary.known_share, self.tokenizer.vocabulary.known_share)

    def is_source_control(self, token_id: int) -> bool:
        return token_id < self.tokenizer.source_vocabulary.size and self.tokenizer.is_source_control(token_id)

    def is_target_control(self, token_id: int) -> bool:
        return token_id < self.tokenizer.vocabulary.size and self.tokenizer.is_control(token_id)

    def is_word(self, token_id: int) -> bool:
        """Whether an id of a source is a piece of text, such as a task has."""
        if token_id >= self.tokenizer.source_vocabulary.size or self.tokenizer.is_source_control(token_id):
            return False
        return self.tokenizer.source_pieces([token_id]) != [UNKNOWN]

    def stands_for_a_language(self, token_id: int) -> bool:
        """Whether an id may stand for a language, on each side where the framing has languages."""
        framing = self.manifest.framing
        if framing.forces_a_language and not self.is_target_control(token_id):
            return False
        is_free = framing.forces_a_language and not framing.reads_a_language
        return is_free or self.is_source_control(token_id) or (self.has_task and self.is_word(token_id))

    @property
    def has_task(self) -> bool:
        """Whether sources begin with a task in words, with the names of languages in words."""
        return any(isinstance(part, int) and self.is_word(part) for part in self.manifest.framing.source_prefix)


def check_tokenizer(tokenizer: TextCodec, manifest: Manifest, sizes: Sizes) -> None:
    """Raises ValueError naming the field that does not go with the tokenizer, or the tokenizer with the graphs."""
    check(_RULES, manifest, _Facts(tokenizer, manifest, sizes))


def _fits(kind: TokenizerKind, facts: _Facts) -> bool:
    return all(
        0 <= rows - vocabulary.size <= MAX_SPARE_ROWS[kind]
        for rows, vocabulary in (
            (facts.sizes.source_vocabulary_size, facts.tokenizer.source_vocabulary),
            (facts.sizes.target_vocabulary_size, facts.tokenizer.vocabulary),
        )
    )


def _has_its_pieces(golden: Golden, facts: _Facts) -> bool:
    return golden.source_pieces == tuple(facts.tokenizer.source_pieces(golden.source_ids))


_RULES: tuple[Rule[_Facts], ...] = (
    Rule(
        "tokenizer",
        _fits,
        "be one with as many pieces as there are embeddings, {0.sizes.source_vocabulary_size} for the source and "
        "{0.sizes.target_vocabulary_size} for the target; its files have {0.tokenizer.source_vocabulary.size} and "
        "{0.tokenizer.vocabulary.size}",
    ),
    Rule(
        "tokenizer",
        lambda _, facts: facts.known_share >= _MIN_KNOWN_SHARE,
        "be one whose vocabulary has the pieces of its SentencePiece models; of one of them it has a share of "
        "{0.known_share:.2f}",
    ),
    Rule(
        "eos_token_id",
        lambda token_id, facts: facts.tokenizer.source_vocabulary.end_of_sentence_id in (token_id, None),
        "be {0.tokenizer.source_vocabulary.end_of_sentence_id}, which the tokenizer has for end-of-sentence",
    ),
    Rule(
        "eos_token_id",
        lambda token_id, facts: facts.tokenizer.vocabulary.end_of_sentence_id in (token_id, None),
        "be the same for source and target; the target's vocabulary has end-of-sentence at "
        "{0.tokenizer.vocabulary.end_of_sentence_id}",
    ),
    Rule(
        "pad_token_id",
        lambda token_id, facts: facts.tokenizer.source_vocabulary.padding_id in (token_id, None),
        "be {0.tokenizer.source_vocabulary.padding_id}, which the tokenizer has for padding",
    ),
    *(
        Rule[_Facts](
            name,
            lambda part, facts: isinstance(part, str) or facts.is_target_control(part),
            "be a control symbol of the tokenizer, which no text has",
        )
        for name in ("eos_token_id", "framing.target_prefix[*]")
    ),
    Rule(
        "decoder_start_token_id",
        # MADLAD-400 begins with unknown.
        lambda token_id, facts: facts.is_target_control(token_id) or token_id == facts.tokenizer.unknown_id,
        "be a control symbol of the tokenizer, which no text has, or unknown",
    ),
    Rule(
        "framing.source_suffix[*]",
        lambda part, facts: isinstance(part, str) or facts.is_source_control(part),
        "be a control symbol of the tokenizer, which no text has",
    ),
    Rule(
        "framing.source_prefix[*]",
        lambda part, facts: isinstance(part, str) or facts.is_source_control(part) or facts.is_word(part),
        "be a piece or a control symbol of the tokenizer",
    ),
    Rule(
        "languages.token_ids[*][*]",
        lambda token_id, facts: facts.stands_for_a_language(token_id),
        "be a control symbol of the tokenizer, which no text has",
    ),
    *(
        Rule[_Facts](
            name,
            lambda part, facts: part not in (facts.manifest.eos_token_id, facts.manifest.pad_token_id),
            "not be end-of-sentence or padding",
        )
        for name in ("languages.token_ids[*][*]", "framing.source_prefix[*]")
    ),
    Rule(
        "parity.golden[*]",
        _has_its_pieces,
        "have the source_pieces that the tokenizer has under its source_ids: this is the tokenizer of another model",
    ),
)
