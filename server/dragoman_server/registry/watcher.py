"""Follows a repository: serves the bundles that come, replaces those that change, and ends serving those that go."""

import asyncio
import logging

from dragoman_server.errors import DragomanError, DrainingError, NoRoomError
from dragoman_server.registry.registry import Registry
from dragoman_server.registry.repository import Place, Repository, Signature

logger = logging.getLogger(__name__)


class Watcher:
    """Keeps a registry as its repository is.

    What it sees at one look it acts upon at the next, if it is the same: a bundle that is being copied keeps changing.
    A bundle that cannot be served is tried again when it has changed.

    Args:
        registry: serves the bundles.
        repository: has them.
    """

    def __init__(self, registry: Registry, repository: Repository) -> None:
        self._registry, self._repository = registry, repository
        self._seen: dict[Place, Signature] = {}  # at the last look
        self._tried: dict[Place, Signature] = {}  # what was served, or could not be

    async def serve_all(self) -> None:
        """Serves all bundles there are; those that cannot be served have their errors in the registry."""
        for place, signature in await asyncio.to_thread(self._look):
            await self._serve(place, signature)

    async def follow(self, seconds: float) -> None:
        """Looks every so many seconds, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.catch_up()
            except OSError as error:
                logger.warning("the repository cannot be read: %s", error.strerror)
            except Exception:  # whatever it is, the next look may do better
                logger.exception("the repository could not be looked through")

    async def catch_up(self) -> None:
        """Looks once."""
        found = await asyncio.to_thread(self._look)
        before, self._seen = self._seen, dict(found)
        for place, signature in found:
            is_known = signature in (self._tried.get(place), self._registry.unloaded.get(place))
            if not is_known and signature == before.get(place):
                await self._serve(place, signature)
        # A folder that is replaced by another is gone for a moment.
        for place in self._tried.keys() - self._seen.keys() - before.keys():
            if not await asyncio.to_thread(place.is_gone):
                continue
            del self._tried[place]
            if (entry := self._registry.at(place)) is not None:
                logger.info("the folder of model %s is gone", entry.resource_name)
                self._registry.discard(entry)

    def _look(self) -> list[tuple[Place, Signature]]:
        return [(place, place.signature()) for place in self._repository.places()]

    async def _serve(self, place: Place, signature: Signature) -> None:
        try:
            await self._registry.add(place)
        except DrainingError:
            raise
        except NoRoomError as error:  # may be over when it is tried again
            logger.warning("%s", error)
        except DragomanError as error:
            logger.error("%r is not served: %s", str(place.folder), error)
            self._tried[place] = signature
        else:
            self._tried[place] = signature
