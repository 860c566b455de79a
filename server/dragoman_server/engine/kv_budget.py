"""Memory for the keys and values of all engines together."""

import math
import threading


class KvBudget:
    """What the rows that run in all engines may come to take up.

    Each engine says what its rows may need at most, and may deal rows within what the others leave. Whoever has `lock`
    decides on both.

    Args:
        max_bytes: of all engines together.
    """

    def __init__(self, max_bytes: float = math.inf) -> None:
        self.max_bytes = max_bytes
        self.lock = threading.Lock()
        self._reserved: dict[object, int] = {}  # bytes by engine

    @property
    def reserved_bytes(self) -> int:
        """What the rows of all engines may come to take up: a glance, without the lock."""
        return sum(tuple(self._reserved.values()))

    def left_to(self, engine: object) -> float:
        """Bytes that the other engines leave to this one."""
        return self.max_bytes - sum(self._reserved.values()) + self._reserved.get(engine, 0)

    def reserve(self, engine: object, num_bytes: int) -> None:
        """Notes what the rows of an engine may come to take up; of one without rows it forgets all."""
        if num_bytes:
            self._reserved[engine] = num_bytes
        else:
            self._reserved.pop(engine, None)
