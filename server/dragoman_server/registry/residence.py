"""Which models are in memory: loading, making room within a limit of bytes, and freeing what nobody uses any more."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from dragoman_server.errors import (
    DeadlineError,
    DrainingError,
    ModelFailedError,
    NoRoomError,
    StartError,
)
from dragoman_server.registry.entry import Entry, Listing
from dragoman_server.registry.loading import StoppedError, load, max_load_seconds
from dragoman_server.registry.model import Model

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# While a model waits for room and all others are in use, new calls wait, too, so that one of the others comes out of
# use. Streams may hold theirs for hours, and must not hold up everybody.
_GATE_SECONDS = 1.0
_MAX_SECONDS_FOR_ROOM = 30.0

# The reason may have passed: no memory, no file descriptors, a file that nobody could read.
_SECONDS_TO_NEXT_TRY = 60.0

# A bundle may be loaded by another process first, which tries it.
_NUM_LOADS = 2


class RetiredError(Exception):
    """A model is not served any more: another may be."""


class Opener(Protocol):
    """Loads models. Its methods are called on threads."""

    def peek(self, folder: Path) -> Listing:
        """What is known of a bundle before it is loaded.

        Raises:
            BundleError: it cannot be read, or is not for the devices there are.
        """

    def check(self, folder: Path) -> None:
        """Raises BundleError where files of a bundle are not as its manifest has them."""

    def open(self, entry: Entry) -> Model:
        """Loads a model, compares it with its certificate, and runs it.

        Raises:
            StartError: it cannot be served.
        """


class Residence:
    """The models in memory. Belongs to one event loop.

    Args:
        opener: loads them.
        max_bytes: that the weights of all may take up together; 0 is no limit.
        stop: is set when the server stops: what is being loaded is given up.
        on_change: called when the state of a model has changed.
        on_load: called with a model's name, whether it was loaded, and the seconds it took.
    """

    def __init__(
        self,
        opener: Opener,
        max_bytes: int,
        stop: asyncio.Event,
        on_change: Callable[[], None],
        on_load: Callable[[str, bool, float], None],
    ) -> None:
        self._opener, self.max_bytes, self._stop = opener, max_bytes, stop
        self._on_change, self._on_load = on_change, on_load
        self._resident: set[Entry] = set()  # in memory, or on their way out of it
        self._tasks: dict[Entry, asyncio.Task[None]] = {}  # that load them
        self._retiring: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()  # of loading: one at a time, in the order in which they were asked for
        self._gate = asyncio.Event()
        self._gate.set()
        self._released = asyncio.Condition()

    @property
    def resident(self) -> frozenset[Entry]:
        """The models in memory."""
        return frozenset(self._resident)

    # -- use -----------------------------------------------------------------------------------

    async def hold(self, entry: Entry, deadline: float) -> Model:
        """Keeps a model in memory until `release`, and loads it before where it is not.

        Raises:
            RetiredError: it has been retired meanwhile.
            ModelFailedError: it cannot be loaded.
            NoRoomError: all others are in use.
            DeadlineError: the deadline passed first.
            DrainingError: the server stops.
        """
        while not self._gate.is_set():
            await by(deadline, self._gate.wait())
        if entry.is_retired:
            raise RetiredError
        entry.num_leases += 1
        entry.last_used, entry.is_resting = time.monotonic(), False
        try:
            if entry.model is None:
                await by(deadline, asyncio.shield(self.load(entry)))
            assert entry.model is not None
            return entry.model
        except BaseException:
            self.release(entry)
            raise

    def release(self, entry: Entry) -> None:
        """Ends one `hold`."""
        entry.num_leases -= 1
        if not entry.num_leases and (self.max_bytes or entry.is_retired):
            _keep(asyncio.ensure_future(self._tell_released()), self._retiring)

    async def _tell_released(self) -> None:
        async with self._released:
            self._released.notify_all()

    # -- loading -------------------------------------------------------------------------------

    def load(self, entry: Entry) -> "asyncio.Task[None]":
        """Loads a model that is not in memory. It goes on whoever waits for it."""
        if entry not in self._tasks:
            entry.is_loading = True
            task = self._tasks[entry] = asyncio.create_task(self._load(entry))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # nobody may wait for it
            self._on_change()
        return self._tasks[entry]

    async def _load(self, entry: Entry) -> None:
        asked = time.monotonic()
        try:
            async with self._turn:
                await self._make_room(entry, asked)
                started = time.monotonic()
                try:
                    max_seconds = _NUM_LOADS * max_load_seconds(entry.folder)
                    model = await load(lambda: self._opener.open(entry), self._stop, max_seconds)
                except StartError as error:
                    self._on_load(entry.name, False, time.monotonic() - started)
                    entry.error, entry.failed_until = str(error), time.monotonic() + _SECONDS_TO_NEXT_TRY
                    if self.max_bytes:  # else whoever adds the model knows
                        logger.error("model %s cannot be loaded: %s", entry.resource_name, error)
                    raise ModelFailedError(f"model {entry.name!r} cannot be loaded: {error}") from error
                except StoppedError:
                    raise DrainingError("the server is stopping") from None
                model.engine.start()
                entry.model, entry.load_time, entry.error = model, time.time(), ""
                self._resident.add(entry)
                seconds = time.monotonic() - started
                self._on_load(entry.name, True, seconds)
                logger.info("loaded model %s in %.1f s", entry.resource_name, seconds)
        finally:
            entry.is_loading = False
            del self._tasks[entry]
            self._on_change()

    async def _make_room(self, entry: Entry, asked: float) -> None:
        """Frees idle models, those unused for the longest first, until there is room.

        Args:
            entry: needs it.
            asked: since when, on the `time.monotonic` clock.

        Raises:
            NoRoomError: all others stayed in use.
        """
        began = time.monotonic()
        try:
            while self._is_over(entry.num_bytes):
                if idle := self._idle():
                    longest_unused = min(idle, key=lambda other: other.last_used)
                    await self._free(longest_unused)
                    logger.info("model %s made room", longest_unused.resource_name)
                    continue
                now = time.monotonic()
                if now - asked >= _MAX_SECONDS_FOR_ROOM:
                    raise NoRoomError(
                        f"model {entry.name!r} has no room within max_model_bytes: the models in memory are all in use",
                        1.0,
                    )
                if now - began < _GATE_SECONDS:
                    self._gate.clear()
                    until = began + _GATE_SECONDS
                else:
                    self._gate.set()
                    until = asked + _MAX_SECONDS_FOR_ROOM
                await self._some_idle(until)
        finally:
            self._gate.set()

    def _idle(self) -> list[Entry]:
        return [entry for entry in self._resident if not entry.num_leases and entry.model is not None]

    def _is_over(self, num_bytes: int) -> bool:
        return bool(self.max_bytes) and sum(other.num_bytes for other in self._resident) + num_bytes > self.max_bytes

    async def _some_idle(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())), self._released:
                await self._released.wait_for(self._idle)

    # -- freeing -------------------------------------------------------------------------------

    def retire(self, entry: Entry) -> "asyncio.Task[None]":
        """Frees a model for good when the last call that uses it has ended."""
        entry.is_retired = True
        self._on_change()
        return _keep(asyncio.create_task(self._retire(entry)), self._retiring)

    async def _retire(self, entry: Entry) -> None:
        if entry in self._tasks:
            await asyncio.wait([self._tasks[entry]])
        async with self._released:
            await self._released.wait_for(lambda: not entry.num_leases)
        if entry.model is not None:
            await self._free(entry)
            logger.info("unloaded model %s", entry.resource_name)

    async def _free(self, entry: Entry) -> None:
        """Closes a model that nobody uses."""
        model, entry.model = entry.model, None
        assert model is not None
        await asyncio.to_thread(model.close)
        self._resident.discard(entry)
        async with self._released:
            self._released.notify_all()
        self._on_change()

    async def give_back_memory(self, idle_seconds: float) -> None:
        """Has models that were not used for so long give back what their keys and values have grown to."""
        latest = time.monotonic() - idle_seconds
        for entry in self.resident:
            if entry.num_leases or entry.model is None or entry.is_resting or entry.last_used > latest:
                continue
            entry.is_resting = True
            entry.num_leases += 1  # else it could be closed meanwhile
            try:
                await asyncio.to_thread(entry.model.engine.give_back_memory)
            finally:
                self.release(entry)

    def close(self) -> None:
        """Closes all models."""
        for entry in self.resident:
            model, entry.model = entry.model, None
            if model is not None:
                model.close()
        self._resident.clear()


def _keep(task: "asyncio.Task[None]", tasks: "set[asyncio.Task[None]]") -> "asyncio.Task[None]":
    """Has the event loop, which keeps no task by itself, keep one until it is done."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task


async def by(deadline: float, waiting: Awaitable[_T]) -> _T:
    """Waits until the deadline, on the `time.monotonic` clock.

    Raises:
        DeadlineError: it has passed.
    """
    try:
        async with asyncio.timeout(None if deadline == math.inf else max(0.0, deadline - time.monotonic())):
            return await waiting
    except TimeoutError:
        raise DeadlineError("the deadline passed before the model was loaded") from None
