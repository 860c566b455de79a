"""All parts, one table: `python -m benchmarks`."""

from collections.abc import Iterator

from benchmarks import attention, curves, offline, roofline, served
from benchmarks.report import Row
from benchmarks.settings import Settings, run_part


def run(settings: Settings) -> Iterator[Row]:
    """Measure Dragoman and its peers side by side."""
    for part in (offline, served, attention, roofline, curves):
        yield from part.run(settings)


if __name__ == "__main__":
    run_part("bench", run)
