"""Who may have weights in memory at the same time, and who gives way: those that wait for their readers."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

_Kept = TypeVar("_Kept")

# What a reader takes between two pieces at most who is not slow.
_PATIENCE_SECONDS = 0.25


class Places(Generic[_Kept]):
    """A number of places, handed out in the order in which they are asked for. Belongs to one event loop.

    Args:
        num_places: how many.
    """

    def __init__(self, num_places: int) -> None:
        self._num_free = num_places
        self._waiting: dict[asyncio.Future[None], None] = {}  # in their order
        self._stalled: dict[Place[_Kept], None] = {}  # have a place and could give it up, the longest stalled first

    @contextmanager
    def reserved(self, on_lost: Callable[[], None]) -> "Iterator[Place[_Kept]]":
        """A claim to a place, which does not have one yet. It is given back at the end of the context.

        Args:
            on_lost: called when the place had to be given up for another.
        """
        place = Place(self, on_lost)
        try:
            yield place
        finally:
            place.close()

    async def _take(self) -> None:
        if self._stalled:
            next(iter(self._stalled)).lose()
        if self._num_free:
            self._num_free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            if not turn.cancelled():  # it came at the same time
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            turn = next(iter(self._waiting))
            del self._waiting[turn]
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1

    def _has_stalled(self, place: "Place[_Kept]") -> None:
        self._stalled[place] = None
        if self._waiting:
            place.lose()


class Place(Generic[_Kept]):
    """A place of one stream, and what the stream keeps there while its reader has a piece."""

    def __init__(self, places: Places[_Kept], on_lost: Callable[[], None]) -> None:
        self._places, self._on_lost = places, on_lost
        self._is_taken = False
        self._kept: _Kept | None = None
        self._stall: asyncio.TimerHandle | None = None  # while something is kept

    async def hold(self) -> _Kept | None:
        """Waits for the place; gives what was kept there, or None where nothing was or the place was lost meanwhile."""
        if not self._is_taken:
            await self._places._take()
            self._is_taken = True
        return self._taken_out()

    def keep(self, content: _Kept) -> None:
        """The reader has a piece. If it does not come for the next one soon, the place may go to another."""
        self._kept = content
        loop = asyncio.get_running_loop()
        self._stall = loop.call_later(_PATIENCE_SECONDS, self._places._has_stalled, self)

    def lose(self) -> None:
        """Gives up the place, and what is kept there, for another."""
        self.close()
        self._on_lost()

    def close(self) -> None:
        """Gives back the place, if it is taken."""
        self._taken_out()
        if self._is_taken:
            self._is_taken = False
            self._places._give_back()

    def _taken_out(self) -> _Kept | None:
        self._places._stalled.pop(self, None)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        content, self._kept = self._kept, None
        return content
