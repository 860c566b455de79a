"""What is asked of an engine by those who give it work."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol

from dragoman_server.engine.sequence import Completion, Outline, Request


class SegmentEngine(Protocol):
    """What a model, and those who ask it, need of its engine, or of several as one."""

    @property
    def stalled_seconds(self) -> float:
        """How long there has been work and no step was finished."""

    def start(self) -> None:
        """Takes requests from now on."""

    def give_back_memory(self) -> None:
        """Gives back what keys and values have grown to, unless there is work."""

    def stop(self) -> None:
        """Ends; requests not finished by then get an EngineDeadError."""

    def check(self, outline: Outline) -> None:
        """Refuses a call before its texts are looked at, as if its requests were as long as those of others lately.

        Raises:
            QueueFullError: there is no room for so many.
            NotInTimeError: they can hardly be finished by the deadline.
        """

    def seconds(self, outline: Outline) -> float:
        """How long the requests of a call would take, were they as long as those of others lately; 0: unknown."""

    def expecting(self, outline: Outline) -> AbstractContextManager[None]:
        """A call that `check` has let pass is made ready, and counts when the same caller asks again."""

    def submit(
        self,
        requests: Sequence[Request],
        caller: object = None,
        on_progress: Callable[[int, tuple[int, ...]], None] | None = None,
        *,
        identity: object = None,
        is_unlimited: bool = False,
    ) -> list[Future[Completion]]:
        """Queues all requests or none, without blocking. Cancelling a future withdraws it.

        Args:
            requests: each is answered by the future at the same place.
            caller: the call, whose requests take turns with those of others.
            on_progress: called on another thread with the index of a request and the ids that
                its target is now certain to begin with.
            identity: who calls, and takes turns with others who do.
            is_unlimited: whether they are refused for no limit and no deadline, and take no room from others.

        Raises:
            QueueFullError: there is no room for all of them.
            NotInTimeError: they cannot be finished by their deadline.
            EngineDeadError: the engine has ended.
        """
