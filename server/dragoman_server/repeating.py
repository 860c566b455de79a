"""What is done again and again while the server runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


async def repeating(what: str, seconds: float, do: Callable[[], Awaitable[None]]) -> None:
    """Does something for ever, with a pause each time. A fault is no end of it: the next time may go better.

    Args:
        what: it is, for the log, which has each fault once while it stays the same.
        seconds: of the pause.
        do: does it.
    """
    told = ""
    while True:
        try:
            await do()
        except Exception as error:
            if repr(error) != told:
                logger.exception("%s failed, and goes on", what)
            told = repr(error)
        else:
            told = ""
        await asyncio.sleep(seconds)
