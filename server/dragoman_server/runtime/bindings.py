"""What a runner has bound, kept for the next step of the same shape."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

# Of one lane. Each takes some 12 kB, and a third of a millisecond to make; steps of most traffic have fewer shapes.
MAX_BINDINGS = 64

_Key = TypeVar("_Key", bound=Hashable)
_Bound = TypeVar("_Bound")


class Bindings(Generic[_Key, _Bound]):
    """The `MAX_BINDINGS` that were used last. Not thread-safe."""

    def __init__(self) -> None:
        self._bound: OrderedDict[_Key, _Bound] = OrderedDict()  # the latest used last

    def of(self, key: _Key, bind: Callable[[], _Bound]) -> _Bound:
        """The binding of a shape, which `bind` makes if it is not kept."""
        if key not in self._bound:
            if len(self._bound) == MAX_BINDINGS:
                self._bound.popitem(last=False)
            self._bound[key] = bind()
        self._bound.move_to_end(key)
        return self._bound[key]

    def clear(self) -> None:
        """Lets all go."""
        self._bound.clear()

    def __len__(self) -> int:
        return len(self._bound)
