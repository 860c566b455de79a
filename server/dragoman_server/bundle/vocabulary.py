"""The lists of likely tokens in a bundle."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class VocabularyTables(Protocol):
    """Which tokens are likely, by target language and by source token."""

    def language(self, target: str) -> NDArray[np.int32] | None:
        """The list of a target language, sorted and unique, the same array each time; None: it has none."""

    def shortlist(
        self, source_ids: Sequence[int], direction: tuple[str, str], per_token: int | None = None
    ) -> NDArray[np.int32] | None:
        """The list of a source, sorted and unique; None: the direction has none."""
