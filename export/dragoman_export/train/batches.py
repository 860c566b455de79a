"""The examples of an epoch, their batches and order, and the arrays of one batch.

All depends on the corpus and a seed alone, so that an interrupted training finds its place again. No code here loops
over sentences: batches are made on another thread, which must not hold up the one that trains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dragoman_export.languages import Pair
from dragoman_export.train.prepared import Links, PreparedText, TokenRows
from dragoman_server.bundle.framing import Framing

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Direction:
    """One translation direction: how its sources are framed, and the tokenized sides, without specials."""

    source_language: str
    target_language: str
    framing: Framing
    source: TokenRows
    target: TokenRows
    weight: float = 1.0  # how often an epoch shows each pair; 0.5 shows a random half of them
    links: Links | None = None  # of source tokens (`first`) to target tokens (`second`)


def directions_of(
    texts: Sequence[PreparedText],
    framing_of: Callable[[Pair], Framing],
    both: bool,
    weights: Mapping[tuple[str, str], float],
) -> list[Direction]:
    """Each text in the order of its languages and, if wanted, in the other; weights of both kinds are multiplied."""
    directions = []
    for text in texts:
        (first, second), links = text.languages, text.links
        framing = framing_of((first, second))
        directions.append(Direction(first, second, framing, *text.sides, text.weight, links))
        if both:
            turned = None if links is None else Links(links.second, links.first, links.offsets)
            framing = framing_of((second, first))
            directions.append(Direction(second, first, framing, *text.sides[::-1], text.weight, turned))
    return [replace(d, weight=d.weight * weights.get((d.source_language, d.target_language), 1.0)) for d in directions]


@dataclass(frozen=True)
class BatchOptions:
    """How examples are formed and grouped; lengths and budgets are in tokens."""

    batch_tokens: int = 3072  # padded tokens of the longer side, per batch
    join_share: float = 0.1  # share of the pairs that is joined into longer examples
    max_tokens: int = 200  # longest example, either side; longer pairs are left out


@dataclass(frozen=True)
class EpochPlan:
    """The examples of an epoch. An example is one pair of a direction, or several that are joined.

    Example e consists of the pairs `rows[row_offsets[e] : row_offsets[e + 1]]`. Batch b consists of the examples
    `order[batch_offsets[b] : batch_offsets[b + 1]]`. Lengths are with specials.
    """

    direction: Ints  # [examples]
    rows: Ints
    row_offsets: Ints  # [examples + 1]
    source_lengths: Ints  # [examples]
    target_lengths: Ints  # [examples]
    order: Ints  # [examples]
    batch_offsets: Ints  # [batches + 1]

    def __len__(self) -> int:
        return len(self.batch_offsets) - 1

    def examples(self, batch: int) -> Ints:
        return self.order[self.batch_offsets[batch] : self.batch_offsets[batch + 1]]


def plan_epoch(directions: Sequence[Direction], options: BatchOptions, seed: int, epoch: int) -> EpochPlan:
    """The batches of one epoch, in order: every pair of every direction (by its weight), grouped by length, shuffled.

    Some pairs are joined to their (shuffled) neighbours up to a random length, so that the model also learns inputs of
    several sentences, which a corpus of single sentences never has. The sources of a batch have one length as long as
    that fills at least half of it, since attention over them needs no mask then.
    """
    rng = np.random.default_rng([seed, epoch])
    parts = [_examples(direction, options, rng) for direction in directions]
    rows = np.concatenate([rows for rows, *_ in parts])
    num_rows = np.concatenate([num_rows for _, num_rows, *_ in parts])
    source_lengths, target_lengths = (np.concatenate([part[i] for part in parts]) for i in (2, 3))
    direction = np.repeat(np.arange(len(parts)), [len(num_rows) for _, num_rows, *_ in parts])
    # Random ties, then by length: batches hold little padding and still differ from epoch to epoch.
    order = np.lexsort((rng.random(len(direction)), target_lengths, source_lengths))
    ends = _batch_ends(source_lengths[order], target_lengths[order], options.batch_tokens)
    batches = rng.permutation(len(ends))
    begins = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    sizes = (ends - begins)[batches]
    return EpochPlan(
        direction,
        rows,
        _offsets(num_rows),
        source_lengths,
        target_lengths,
        order[_ranges(begins[batches], sizes)],
        _offsets(sizes),
    )


def _examples(direction: Direction, options: BatchOptions, rng: np.random.Generator) -> tuple[Ints, Ints, Ints, Ints]:
    """The rows of all examples of a direction, and by example the number of rows, the source and target length."""
    # Specials: those of the framing on the source, end-of-sentence on the target.
    extra = direction.framing.num_specials
    source_lengths, target_lengths = direction.source.lengths, direction.target.lengths
    fitting = np.flatnonzero(
        (source_lengths + extra <= options.max_tokens) & (target_lengths + 1 <= options.max_tokens)
    )
    repetitions = int(direction.weight)
    sampled = rng.permutation(fitting)[: round(len(fitting) * (direction.weight - repetitions))]
    rows = rng.permutation(np.concatenate([np.repeat(fitting, repetitions), sampled]))
    source_ends, target_ends = np.cumsum(source_lengths[rows]), np.cumsum(target_lengths[rows])
    begins: list[int] = []  # of the examples that are joined of several rows, or could have been
    position, num_joined = 0, int(len(rows) * options.join_share)
    while position < num_joined:
        begins.append(position)
        limit = rng.integers(16, options.max_tokens, endpoint=True)
        source_before, target_before = (ends[position - 1] if position else 0 for ends in (source_ends, target_ends))
        # The rows up to the last that leaves both sides within the limit, and one in any case.
        end = min(
            np.searchsorted(source_ends, source_before + limit - extra, side="right"),
            np.searchsorted(target_ends, target_before + limit - 1, side="right"),
        )
        position = max(position + 1, int(end))
    offsets = np.concatenate([np.array(begins, dtype=np.int64), np.arange(position, len(rows) + 1)])
    num_rows = np.diff(offsets)
    sums = (np.diff(np.concatenate([[0], ends])[offsets]) for ends in (source_ends, target_ends))
    source, target = sums
    return rows, num_rows, source + extra, target + 1


def _batch_ends(source_lengths: Ints, target_lengths: Ints, batch_tokens: int) -> Ints:
    """Cuts examples, sorted by source and then by target length, into batches; returns the end of each."""
    ends = []
    begin, num_examples = 0, len(source_lengths)
    while begin < num_examples:
        window = slice(begin, begin + max(1, batch_tokens // int(source_lengths[begin])))
        widths = np.maximum.accumulate(np.maximum(source_lengths[window], target_lengths[window]))
        tokens = widths * np.arange(1, len(widths) + 1)
        size = max(1, int(np.searchsorted(tokens, batch_tokens, side="right")))
        num_equal = int(np.searchsorted(source_lengths, source_lengths[begin], side="right")) - begin
        if num_equal < size <= 2 * num_equal:
            size = num_equal
        begin += size
        ends.append(begin)
    return np.array(ends, dtype=np.int64)


@dataclass(frozen=True)
class BatchArrays:
    """One batch: B examples, S source positions, T target positions, N target tokens, K links of tokens."""

    source_ids: Ints  # [B, S], right-padded
    source_mask: NDArray[np.bool_] | None  # [B, S], False at padding; None if there is none
    target_ids: Ints  # [B, T], the decoder's input, right-padded
    token_positions: Ints | None  # [N], of the target tokens among the B x T positions; None if there is no padding
    labels: Ints  # [N], the token after each target token
    link_positions: Ints  # [K], among B x T x S: the row that has read the target token, and the source position
    link_weights: NDArray[np.float32]  # [K]; those of a target token sum to 1
    num_linked_tokens: int  # target tokens with links
    num_pairs: int
    num_tokens: int  # of both sides, without padding

    @property
    def num_padded_tokens(self) -> int:
        return self.source_ids.size + self.target_ids.size


class BatchMaker:
    """Assembles batches of the examples of a plan, in NumPy."""

    def __init__(self, directions: Sequence[Direction], pad_id: int, bos_id: int, eos_id: int) -> None:
        self._pad_id, self._bos_id, self._eos_id = pad_id, bos_id, eos_id
        self._num_directions = len(directions)
        self._pool = _Pool([*(d.source for d in directions), *(d.target for d in directions)])
        framings = [direction.framing for direction in directions]
        if len({(len(framing.source_prefix), len(framing.source_suffix)) for framing in framings}) != 1:
            raise ValueError("what stands around the sources differs in length between directions")
        self._prefixes = np.array([framing.source_prefix for framing in framings], dtype=np.int64)
        self._suffixes = np.array([framing.source_suffix for framing in framings], dtype=np.int64)
        self._links = _LinkPool([direction.links for direction in directions], [len(d.source) for d in directions])

    def assemble(self, plan: EpochPlan, batch: int) -> BatchArrays:
        examples = plan.examples(batch)
        num_rows = plan.row_offsets[examples + 1] - plan.row_offsets[examples]
        rows = plan.rows[_ranges(plan.row_offsets[examples], num_rows)]
        directions = plan.direction[examples]
        rows_direction = np.repeat(directions, num_rows)
        source_lengths, target_lengths = plan.source_lengths[examples], plan.target_lengths[examples]
        num_examples, width, height = len(examples), int(source_lengths.max()), int(target_lengths.max())
        starts = np.arange(num_examples)

        prefix_length = self._prefixes.shape[1]
        source_ids = np.full((num_examples, width), self._pad_id, dtype=np.int64)
        source_ids[:, :prefix_length] = self._prefixes[directions]
        suffix_places = source_lengths[:, None] - np.arange(self._suffixes.shape[1], 0, -1)
        source_ids[starts[:, None], suffix_places] = self._suffixes[directions]
        source_begins = self._pool.put(source_ids, rows_direction, rows, num_rows, prefix_length)

        target_ids = np.full((num_examples, height), self._pad_id, dtype=np.int64)
        target_ids[:, 0] = self._bos_id
        target_begins = self._pool.put(target_ids, rows_direction + self._num_directions, rows, num_rows, 1)
        following = np.full_like(target_ids, self._pad_id)
        following[:, :-1] = target_ids[:, 1:]
        following[starts, target_lengths - 1] = self._eos_id

        is_token = np.arange(height) < target_lengths[:, None]
        positions = None if is_token.all() else np.flatnonzero(is_token)
        mask = None if (source_lengths == width).all() else np.arange(width) < source_lengths[:, None]
        return BatchArrays(
            source_ids,
            mask,
            target_ids,
            positions,
            following.ravel() if positions is None else following.ravel()[positions],
            *self._links.positions(rows_direction, rows, source_begins, target_begins, width),
            num_pairs=len(rows),
            num_tokens=int(source_lengths.sum() + target_lengths.sum()),
        )


class _Pool:
    """The rows of all sides of all directions in one array, which has a side that two directions share once."""

    def __init__(self, sides: Sequence[TokenRows]) -> None:
        distinct = {id(side): side for side in sides}
        places = dict(zip(distinct, _offsets(np.array([len(s.flat) for s in distinct.values()])), strict=False))
        self._flat = np.concatenate([side.flat for side in distinct.values()])
        self._first_row = _offsets(np.array([len(side) for side in sides]))
        self._begins = np.concatenate([side.offsets[:-1] + places[id(side)] for side in sides])
        self._lengths = np.concatenate([side.lengths for side in sides])

    def put(self, ids: Ints, sides: Ints, rows: Ints, num_rows: Ints, first: int) -> Ints:
        """Writes rows of sides into `ids` [examples, width], one after the other from column `first` on.

        Returns where in the flattened `ids` each row begins.
        """
        of_side = self._first_row[sides] + rows
        lengths = self._lengths[of_side]
        ends = _offsets(lengths)
        of_example = np.repeat(np.arange(len(num_rows)), num_rows)
        before = ends[:-1] - ends[_offsets(num_rows)[of_example]]  # tokens of the rows before, in the same example
        begins: Ints = of_example * ids.shape[1] + first + before
        ids.ravel()[_ranges(begins, lengths)] = self._flat[_ranges(self._begins[of_side], lengths)]
        return begins


class _LinkPool:
    """The links of all directions; none for those that have none."""

    def __init__(self, links: Sequence[Links | None], num_rows: Sequence[int]) -> None:
        empty = np.zeros(0, dtype=np.uint8)
        given = [of or Links(empty, empty, np.zeros(n + 1, np.int64)) for of, n in zip(links, num_rows, strict=True)]
        places = _offsets(np.array([len(of.first) for of in given]))
        self._first, self._second = (np.concatenate([getattr(of, s) for of in given]) for s in ("first", "second"))
        self._first_row = _offsets(np.array(num_rows))
        self._begins = np.concatenate([of.offsets[:-1] + place for of, place in zip(given, places, strict=False)])
        self._lengths = np.concatenate([np.diff(of.offsets) for of in given])

    def positions(
        self, directions: Ints, rows: Ints, source_begins: Ints, target_begins: Ints, width: int
    ) -> tuple[Ints, NDArray[np.float32], int]:
        """`link_positions`, `link_weights` and `num_linked_tokens` of a batch of these rows."""
        of_direction = self._first_row[directions] + rows
        lengths = self._lengths[of_direction]
        chosen = _ranges(self._begins[of_direction], lengths)
        # Row t of cross-attention has read decoder input t, which begins with the start symbol: target token t - 1.
        queries = np.repeat(target_begins, lengths) + self._second[chosen]
        columns = (np.repeat(source_begins, lengths) + self._first[chosen]) % width
        of_query = np.bincount(queries)
        return queries * width + columns, (1 / of_query[queries]).astype(np.float32), int(np.count_nonzero(of_query))


def _offsets(lengths: Any) -> Ints:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _ranges(begins: Ints, lengths: Ints) -> Ints:
    """begins[0], begins[0] + 1, ... (lengths[0] of them), begins[1], ..."""
    ends = np.cumsum(lengths)
    ranges: Ints = np.arange(int(lengths.sum())) + np.repeat(begins - (ends - lengths), lengths)
    return ranges
