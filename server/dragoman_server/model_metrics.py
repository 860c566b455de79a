"""What models count and show of themselves: their engines, caches and attention.

All carries the name of the model and not its version: names are few, versions come and go. Counters and histograms of a
name add up over its versions and stay when the last has gone; gauges show the versions that are loaded.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from threading import get_ident
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from dragoman_server.engine.engine import StepReport
from dragoman_server.tally import HistogramTally

# From a millisecond, in which a small model answers, to the deadlines of patient callers.
CALL_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# A step of a small model takes 0.6 ms.
_STEP_SECONDS: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

# Each histogram of steps by its attribute in `_StepTally`: name, documentation, buckets.
_HISTOGRAMS: Final[Mapping[str, tuple[str, str, tuple[float, ...]]]] = {
    "batch_size": ("dragoman_batch_size", "Rows decoded together, per decoding step.", _ROWS),
    "encode_seconds": (
        "dragoman_encode_seconds",
        "Time that a step spent in the encoder, where it did.",
        _STEP_SECONDS,
    ),
    "decode_step_seconds": ("dragoman_decode_step_seconds", "Duration of a decoding step.", _STEP_SECONDS),
    "queue_wait": (
        "dragoman_queue_wait_seconds",
        "Time from a segment's arrival until its encoding began.",
        CALL_SECONDS,
    ),
    "time_to_first_token": (
        "dragoman_time_to_first_token_seconds",
        "Time from a segment's arrival until its first token.",
        CALL_SECONDS,
    ),
    "time_per_output_token": (
        "dragoman_time_per_output_token_seconds",
        "Decoding time of a finished segment, for each token of its best translation.",
        _STEP_SECONDS,
    ),
    "segment_duration": (
        "dragoman_segment_duration_seconds",
        "Time from a segment's arrival until its translation was finished.",
        CALL_SECONDS,
    ),
}

# Each counter of steps, likewise.
_COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "num_source_tokens": (
        "dragoman_source_tokens_total",
        "Tokens encoded, language tags and end-of-sentence included.",
    ),
    "num_padding_tokens": (
        "dragoman_padding_tokens_total",
        "Positions encoded in vain, because sources that are encoded together have different lengths.",
    ),
    "num_generated_tokens": (
        "dragoman_generated_tokens_total",
        "Tokens decoded, those of all beams and end-of-sentence included.",
    ),
}


class ModelMetrics:
    """The metrics of one version of a model while it is loaded. Thread-safe.

    Several versions of one name may be loaded at once: `AllModels` makes gauges of what they say of themselves.

    Attributes:
        name: of the model, without version.
        info: version, precision and device; None until they are known.
        reports: of the latest step of each engine.
        last_step_time: when that was, in Unix time; 0 before the first.
        kv_bytes_per_token: size of the keys and values of a cached token.
        kv_limit_bytes: size of the pool for keys and values.
        weights_bytes: size of the weights in memory.
        stalled_seconds: tells how long its engine has had work and finished no step.
        num_attention_waiting: tells how many pieces of work of attention wait.
    """

    def __init__(self, name: str, models: "AllModels") -> None:
        self.name = name
        self.info: tuple[str, str, str] | None = None
        self.reports: dict[int, StepReport] = {}
        self.last_step_time = 0.0
        self.kv_bytes_per_token = self.kv_limit_bytes = self.weights_bytes = 0
        self.stalled_seconds: Callable[[], float] = float
        self.num_attention_waiting: Callable[[], int] = int
        self._models, self._tallies = models, models.tallies(name)
        # Looking up a child takes longer than counting with it.
        self._cancelled_by_caller = models.cancelled.labels(name, "caller")
        self._cancelled_by_deadline = models.cancelled.labels(name, "deadline")
        self._missed_in_queue = models.deadline_missed.labels(name, "queue")
        self._missed_in_decoding = models.deadline_missed.labels(name, "decode")
        self._missed_in_attention = models.deadline_missed.labels(name, "attention")
        self._wasted_tokens = models.wasted_tokens.labels(name)
        self._cache_hits = models.cache_requests.labels(name, "hit")
        self._cache_shared = models.cache_requests.labels(name, "shared")
        self._cache_misses = models.cache_requests.labels(name, "miss")
        self._attention_wait = models.attention_wait.labels(name)
        self._attention_seconds = models.attention_seconds.labels(name)
        models.add(self)

    def set_info(self, version: str, precision: str, device: str) -> None:
        """Says which version of the model this is, and where it is decoded."""
        self.info = version, precision, device

    def set_kv_cache(self, bytes_per_token: int, limit_bytes: int) -> None:
        """Says what a cached token takes up, and the size of the pool."""
        self.kv_bytes_per_token, self.kv_limit_bytes = bytes_per_token, limit_bytes

    def set_weights(self, num_bytes: int) -> None:
        """Says what the weights take up in memory, all copies together."""
        self.weights_bytes = num_bytes

    def set_attention(self, num_waiting: Callable[[], int]) -> None:
        """Says how to learn how many pieces of work of attention wait; must be quick."""
        self.num_attention_waiting = num_waiting

    def total(self, count: Callable[[StepReport], int]) -> int:
        """What a version's engines have of something together."""
        return sum(map(count, tuple(self.reports.values())))

    def observe_step(self, engine: int, report: StepReport) -> None:
        """Counts a step of one of the version's engines, of which each has a number."""
        self.reports[engine], self.last_step_time = report, time.time()
        if (tally := self._tallies.get(get_ident())) is None:
            tally = self._tallies[get_ident()] = _StepTally()
        tally.add(report)
        if report.num_cancelled:
            self._cancelled_by_caller.inc(report.num_cancelled)
        if report.num_expired:
            self._cancelled_by_deadline.inc(report.num_expired)
            self._missed_in_queue.inc(report.num_expired_waiting)
            self._missed_in_decoding.inc(report.num_expired - report.num_expired_waiting)
        if report.step.num_wasted_tokens:
            self._wasted_tokens.inc(report.step.num_wasted_tokens)

    def observe_lookups(self, num_hits: int, num_shared: int, num_misses: int) -> None:
        """Counts segments that were looked for in the cache, by what was found: an answer, one on its way, nothing."""
        for counter, number in (
            (self._cache_hits, num_hits),
            (self._cache_shared, num_shared),
            (self._cache_misses, num_misses),
        ):
            if number:
                counter.inc(number)

    def observe_attention(self, wait_seconds: float, seconds: float | None) -> None:
        """Counts a piece of work of attention.

        Args:
            wait_seconds: how long it waited for the thread.
            seconds: how long it took; None: it was dropped, because its deadline had passed.
        """
        self._attention_wait.observe(wait_seconds)
        if seconds is None:
            self._missed_in_attention.inc()
        else:
            self._attention_seconds.observe(seconds)

    def close(self) -> None:
        """Says that the version is no longer loaded: the gauges forget it. Steps that end later are still counted."""
        self._models.remove(self)
        self.stalled_seconds = float  # without the engine, which refers to this object


class _StepTally:
    """What one thread has counted of the steps of all models of one name. Only that thread writes."""

    def __init__(self) -> None:
        histograms = {attribute: HistogramTally(bounds) for attribute, (_, _, bounds) in _HISTOGRAMS.items()}
        self.batch_size = histograms["batch_size"]
        self.encode_seconds = histograms["encode_seconds"]
        self.decode_step_seconds = histograms["decode_step_seconds"]
        self.queue_wait = histograms["queue_wait"]
        self.time_to_first_token = histograms["time_to_first_token"]
        self.time_per_output_token = histograms["time_per_output_token"]
        self.segment_duration = histograms["segment_duration"]
        self.num_source_tokens = self.num_padding_tokens = self.num_generated_tokens = 0

    def add(self, report: StepReport) -> None:
        """Counts a step."""
        step = report.step
        if step.num_encoded_tokens:
            self.encode_seconds.observe(step.encode_seconds)
            self.num_source_tokens += step.num_encoded_tokens
            self.num_padding_tokens += step.num_padding_tokens
            for seconds in step.queue_seconds:
                self.queue_wait.observe(seconds)
            for seconds in step.first_token_seconds:
                self.time_to_first_token.observe(seconds)
        if step.num_decoded:
            self.batch_size.observe(step.num_decoded)
            self.decode_step_seconds.observe(step.decode_seconds)
            self.num_generated_tokens += step.num_decoded
        for answer in step.answers:
            self.segment_duration.observe(answer.seconds)
            self.time_per_output_token.observe(answer.seconds_per_token)


# Each gauge by the name of a model, with what it shows of the versions of that name.
_GAUGES: tuple[tuple[str, str, Callable[[Sequence[ModelMetrics]], float]], ...] = (
    (
        "dragoman_num_requests_waiting",
        "Segments that wait for a row to be decoded in.",
        lambda versions: sum(version.total(lambda report: report.num_waiting) for version in versions),
    ),
    (
        "dragoman_num_requests_running",
        "Segments being decoded, each in one row or, with a beam, several.",
        lambda versions: sum(version.total(lambda report: report.num_running) for version in versions),
    ),
    (
        "dragoman_num_attention_waiting",
        "Passes of attention that were announced and are not done yet.",
        lambda versions: sum(version.num_attention_waiting() for version in versions),
    ),
    (
        "dragoman_kv_cache_bytes",
        "Keys and values of the segments being decoded.",
        lambda versions: sum(
            version.total(lambda report: report.num_cached_tokens) * version.kv_bytes_per_token for version in versions
        ),
    ),
    (
        "dragoman_kv_cache_limit_bytes",
        "Size of the pool for keys and values, were all rows as long as the model allows.",
        lambda versions: sum(version.kv_limit_bytes for version in versions),
    ),
    (
        "dragoman_model_weights_bytes",
        "Weights in memory, all copies.",
        lambda versions: sum(version.weights_bytes for version in versions),
    ),
    (
        "dragoman_engine_last_step_timestamp_seconds",
        "Unix time of the latest step, 0 before the first. It stands still while there is nothing to do.",
        lambda versions: max(version.last_step_time for version in versions),
    ),
    (
        "dragoman_engine_stalled_seconds",
        "How long an engine has had work and finished no step, the worst of them; 0 while there is nothing to do.",
        lambda versions: max(version.stalled_seconds() for version in versions),
    ),
)


class AllModels(Collector):
    """The metrics of all models, made of what they have counted whenever the page is asked for. Thread-safe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()  # guards the next two
        self._versions: list[ModelMetrics] = []
        # By the name of a model, what threads have counted: those of lanes, which live as long as the server.
        self._tallies: dict[str, dict[int, _StepTally]] = {}
        self.cancelled = Counter(
            "dragoman_cancelled_total",
            "Segments given up unfinished, by reason: the caller left, or its deadline passed.",
            ("model", "reason"),
            registry=registry,
        )
        self.deadline_missed = Counter(
            "dragoman_deadline_missed_total",
            "Segments and passes of attention given up because of a deadline, by stage: queue, decode or attention.",
            ("model", "stage"),
            registry=registry,
        )
        self.wasted_tokens = Counter(
            "dragoman_wasted_tokens_total",
            "Tokens decoded for nobody: of segments that were given up or have failed, those of all beams included.",
            ("model",),
            registry=registry,
        )
        self.cache_requests = Counter(
            "dragoman_cache_requests_total",
            "Segments looked for in the cache, by outcome: a hit, shared with one being decoded, or a miss.",
            ("model", "outcome"),
            registry=registry,
        )
        self.attention_wait = Histogram(
            "dragoman_attention_wait_seconds",
            "Time that a pass of attention waited for others.",
            ("model",),
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self.attention_seconds = Histogram(
            "dragoman_attention_pass_seconds",
            "Time that a pass of attention took, with what was made of it.",
            ("model",),
            buckets=CALL_SECONDS,
            registry=registry,
        )
        registry.register(self)

    def tallies(self, name: str) -> "dict[int, _StepTally]":
        """What threads, by their identifiers, have counted of a model; each may add its own."""
        with self._lock:
            return self._tallies.setdefault(name, {})

    def add(self, version: ModelMetrics) -> None:
        """Shows the version from now on."""
        with self._lock:
            self._versions.append(version)

    def remove(self, version: ModelMetrics) -> None:
        """Shows the version no longer, if it is shown."""
        with self._lock:
            self._versions = [other for other in self._versions if other is not version]

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            versions = list(self._versions)
            tallies = {name: [*by_thread.values()] for name, by_thread in self._tallies.items()}
        yield from _counted(tallies)
        yield from _gauges(versions)

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples, from which the registry knows their names."""
        yield from _counted({})
        yield from _gauges(())


def _counted(tallies: Mapping[str, Sequence[_StepTally]]) -> Iterator[Metric]:
    """What has been counted at steps, by the names of models."""
    for attribute, (name, documentation, bounds) in _HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, documentation, labels=("model",))
        for model, its in tallies.items():
            HistogramTally.add_to(histogram, (model,), bounds, (getattr(tally, attribute) for tally in its))
        yield histogram
    for attribute, (name, documentation) in _COUNTERS.items():
        counter = CounterMetricFamily(name, documentation, labels=("model",))
        for model, its in tallies.items():
            counter.add_metric((model,), sum(getattr(tally, attribute) for tally in its))
        yield counter


def _gauges(versions: Sequence[ModelMetrics]) -> Iterator[Metric]:
    by_name: dict[str, list[ModelMetrics]] = {}
    for version in versions:
        by_name.setdefault(version.name, []).append(version)
    for name, documentation, value in _GAUGES:
        gauge = GaugeMetricFamily(name, documentation, labels=("model",))
        for model, its_versions in by_name.items():
            gauge.add_metric((model,), value(its_versions))
        yield gauge
    info = GaugeMetricFamily(
        "dragoman_model_info",
        "Always 1; the labels say which versions of models are loaded.",
        labels=("model", "version", "precision", "device"),
    )
    # A version is there twice for a moment when its folder is loaded anew.
    for labels in dict.fromkeys((version.name, *version.info) for version in versions if version.info):
        info.add_metric(labels, 1)
    yield info
