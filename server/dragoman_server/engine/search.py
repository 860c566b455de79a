"""Greedy search, beam search and sampling, one row at a time: what to ask the model, and what to make of its answer.

    question -> (the model) -> advance

Knows no model and no rows but its own, so rows that are searched in different ways share a batch.
"""

import math
import random
from collections.abc import Collection, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dragoman_server.bundle.manifest import Manifest
from dragoman_server.engine.search_options import MAX_TOP_K, EarlyStopping, SearchOptions
from dragoman_server.engine.sequence import FinishReason, Hypothesis, Sequence, SequenceGroup

_NOTHING: frozenset[int] = frozenset()


class Question(NamedTuple):
    """What the search wants to know about the next token of a sequence."""

    num_candidates: int = 0  # the most probable tokens
    forced_id: int | None = None  # the log-prob of this one: it comes next whatever the model thinks
    needs_all: bool = False  # everything about the whole vocabulary
    banned: frozenset[int] = _NOTHING  # what may not come; num_candidates has room for them


class StepOutput(NamedTuple):
    """What the model said. Natural logarithms. Arrays are views that the next step overwrites."""

    top_ids: NDArray[np.int64]  # [rows, at least k], the most probable tokens of each row, best first
    top_logprobs: NDArray[np.float32]  # [rows, at least k]
    score_logprobs: NDArray[np.float32]  # [rows], log-probs of the `score_ids` that were asked about
    all_logits: NDArray[np.float32]  # [len(all_rows), V], before softmax
    all_logprobs: NDArray[np.float32]  # [len(all_rows), V]


class Candidate(NamedTuple):
    """A token that may come next."""

    token_id: int
    logprob: float  # the model's
    ranked_logprob: float  # after penalties: what the search goes by


# What may come next in a beam search: the place among the live of the sequence it continues, then as a Candidate.
_Ranked = tuple[int, int, float, float]


@lru_cache(maxsize=256)
def _of_top(num_candidates: int, banned: frozenset[int]) -> Question:
    return Question(num_candidates, banned=banned)


@dataclass(frozen=True)
class _Step:
    """All that is known about a step."""

    questions: Rows[Question]  # by row
    output: StepOutput
    all_rows: Rows[int]  # in the order of `all_logits` and `all_logprobs`

    def top(self, row: int, count: int) -> tuple[list[int], list[float]]:
        """The ids and log-probs of the `count` most probable tokens: the step may have more, for others."""
        ids, logprobs = self._top
        return ids[row][:count], logprobs[row][:count]

    @cached_property
    def _top(self) -> tuple[list[list[int]], list[list[float]]]:
        return self.output.top_ids.tolist(), self.output.top_logprobs.tolist()

    @cached_property
    def places(self) -> dict[int, int]:
        """By row: where in `all_logits` and `all_logprobs` it is."""
        return {row: place for place, row in enumerate(self.all_rows)}


@dataclass(frozen=True)
class Search:
    """Decides by which tokens sequences go on. `suppressed_ids` never come, in any of them."""

    decoder_start_token_id: int
    eos_token_id: int
    suppressed_ids: frozenset[int] = _NOTHING

    @classmethod
    def of(cls, manifest: Manifest) -> "Search":
        """For the model of this manifest."""
        suppressed_ids = frozenset(manifest.generation.suppressed_token_ids)
        return cls(manifest.decoder_start_token_id, manifest.eos_token_id, suppressed_ids)

    def question(self, sequence: Sequence) -> Question:
        """What has to be known about the next token of a sequence."""
        group = sequence.group
        request, num_tokens = group.request, len(sequence.token_ids)
        if num_tokens < len(request.prefix_ids):
            return Question(forced_id=request.prefix_ids[num_tokens])
        options = request.options
        if group.is_plain:
            return _of_top(options.num_candidates + len(self.suppressed_ids), self.suppressed_ids)
        banned = self._banned(sequence.token_ids, options) if options.bans else self.suppressed_ids
        if options.repetition_penalty != 1.0 or (options.is_sampling and not 1 <= options.top_k <= MAX_TOP_K):
            # A beam search's candidates are ranked beside those of others, in as many columns as the step has.
            return Question(options.num_candidates if options.beam_size > 1 else 0, needs_all=True, banned=banned)
        return Question(options.num_candidates + len(banned), banned=banned)

    def _banned(self, token_ids: list[int], options: SearchOptions) -> frozenset[int]:
        banned = set(self.suppressed_ids)
        if len(token_ids) < options.min_target_tokens:
            banned.add(self.eos_token_id)
        if size := options.no_repeat_ngram_size:
            ngrams = (token_ids[i : i + size] for i in range(len(token_ids) - size + 1))
            latest = token_ids[len(token_ids) - size + 1 :]
            banned.update(last for *first, last in ngrams if first == latest)
        for *first, last in options.suppressed:
            if first == token_ids[len(token_ids) - len(first) :]:
                banned.add(last)
        return frozenset(banned)

    def advance(
        self, groups: Collection[SequenceGroup], questions: Rows[Question], all_rows: Rows[int], output: StepOutput
    ) -> Collection[SequenceGroup]:
        """Gives the live sequences of groups their next tokens.

        Afterwards `live` of each holds those that go on, each with the row it continues, and `finished` has those that
        ended: a group is done when nothing lives.

        Args:
            groups: all with live sequences.
            questions: by row.
            all_rows: rows whose question needs all, in the order of the output.
            output: by row.

        Returns:
            Those that the model gave no numbers for, which stay as they are.
        """
        step = _Step(questions, output, all_rows)
        first_ids, first_logprobs = output.top_ids[:, 0].tolist(), output.top_logprobs[:, 0].tolist()
        broken: Collection[SequenceGroup] = ()
        if math.isnan(sum(first_logprobs)):
            broken = {group for group in groups if any(math.isnan(first_logprobs[s.row]) for s in group.live)}
            groups = [group for group in groups if group not in broken]
        for group in groups:
            sequence = group.live[0]
            row, question, options = sequence.row, questions[sequence.row], group.request.options
            if question.forced_id is not None:
                # What is forced comes first, while there is one sequence still.
                logprob = float(output.score_logprobs[row])
                # Hugging Face's `forced_bos_token_id` likewise leaves nothing else to choose, so it costs nothing.
                is_of_framing = len(sequence.token_ids) < group.request.num_framing_ids
                sequence.append(question.forced_id, logprob, 0.0 if is_of_framing else logprob)
                self._finish(group, group.live)
            elif options.beam_size > 1:
                self._extend_beam(group, step)
            elif options.is_sampling:
                self._sample(group, step)
            elif not question.needs_all and first_ids[row] not in question.banned:
                token_id, logprob = first_ids[row], first_logprobs[row]
                sequence.append(token_id, logprob, logprob)
                if token_id == self.eos_token_id or len(sequence.token_ids) >= group.request.max_target_tokens:
                    self._finish(group, group.live)
            else:
                best = self._candidates(sequence, 1, step)
                if best:
                    sequence.append(*best[0])
                self._finish(group, group.live, is_stuck=not best)
        return broken

    def _finish(self, group: SequenceGroup, sequences: Iterable[Sequence], is_stuck: bool = False) -> None:
        """Sorts sequences that have a new token into those that ended and those that live on."""
        live = []
        for sequence in sequences:
            if sequence.token_ids and sequence.token_ids[-1] == self.eos_token_id:
                group.finished.append(sequence.hypothesis(FinishReason.STOP))
            elif is_stuck or len(sequence.token_ids) >= group.request.max_target_tokens:
                group.finished.append(sequence.hypothesis(FinishReason.LENGTH))
            else:
                live.append(sequence)
        group.finished.sort(key=_score, reverse=True)
        group.live = live

    def _candidates(self, sequence: Sequence, count: int, step: "_Step") -> list[Candidate]:
        """The `count` best next tokens that are not banned, best first; fewer where there are not as many."""
        row, question = sequence.row, step.questions[sequence.row]
        if not question.needs_all:
            pairs = zip(*step.top(row, question.num_candidates), strict=True)
            # Behind the last token of a list there is nothing.
            return [Candidate(i, p, p) for i, p in pairs if i not in question.banned and p > -math.inf][:count]
        ranked = self._penalised(sequence, step)
        best = np.argsort(-ranked, kind="stable")[:count]  # ties go to the lower id, as in the graph
        logprobs = step.output.all_logprobs[step.places[row]][best].tolist()
        found = zip(best.tolist(), logprobs, ranked[best].tolist(), strict=True)
        return [Candidate(*candidate) for candidate in found if candidate[2] > -math.inf]

    def _penalised(self, sequence: Sequence, step: "_Step") -> NDArray[np.float32]:
        """Logits (in a beam search: log-probs) after the repetition penalty, -inf where banned; [V]."""
        options, place = sequence.group.request.options, step.places[sequence.row]
        values = step.output.all_logprobs if options.beam_size > 1 else step.output.all_logits
        ranked: NDArray[np.float32] = values[place].copy()
        if options.repetition_penalty != 1.0:
            # Hugging Face counts the decoder's first input among what must not be repeated.
            seen = np.unique([self.decoder_start_token_id, *sequence.token_ids])
            before, penalty = ranked[seen], np.float32(options.repetition_penalty)
            ranked[seen] = np.where(before < 0, before * penalty, before / penalty)
        ranked[list(step.questions[sequence.row].banned)] = -np.inf
        return ranked

    # -- beams -----------------------------------------------------------------------------------------------------

    def _extend_beam(self, group: SequenceGroup, step: "_Step") -> None:
        """One step of beam search: what `_beam_search` of Hugging Face's transformers 5 does with one sentence.

        Where the beam narrows it is what `BeamSearch::search` of Marian 1.12 does with one.
        """
        request, options, parents = group.request, group.request.options, group.live
        if options.early_stopping is EarlyStopping.NARROWING:
            width = options.beam_size - len(group.finished)
            ranking = self._ranking(group, width, step)
        else:
            width = options.beam_size
            ranking = self._ranking(group, 2 * width, step)
        best = ranking[:width]
        is_last = len(parents[0].token_ids) + 1 >= request.max_target_tokens
        if not is_last and len(best) == width and self.eos_token_id not in [token_id for _, token_id, _, _ in best]:
            live = _continued(parents, best)  # as nearly always: nothing ends among the best
        else:
            live = self._end_some(group, ranking, is_last)
        group.live = [] if self._is_over(group, live) else live

    def _ranking(self, group: SequenceGroup, count: int, step: "_Step") -> list["_Ranked"]:
        """The `count` best tokens that may continue any of the live sequences, best first; fewer where there are not.

        Lists take less time here than arrays: a group has a few dozens of candidates.
        """
        beams, ids, logprobs, ranked, losses = [], [], [], [], []
        for beam, sequence in enumerate(group.live):
            question = step.questions[sequence.row]
            next_ids, next_logprobs = step.top(sequence.row, question.num_candidates)
            next_ranked = next_logprobs
            if question.needs_all or not question.banned.isdisjoint(next_ids):
                found = self._candidates(sequence, count, step)
                next_ids = [candidate.token_id for candidate in found]
                next_logprobs = [candidate.logprob for candidate in found]
                next_ranked = [candidate.ranked_logprob for candidate in found]
            loss = -sequence.ranked_logprob
            losses += [loss - value for value in next_ranked]
            beams += [beam] * len(next_ids)
            ids += next_ids
            logprobs += next_logprobs
            ranked += next_ranked
        best = sorted(range(len(losses)), key=losses.__getitem__)[:count]  # ties go to the better beam
        return [(beams[i], ids[i], logprobs[i], ranked[i]) for i in best if ranked[i] > -math.inf]

    def _end_some(self, group: SequenceGroup, ranking: Rows["_Ranked"], is_last: bool) -> list[Sequence]:
        """Goes on with the best that can, and finishes those that have ended; returns those that go on."""
        options, parents = group.request.options, group.live
        is_closed = options.early_stopping is EarlyStopping.FIRST and len(group.finished) >= options.num_finished
        going_on: list[_Ranked] = []
        ended: list[Hypothesis] = []
        for place, entry in enumerate(ranking):
            beam, token_id, logprob, ranked = entry
            has_stopped = token_id == self.eos_token_id
            if not has_stopped and not is_last:
                if len(going_on) < options.beam_size:
                    going_on.append(entry)
            elif place < options.beam_size and not is_closed:
                reason = FinishReason.STOP if has_stopped else FinishReason.LENGTH
                ended.append(parents[beam].continued(token_id, logprob, ranked).hypothesis(reason))
            if len(going_on) == options.beam_size <= place + 1:
                break  # what follows can neither live nor end
        if not going_on and not ended and not group.finished:  # everything is banned
            ended = [sequence.hypothesis(FinishReason.LENGTH) for sequence in parents]
        if ended:
            group.finished = sorted([*group.finished, *ended], key=_score, reverse=True)[: options.num_finished]
        return _continued(parents, going_on)

    def _is_over(self, group: SequenceGroup, live: list[Sequence]) -> bool:
        options = group.request.options
        if not live:
            return True
        num_tokens = len(live[0].token_ids)
        if len(group.finished) < options.num_finished:
            return False
        if options.early_stopping is EarlyStopping.FIRST:
            return True
        if options.early_stopping is EarlyStopping.NEVER and options.length_penalty > 0.0:
            num_tokens = group.request.max_target_tokens
        return bool(live[0].ranked_logprob / num_tokens**options.length_penalty <= group.finished[-1].score)

    # -- samples ---------------------------------------------------------------------------------------------------

    def _sample(self, group: SequenceGroup, step: "_Step") -> None:
        options, parents = group.request.options, group.live
        generators = [sequence.generator for sequence in parents if sequence.generator]
        if not generators:  # the first token that is not forced: here the samples part
            seeds = [None if options.seed is None else f"{options.seed}:{i}" for i in range(options.num_hypotheses)]
            generators = [random.Random(seed) for seed in seeds]
            parents = parents * options.num_hypotheses
        drawn = []
        for sequence, generator in zip(parents, generators, strict=True):
            candidate = self._draw(sequence, generator, step)
            if candidate is None:
                group.finished.append(sequence.hypothesis(FinishReason.LENGTH))
                continue
            drawn.append(sequence.continued(*candidate))
            drawn[-1].generator = generator
        self._finish(group, drawn)

    def _draw(self, sequence: Sequence, generator: random.Random, step: "_Step") -> Candidate | None:
        """A token at random; None where all are banned."""
        options, row = sequence.group.request.options, sequence.row
        if not step.questions[row].needs_all:
            candidates = self._candidates(sequence, options.top_k, step)
            logits = np.array([candidate.ranked_logprob for candidate in candidates])
            place = _drawn(logits / options.temperature, options.top_p, generator.random())
            return None if place is None else candidates[place]
        ranked = self._penalised(sequence, step)
        ids = np.argsort(-ranked, kind="stable")[: options.top_k or None]
        place = _drawn(ranked[ids].astype(np.float64) / options.temperature, options.top_p, generator.random())
        if place is None:
            return None
        logprob = float(step.output.all_logprobs[step.places[row], ids[place]])
        return Candidate(int(ids[place]), logprob, logprob)

    # -- progress --------------------------------------------------------------------------------------------------

    def certain_ids(self, group: SequenceGroup) -> tuple[int, ...]:
        """The tokens, without end-of-sentence, that the best hypothesis begins with whatever comes."""
        rivals: list[Rows[int]] = [sequence.token_ids for sequence in group.live]
        if group.finished:
            rivals.append(group.finished[0].token_ids)  # those that are finished and worse cannot win any more
        first, *others = rivals
        num_common = len(first) - (bool(first) and first[-1] == self.eos_token_id)
        for other in others:
            num_common = min(num_common, len(other))
            num_common = next((i for i in range(num_common) if first[i] != other[i]), num_common)
        return tuple(first[:num_common])


def _continued(live: Rows[Sequence], ranking: Rows["_Ranked"]) -> list[Sequence]:
    """The sequences with a token more each; the last that continues a sequence is that sequence, made longer."""
    num_left = [0] * len(live)
    for beam, *_ in ranking:
        num_left[beam] += 1
    result = []
    for beam, token_id, logprob, ranked in ranking:
        sequence = live[beam]
        num_left[beam] -= 1
        if num_left[beam]:
            sequence = sequence.continued(token_id, logprob, ranked)
        else:
            sequence.append(token_id, logprob, ranked)
        result.append(sequence)
    return result


def _score(hypothesis: Hypothesis) -> float:
    return hypothesis.score


def _drawn(logits: NDArray[np.float64], top_p: float, uniform: float) -> int | None:
    """The index drawn by `uniform` in [0, 1) from the softmax of logits, sorted falling, cut to its nucleus `top_p`.

    None where nothing is possible.
    """
    if not len(logits) or logits[0] == -math.inf:
        return None
    cumulated = np.exp(logits - logits[0]).cumsum()
    num_left = int(np.searchsorted(cumulated, top_p * cumulated[-1])) + 1
    num_left = min(num_left, int(np.searchsorted(cumulated, cumulated[-1])) + 1)  # what is impossible stays so
    return min(int(np.searchsorted(cumulated, uniform * cumulated[num_left - 1], side="right")), num_left - 1)
