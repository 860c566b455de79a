"""What the engine needs of a model: two verbs, `encode` and `decode_step`, and rows that can be copied."""

from collections.abc import Sequence
from typing import Protocol

from dragoman_server.engine.candidates import Candidates
from dragoman_server.engine.search import StepOutput
from dragoman_server.engine.slots import Move


class Runner(Protocol):
    """What the engine needs of a model. Rows are rows of the KV pool; live rows are 0..n-1.

    Any verb raises DeviceLostError where nothing can be computed any more, which ends the engine. What else one raises
    fails the requests that it is about.

    Attributes:
        is_alone: whether no other lane computes; set before every step.
    """

    is_alone: bool

    @property
    def kv_bytes_per_token(self) -> int:
        """What one source or target token takes up in the pool."""

    def encode(self, sources: Sequence[Sequence[int]], first_row: int) -> None:
        """Encodes a batch into consecutive rows from `first_row` on, which start decoding afresh."""

    def decode_step(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        top_k: int = 1,
        score_ids: Sequence[int] = (),
        all_rows: Sequence[int] = (),
        candidates: Sequence[Candidates | None] = (),
    ) -> StepOutput:
        """Feeds row i the token `token_ids[i]` at its position `positions[i]` (0 for the first).

        Args:
            token_ids: one for each live row.
            positions: one for each live row.
            top_k: how many of the most probable tokens are wanted; fewer come where the vocabulary is smaller.
            score_ids: tokens whose log-probs are wanted, one for each row; or none.
            all_rows: rows of which the whole vocabulary is wanted.
            candidates: the tokens that each row may have, None for the whole vocabulary; or none, which is that for all
                rows. Log-probs are those among the tokens of the list, -inf for others.
        """

    def move_rows(self, moves: Sequence[Move]) -> None:
        """Copies rows, with everything that was encoded and decoded in them so far."""

    def give_back_memory(self) -> None:
        """Gives back what keys and values have grown to. No row may be live."""
