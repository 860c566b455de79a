"""How Python is set up for a process whose lanes need its lock after every step.

A lane computes without the lock and needs it for a moment between two steps. What holds it for longer stops all lanes.
"""

import gc
import sys

# A thread that wants the lock gets it after this. Python's 5 ms are longer than a step.
_SWITCH_SECONDS = 0.001

# Objects made between two collections, and collections of one generation for each of the next. With Python's 700 it
# looks at the requests of a busy server dozens of times before they are answered.
_THRESHOLDS = (2_000, 10, 10)


class Heap:
    """Keeps the garbage collector from looking at modules and models, which stay: it holds the lock for 0.1 s then."""

    def __init__(self) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        gc.set_threshold(*_THRESHOLDS)
        self._is_settled = False

    def change(self) -> None:
        """Tells that models have come or gone."""
        self._is_settled = False

    def settle(self) -> None:
        """Collects all garbage if models have come or gone, and takes all that is left for what stays."""
        if self._is_settled:
            return
        self._is_settled = True
        gc.unfreeze()
        gc.collect()
        gc.freeze()
