"""One line for values that hold many others."""

from reprlib import Repr
from typing import Final

_CLIPPED: Final = Repr()
_CLIPPED.maxstring = _CLIPPED.maxother = 80


def short_repr(value: object, **shown: object) -> str:
    """The class of a value and some of what it holds, clipped where that is long."""
    return f"{type(value).__name__}({', '.join(f'{name}={_CLIPPED.repr(each)}' for name, each in shown.items())})"
