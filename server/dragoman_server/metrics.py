"""Every Prometheus metric of the server, declared once.

What engines count carries the name of the model and not its version: names are few, versions come and go. Counters and
histograms of a name add up over its versions and stay when the last has gone; gauges show the versions that are loaded.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dragoman_server.engine.engine import StepReport

_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LOAD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_MODEL_STATES = ("ready", "listed", "loading", "draining", "failed")


class Metrics:
    """The metrics of one server, on a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Memory, CPU time and open files, under Prometheus' own names.
        ProcessCollector(registry=self.registry)
        self._serving = Gauge(
            "dragoman_serving",
            "1 while the health of the server as a whole is SERVING, else 0.",
            registry=self.registry,
        )
        self._memory_limit = Gauge(
            "dragoman_memory_limit_bytes",
            "Memory that the process may use: the machine's, or the limit of its control groups.",
            registry=self.registry,
        )
        self._requests = Counter(
            "dragoman_requests_total",
            "RPCs that have ended, by method and gRPC status code.",
            ("method", "code"),
            registry=self.registry,
        )
        self._caller_requests = Counter(
            "dragoman_caller_requests_total",
            "RPCs that have ended, by the name of the caller's token and gRPC status code.",
            ("caller", "code"),
            registry=self.registry,
        )
        token_reloads = Counter(
            "dragoman_token_reloads_total",
            "Changes of the file of tokens, by outcome: ok, or failed, where what was before goes on.",
            ("outcome",),
            registry=self.registry,
        )
        # There from the start, as the first failure would else be a counter that begins at 1, which has no rate.
        self._token_reloads = {is_ok: token_reloads.labels("ok" if is_ok else "failed") for is_ok in (True, False)}
        self._request_duration = Histogram(
            "dragoman_request_duration_seconds",
            "Time in the handler of an RPC, whatever its outcome.",
            ("method",),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._rejected = Counter(
            "dragoman_rejected_total",
            "RPCs answered with an error, by the reason in its google.rpc.ErrorInfo.",
            ("reason",),
            registry=self.registry,
        )
        self._suspect_translations = Counter(
            "dragoman_suspect_translations_total",
            "Segments whose translation is unusual, of those whose signals were asked for, by what is.",
            ("model", "suspicion"),
            registry=self.registry,
        )
        self._segments = Counter(
            "dragoman_segments_total",
            "Segments translated, by what their tokens were chosen from: all, or the list of a language or segment.",
            ("model", "vocabulary"),
            registry=self.registry,
        )
        models = Gauge(
            "dragoman_models",
            "Versions of models, by state.",
            ("state",),
            registry=self.registry,
        )
        self._models = {state: models.labels(state) for state in _MODEL_STATES}
        self._model_loads = Counter(
            "dragoman_model_loads_total",
            "Loads of models that have ended, by outcome: ok, or failed.",
            ("model", "outcome"),
            registry=self.registry,
        )
        self._model_load_seconds = Histogram(
            "dragoman_model_load_seconds",
            "Time that a load of a model took, whatever its outcome.",
            buckets=_LOAD_SECONDS,
            registry=self.registry,
        )
        self._cache_bytes = Gauge(
            "dragoman_cache_bytes",
            "Answers that are kept for who asks the same again.",
            registry=self.registry,
        )
        self._cache_limit = Gauge(
            "dragoman_cache_limit_bytes",
            "What these may come to take up; 0 where nothing is kept.",
            registry=self.registry,
        )
        self._certificate_expiry = Gauge(
            "dragoman_tls_certificate_expiry_timestamp_seconds",
            "Unix time at which the certificate of the server expires; 0 without TLS.",
            registry=self.registry,
        )
        reloads = Counter(
            "dragoman_tls_reloads_total",
            "Changes of the files of TLS, by outcome: ok, or failed, which leaves what was used before.",
            ("outcome",),
            registry=self.registry,
        )
        self._certificate_reloads = {is_ok: reloads.labels("ok" if is_ok else "failed") for is_ok in (True, False)}
        self._engines = _EngineMetrics(self.registry)
        self._loaded = _LoadedModels()
        self.registry.register(self._loaded)
        self._throttling = _CpuThrottling()
        self.registry.register(self._throttling)

    def observe_request(self, method: str, code: str, seconds: float, caller: str = "") -> None:
        """Counts an RPC that has ended.

        Args:
            method: one of a bounded set.
            code: name of its gRPC status code.
            seconds: how long it took.
            caller: name of its caller's token; "" where there are no tokens, or the call has none that is known.
        """
        self._requests.labels(method, code).inc()
        self._caller_requests.labels(caller, code).inc()
        self._request_duration.labels(method).observe(seconds)

    def observe_token_reload(self, ok: bool) -> None:
        """Counts a change of the file of tokens; `ok` says whether it was taken over."""
        self._token_reloads[ok].inc()

    def observe_rejection(self, reason: str) -> None:
        """Counts an RPC that was answered with an error; `reason` must be one of a bounded set."""
        self._rejected.labels(reason).inc()

    def observe_suspicion(self, model: str, suspicion: str) -> None:
        """Counts a segment whose translation is suspect.

        Args:
            model: name of the model that translated it, without version.
            suspicion: one of a bounded set.
        """
        self._suspect_translations.labels(model, suspicion).inc()

    def observe_segments(self, model: str, vocabulary: str, num_segments: int) -> None:
        """Counts segments that have been translated.

        Args:
            model: name of the model that translated them, without version.
            vocabulary: what their tokens were chosen from, one of a bounded set.
            num_segments: how many.
        """
        self._segments.labels(model, vocabulary).inc(num_segments)

    def observe_load(self, model: str, ok: bool, seconds: float) -> None:
        """Counts a load of a model that has ended.

        Args:
            model: its name, without version; that of a folder of the repository where the bundle tells none.
            ok: whether it is loaded now.
            seconds: how long the load took.
        """
        self._model_loads.labels(model, "ok" if ok else "failed").inc()
        self._model_load_seconds.observe(seconds)

    def set_serving(self, is_serving: Callable[[], bool]) -> None:
        """Shows whether the health of the server is SERVING, whenever the page is asked for."""
        self._serving.set_function(is_serving)

    def set_machine(self, memory_bytes: int, throttled_periods: Callable[[], tuple[int, int]]) -> None:
        """Says what the process may use of the machine.

        Args:
            memory_bytes: of memory.
            throttled_periods: how many periods of a quota of CPU time there were so far, and in how many of them it was
                used up; asked whenever the page is.
        """
        self._memory_limit.set(memory_bytes)
        self._throttling.periods = throttled_periods

    def set_models(self, counts: Mapping[str, int]) -> None:
        """Says how many versions of models there are in each state.

        Args:
            counts: by state: ready, listed, loading, draining or failed. One that is absent has none.

        Raises:
            ValueError: there is no such state.
        """
        if unknown := counts.keys() - self._models:
            raise ValueError(f"no state of a model: {', '.join(sorted(unknown))}")
        for state, models in self._models.items():
            models.set(counts.get(state, 0))

    def set_cache(self, num_bytes: Callable[[], int], limit_bytes: int) -> None:
        """Says what the answers that are kept take up, whenever the page is asked for, and what they may.

        Args:
            num_bytes: at present; must be quick.
            limit_bytes: at most.
        """
        self._cache_bytes.set_function(num_bytes)
        self._cache_limit.set(limit_bytes)

    def set_certificate_expiry(self, timestamp: float) -> None:
        """Says when the certificate that new connections get expires, in Unix time."""
        self._certificate_expiry.set(timestamp)

    def observe_certificate_reload(self, *, ok: bool) -> None:
        """Counts a change of the files of TLS, which was taken up or not."""
        self._certificate_reloads[ok].inc()

    def model(self, name: str) -> "ModelMetrics":
        """The metrics of one version of a model, until they are closed.

        Args:
            name: of the model, without version.
        """
        return ModelMetrics(name, self._engines, self._loaded)


class ModelMetrics:
    """The metrics of one version of a model while it is loaded. Thread-safe.

    Several versions of one name may be loaded at once: `_LoadedModels` makes gauges of what they say of themselves.

    Attributes:
        name: of the model, without version.
        info: version, precision and device; None until they are known.
        reports: of the latest step of each engine.
        last_step_time: when that was, in Unix time; 0 before the first.
        kv_bytes_per_token: size of the keys and values of a cached token.
        kv_limit_bytes: size of the pool for keys and values.
        weights_bytes: size of the weights in memory.
        stalled_seconds: how long its engine has had work and finished no step.
    """

    def __init__(self, name: str, engines: "_EngineMetrics", loaded: "_LoadedModels") -> None:
        self.name = name
        self.info: tuple[str, str, str] | None = None
        self.reports: dict[int, StepReport] = {}
        self.last_step_time = 0.0
        self.kv_bytes_per_token = self.kv_limit_bytes = self.weights_bytes = 0
        self.stalled_seconds: Callable[[], float] = lambda: 0.0
        # Looking up a child takes longer than counting with it, and a step of a small model is over in 0.6 ms.
        self._batch_size = engines.batch_size.labels(name)
        self._encode_seconds = engines.encode_seconds.labels(name)
        self._decode_step_seconds = engines.decode_step_seconds.labels(name)
        self._source_tokens = engines.source_tokens.labels(name)
        self._generated_tokens = engines.generated_tokens.labels(name)
        self._queue_wait = engines.queue_wait.labels(name)
        self._time_to_first_token = engines.time_to_first_token.labels(name)
        self._cancelled_by_caller = engines.cancelled.labels(name, "caller")
        self._cancelled_by_deadline = engines.cancelled.labels(name, "deadline")
        self._cache_hits = engines.cache_requests.labels(name, "hit")
        self._cache_shared = engines.cache_requests.labels(name, "shared")
        self._cache_misses = engines.cache_requests.labels(name, "miss")
        self._loaded = loaded
        loaded.add(self)

    def set_info(self, version: str, precision: str, device: str) -> None:
        """Says which version of the model this is, and where it is decoded."""
        self.info = version, precision, device

    def set_kv_cache(self, bytes_per_token: int, limit_bytes: int) -> None:
        """Says what a cached token takes up, and the size of the pool."""
        self.kv_bytes_per_token, self.kv_limit_bytes = bytes_per_token, limit_bytes

    def set_weights(self, num_bytes: int) -> None:
        """Says what the weights take up in memory, all copies together."""
        self.weights_bytes = num_bytes

    def total(self, count: Callable[[StepReport], int]) -> int:
        """What a version's engines have of something together."""
        return sum(map(count, tuple(self.reports.values())))

    def observe_step(self, engine: int, report: StepReport) -> None:
        """Counts a step of one of the version's engines, of which each has a number."""
        step = report.step
        self.reports[engine], self.last_step_time = report, time.time()
        if report.num_cancelled:
            self._cancelled_by_caller.inc(report.num_cancelled)
        if report.num_expired:
            self._cancelled_by_deadline.inc(report.num_expired)
        for seconds in step.queue_seconds:
            self._queue_wait.observe(seconds)
        for seconds in step.first_token_seconds:
            self._time_to_first_token.observe(seconds)
        if step.num_encoded_tokens:
            self._encode_seconds.observe(step.encode_seconds)
            self._source_tokens.inc(step.num_encoded_tokens)
        if step.num_decoded:
            self._batch_size.observe(step.num_decoded)
            self._decode_step_seconds.observe(step.decode_seconds)
            self._generated_tokens.inc(step.num_decoded)

    def observe_lookups(self, num_hits: int, num_shared: int, num_misses: int) -> None:
        """Counts segments that were looked for in the cache, by what was found: an answer, one on its way, nothing."""
        for counter, number in (
            (self._cache_hits, num_hits),
            (self._cache_shared, num_shared),
            (self._cache_misses, num_misses),
        ):
            if number:
                counter.inc(number)

    def close(self) -> None:
        """Says that the version is no longer loaded: the gauges forget it. Steps that end later are still counted."""
        self._loaded.remove(self)
        self.stalled_seconds = lambda: 0.0  # without the engine, which refers to this object


class _EngineMetrics:
    """What engines count, by the name of their model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batch_size = Histogram(
            "dragoman_batch_size",
            "Rows decoded together, per decoding step.",
            ("model",),
            buckets=_ROWS,
            registry=registry,
        )
        self.encode_seconds = Histogram(
            "dragoman_encode_seconds",
            "Time that a step spent in the encoder, where it did.",
            ("model",),
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.decode_step_seconds = Histogram(
            "dragoman_decode_step_seconds",
            "Duration of a decoding step.",
            ("model",),
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.source_tokens = Counter(
            "dragoman_source_tokens_total",
            "Tokens encoded, language tags and end-of-sentence included.",
            ("model",),
            registry=registry,
        )
        self.generated_tokens = Counter(
            "dragoman_generated_tokens_total",
            "Tokens decoded, those of all beams and end-of-sentence included.",
            ("model",),
            registry=registry,
        )
        self.queue_wait = Histogram(
            "dragoman_queue_wait_seconds",
            "Time from a segment's arrival until its encoding began.",
            ("model",),
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self.time_to_first_token = Histogram(
            "dragoman_time_to_first_token_seconds",
            "Time from a segment's arrival until its first token.",
            ("model",),
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self.cancelled = Counter(
            "dragoman_cancelled_total",
            "Segments given up unfinished, by reason: the caller left, or its deadline passed.",
            ("model", "reason"),
            registry=registry,
        )
        self.cache_requests = Counter(
            "dragoman_cache_requests_total",
            "Segments looked for in the cache, by outcome: a hit, shared with one being decoded, or a miss.",
            ("model", "outcome"),
            registry=registry,
        )


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


class _LoadedModels(Collector):
    """The gauges of models, made of the versions that are loaded whenever the page is asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._versions: list[ModelMetrics] = []

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
        return _gauges(versions)

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples, from which the registry knows their names."""
        return _gauges(())


class _CpuThrottling(Collector):
    """What the kernel says of the quota of CPU time, whenever the page is asked for."""

    def __init__(self) -> None:
        self.periods: Callable[[], tuple[int, int]] = lambda: (0, 0)

    def collect(self) -> Iterable[Metric]:
        num_periods, num_throttled = self.periods()
        yield CounterMetricFamily(
            "dragoman_cpu_periods", "Periods of the container's quota of CPU time; 0 without one.", num_periods
        )
        yield CounterMetricFamily(
            "dragoman_cpu_throttled_periods", "Those in which the quota was used up before the end.", num_throttled
        )


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
