"""How a request is decoded: every option with its formula, and the one place that says what is wrong with them.

Names and definitions are those of Hugging Face's `generate` unless stated otherwise.
"""

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass

# Sampling from more of the most probable tokens than this looks at the whole vocabulary.
MAX_TOP_K = 128


class EarlyStopping(enum.Enum):
    """When a beam search is over, beside reaching the longest target: Hugging Face's `early_stopping`, or Marian's."""

    HEURISTIC = "heuristic"  # False: the best live beam, at its present length, is no better than the worst finished
    FIRST = "first"  # True: as soon as enough hypotheses are finished
    NEVER = "never"  # "never": only when no live beam could become better, however long
    NARROWING = "narrowing"  # Marian's: each finished hypothesis narrows the beam by one, until none lives


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of decoding one segment. The defaults are greedy search without constraints."""

    beam_size: int = 1
    """Live hypotheses of a beam search, each of which takes a row. 1 is greedy search, or sampling."""

    num_hypotheses: int = 1
    """How many to return, best score first: at most `beam_size`, or any number of independent samples."""

    length_penalty: float = 1.0
    """The p in `score = sum of log-probs / number of tokens ** p`. 0 ranks by the sum, above 1 favours long targets."""

    patience: float = 1.0
    """A beam search keeps `round(beam_size * patience)` finished hypotheses and counts as full with as many (Kasai et
    al. 2022). 1 is Hugging Face's search."""

    early_stopping: EarlyStopping = EarlyStopping.HEURISTIC

    is_sampling: bool = False
    """Draws each token at random, from what the next three leave, in this order."""

    temperature: float = 1.0
    """Log-probs are divided by it: below 1 sharper, above 1 flatter."""

    top_k: int = 50
    """Only the k most probable tokens. 0: all."""

    top_p: float = 1.0
    """Of these, the fewest most probable ones whose probabilities reach p in sum (Holtzman et al. 2020). 1: all."""

    seed: int | None = None
    """The same seed gives the same samples, whatever else is decoded. None: others every time."""

    min_target_tokens: int = 0
    """End-of-sentence, which is not counted, cannot come before this many tokens."""

    repetition_penalty: float = 1.0
    """Tokens that the target has already get less likely: their logits (in a beam search: log-probs) are divided by it
    where positive, multiplied where negative (Keskar et al. 2019). 1: off."""

    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens comes twice. 0: off."""

    suppressed: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens, none of them empty, that must not come."""

    @property
    def num_rows(self) -> int:
        """Rows of the batch that a request takes at most."""
        return self.num_hypotheses if self.is_sampling else self.beam_size

    @property
    def num_candidates(self) -> int:
        """Next tokens of a row that can matter, the most probable ones; not for sampling from the whole vocabulary."""
        if self.is_sampling:
            return self.top_k
        # Of twice as many as there are beams no more than half can be end-of-sentence.
        return 1 if self.beam_size == 1 else 2 * self.beam_size

    @property
    def bans(self) -> bool:
        """Whether there are tokens that must not come, depending on those that have."""
        return bool(self.min_target_tokens or self.no_repeat_ngram_size or self.suppressed)

    @property
    def forks(self) -> bool:
        """Whether a step replaces the sequences that it continues by others; else it makes them longer."""
        return self.beam_size > 1 or self.is_sampling

    @property
    def is_plain(self) -> bool:
        """Whether the same is asked about every token, whatever came before."""
        looks_at_all = self.is_sampling and not 1 <= self.top_k <= MAX_TOP_K
        return not self.bans and self.repetition_penalty == 1.0 and not looks_at_all

    @property
    def num_finished(self) -> int:
        """Finished hypotheses that a beam search keeps."""
        return max(round(self.beam_size * self.patience), self.num_hypotheses)

    def faults(self, max_rows: int) -> Iterator[tuple[str, str]]:
        """The name of every option at fault and what is wrong with it.

        Args:
            max_rows: rows that are decoded together at most.
        """
        for name, low, high in (
            ("beam_size", 1, max_rows),
            ("num_hypotheses", 1, max_rows if self.is_sampling else max(1, self.beam_size)),
            ("length_penalty", -10.0, 10.0),
            ("patience", 0.1, 10.0),
            ("temperature", 0.01, 100.0),
            ("top_k", 0, 2**31 - 1),
            ("top_p", 1e-6, 1.0),
            ("min_target_tokens", 0, 2**31 - 1),
            ("repetition_penalty", 0.01, 100.0),
            ("no_repeat_ngram_size", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:  # also where value is NaN
                limit = " (beam_size)" if name == "num_hypotheses" and not self.is_sampling else ""
                form = "g" if isinstance(low, float) else "d"
                yield name, f"is {value:{form}}, must be from {low:{form}} to {high:{form}}{limit}"
        if self.is_sampling and self.beam_size > 1:
            yield "beam_size", f"is {self.beam_size}, must be 1 with sampling"
        if not math.isclose(self.patience, 1.0):
            if self.beam_size == 1:
                yield "patience", f"is {self.patience:g}, must be 1 without a beam"
            elif self.early_stopping is EarlyStopping.NARROWING:
                yield "patience", f"is {self.patience:g}, must be 1 where the beam narrows (early_stopping)"
        if () in self.suppressed:
            yield "suppressed", "has a sequence of no tokens"


GREEDY = SearchOptions()
