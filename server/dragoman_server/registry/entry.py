"""One version of a model, in memory or not, and how it stands."""

import enum
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Languages
from dragoman_server.registry.model import Model
from dragoman_server.registry.repository import Place, Signature
from dragoman_server.runtime.hardware import ON_CPU, Placement


class Listing(NamedTuple):
    """What is known of a model before it is loaded."""

    bundle: Bundle
    """With nothing but its manifest that may be used."""

    num_bytes: int
    """That its weights will take up, all copies."""

    placement: Placement = ON_CPU


class State(enum.Enum):
    """Whether a model takes calls."""

    READY = "ready"  # and is in memory
    LISTED = "listed"  # and is loaded for the first of them
    LOADING = "loading"
    DRAINING = "draining"  # no new ones, and those that use it go on
    FAILED = "failed"  # none


@dataclass(eq=False)
class Entry:
    """One version of a model.

    Attributes:
        place: where its bundle is.
        name: of the model.
        version: of the model.
        bundle: with nothing but its manifest that may be used; None where that cannot be read.
        num_bytes: that its weights take up in memory, all copies.
        placement: where it is decoded.
        signature: of its folder when it was read.
        error: why the present contents of its folder cannot be served.
        failed_until: for how long a model that is not in memory is not tried again, on the `time.monotonic` clock.
        model: while it is in memory.
        is_loading: whether it will be.
        is_retired: whether it is not to be found any more.
        load_time: Unix time.
        num_leases: calls that use it, or wait for it to be loaded.
        is_resting: whether it has given back the memory that it does not need while nobody uses it.
        last_used: when the last call began, on the `time.monotonic` clock.
    """

    place: Place
    name: str
    version: str
    bundle: Bundle | None = None
    num_bytes: int = 0
    placement: Placement = ON_CPU
    signature: Signature = ()
    error: str = ""
    failed_until: float = math.inf
    model: Model | None = None
    is_loading: bool = False
    is_retired: bool = False
    load_time: float = 0.0
    num_leases: int = 0
    is_resting: bool = False
    last_used: float = field(default_factory=time.monotonic)
    languages: Languages | None = None

    def __post_init__(self) -> None:
        if self.bundle is not None:
            self.languages = Languages(self.bundle.manifest.languages)

    @property
    def resource_name(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"

    @property
    def folder(self) -> Path:
        """Of the bundle."""
        return self.place.folder

    @property
    def state(self) -> State:
        """Whether it takes calls."""
        if self.is_retired:
            return State.DRAINING
        if self.model is not None:
            return State.READY
        if self.error and time.monotonic() < self.failed_until:
            return State.FAILED
        return State.LOADING if self.is_loading else State.LISTED

    @property
    def is_serving(self) -> bool:
        """Whether it takes calls, if need be after it has been loaded."""
        return self.state in (State.READY, State.LISTED, State.LOADING)
