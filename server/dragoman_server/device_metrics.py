"""What is shown of the devices that models are decoded on: their lanes and their memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class DeviceReport(NamedTuple):
    """How a device stands."""

    name: str  # "cpu", or such as "cuda:0"
    num_lanes: int
    busy_seconds: float  # that its lanes have computed, together
    kv_reserved_bytes: int  # that the keys and values of what is decoded may come to take up
    kv_budget_bytes: float  # of which there may be so many; may be infinite
    memory_used_bytes: int  # of a GPU by all processes, of the CPUs by this one
    memory_limit_bytes: int


_GAUGES: tuple[tuple[str, str, Callable[[DeviceReport], float]], ...] = (
    ("dragoman_lanes", "Threads that compute, each a step of one model at a time.", lambda report: report.num_lanes),
    (
        "dragoman_kv_reserved_bytes",
        "What the keys and values of the segments being decoded may come to take up, of all models.",
        lambda report: report.kv_reserved_bytes,
    ),
    (
        "dragoman_kv_budget_bytes",
        "What they may come to take up at most: beyond it segments wait.",
        lambda report: report.kv_budget_bytes,
    ),
    (
        "dragoman_device_memory_used_bytes",
        "Memory in use: of a GPU by all processes, of the CPUs by this one.",
        lambda report: report.memory_used_bytes,
    ),
    (
        "dragoman_device_memory_limit_bytes",
        "Memory that there is: of a GPU, or of the machine or its container.",
        lambda report: report.memory_limit_bytes,
    ),
)


class Devices(Collector):
    """The metrics of devices, made of their reports whenever the page is asked for.

    Attributes:
        reports: tells how they stand; none until it is set.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reports: Callable[[], Sequence[DeviceReport]] = tuple
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        return _families(self.reports())

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples, from which the registry knows their names."""
        return _families(())


class CpuQuota(Collector):
    """What the kernel says of the quota of CPU time, whenever the page is asked for.

    Attributes:
        throttled_periods: tells how many periods there were, and in how many of them the quota was used up.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.throttled_periods: Callable[[], tuple[int, int]] = lambda: (0, 0)
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        num_periods, num_throttled = self.throttled_periods()
        yield CounterMetricFamily(
            "dragoman_cpu_periods", "Periods of the container's quota of CPU time; 0 without one.", num_periods
        )
        yield CounterMetricFamily(
            "dragoman_cpu_throttled_periods", "Those in which the quota was used up before the end.", num_throttled
        )


def _families(reports: Sequence[DeviceReport]) -> Iterator[Metric]:
    busy = CounterMetricFamily(
        "dragoman_lane_busy_seconds_total", "Time that the lanes have computed, together.", labels=("device",)
    )
    for report in reports:
        busy.add_metric((report.name,), report.busy_seconds)
    yield busy
    for name, documentation, value in _GAUGES:
        gauge = GaugeMetricFamily(name, documentation, labels=("device",))
        for report in reports:
            gauge.add_metric((report.name,), value(report))
        yield gauge
