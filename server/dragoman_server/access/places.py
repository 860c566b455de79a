"""Places for calls that are in flight, and a short line of calls that wait for one."""

import asyncio
from collections import deque

_MAX_WAITING_SECONDS = 1.0
# Fewer, and places would be empty now and then.
_NUM_WAITING_PER_PLACE = 4


class Places:
    """A number of places, taken in the order in which they are asked for. Belongs to one event loop.

    For each place four calls may wait, for a second: whoever is refused comes back later than a place is free, and
    where all are refused who find none, some stay empty.

    Args:
        number: of places; None is no limit.
    """

    def __init__(self, number: int | None = None) -> None:
        self._number = number
        self._waiting = deque[asyncio.Future[None]]()
        self.num_taken = 0

    @property
    def number(self) -> int | None:
        """May be changed. What is in flight stays, and counts."""
        return self._number

    @number.setter
    def number(self, number: int | None) -> None:
        self._number = number
        self._let_in()

    async def take(self) -> bool:
        """Waits for a place, which `leave` gives back; whether there was one."""
        if self._has_room() and not self._waiting:
            self.num_taken += 1
            return True
        if self._number is not None and len(self._waiting) >= _NUM_WAITING_PER_PLACE * self._number:
            return False
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await asyncio.wait((place,), timeout=_MAX_WAITING_SECONDS)
        except asyncio.CancelledError:
            if place.done():  # too late: it has its place
                self.leave()
            raise
        finally:
            if not place.done():
                self._waiting.remove(place)
        return place.done()

    def leave(self) -> None:
        """Gives a place back."""
        self.num_taken -= 1
        self._let_in()

    def _has_room(self) -> bool:
        return self._number is None or self.num_taken < self._number

    def _let_in(self) -> None:
        while self._waiting and self._has_room():
            self._waiting.popleft().set_result(None)
            self.num_taken += 1
