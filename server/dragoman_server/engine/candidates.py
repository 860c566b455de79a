"""The tokens that a request's targets may have, where they are not the whole vocabulary."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Candidates:
    """A list of tokens; what is not in it never comes. Compared by identity."""

    ids: NDArray[np.int32]  # sorted and unique; end-of-sentence and all forced ids are among them
    is_shared: bool = False  # whether it is that of many requests, as the list of a language is
