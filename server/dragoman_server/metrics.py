"""Every Prometheus metric of the server, declared once: those of calls and of the server as a whole here.

What models count is in `model_metrics`, what devices show in `device_metrics`.
"""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from dragoman_server.device_metrics import CpuQuota, DeviceReport, Devices
from dragoman_server.model_metrics import CALL_SECONDS, AllModels, ModelMetrics

_LOAD_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_MODEL_STATES = ("ready", "listed", "loading", "draining", "failed")


class Metrics:
    """The metrics of one server, on a registry of their own. Thread-safe."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Memory, CPU time and open files, under Prometheus' own names.
        ProcessCollector(registry=self.registry)
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
            buckets=CALL_SECONDS,
            registry=self.registry,
        )
        self._num_calls = Gauge(
            "dragoman_num_calls_in_flight",
            "RPCs that have come in and have no status yet, without those of health.",
            registry=self.registry,
        )
        self._serving = Gauge(
            "dragoman_serving",
            "1 while the health of the server is SERVING, else 0.",
            registry=self.registry,
        )
        self._loop_lag = Histogram(
            "dragoman_event_loop_lag_seconds",
            "How late the event loop, which all calls share, came to what was due; looked at ten times a second.",
            buckets=_LAG_SECONDS,
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
        self._attention_bytes = Counter(
            "dragoman_attention_bytes_total",
            "Attention weights that were sent.",
            ("model",),
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
        self._all_models = AllModels(self.registry)
        self._devices = Devices(self.registry)
        self._quota = CpuQuota(self.registry)
        # By method, code and caller: looking up a child takes longer than counting with it.
        self._of_requests: dict[tuple[str, str, str], tuple[Counter, Counter, Histogram]] = {}

    def observe_request(self, method: str, code: str, seconds: float, caller: str = "", trace_id: str = "") -> None:
        """Counts an RPC that has ended.

        Args:
            method: one of a bounded set.
            code: name of its gRPC status code.
            seconds: how long it took.
            caller: name of its caller's token; "" where there are no tokens, or the call has none that is known.
            trace_id: of its trace, an exemplar of how long calls take; "" where it is not traced.
        """
        key = method, code, caller
        if (children := self._of_requests.get(key)) is None:
            children = self._of_requests[key] = (
                self._requests.labels(method, code),
                self._caller_requests.labels(caller, code),
                self._request_duration.labels(method),
            )
        requests, caller_requests, duration = children
        requests.inc()
        caller_requests.inc()
        duration.observe(seconds, {"trace_id": trace_id} if trace_id else None)

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

    def observe_attention_bytes(self, model: str, num_bytes: int) -> None:
        """Counts attention weights that were sent.

        Args:
            model: name of the model whose they are, without version.
            num_bytes: their size.
        """
        self._attention_bytes.labels(model).inc(num_bytes)

    def observe_loop_lag(self, seconds: float) -> None:
        """Counts how late the event loop came to something that was due."""
        self._loop_lag.observe(seconds)

    def set_server(self, num_calls: Callable[[], int], is_serving: Callable[[], bool]) -> None:
        """Says how the server stands, whenever the page is asked for.

        Args:
            num_calls: that are in flight; must be quick.
            is_serving: whether its health is SERVING; likewise.
        """
        self._num_calls.set_function(num_calls)
        self._serving.set_function(is_serving)

    def set_devices(self, reports: Callable[[], Sequence[DeviceReport]]) -> None:
        """Says how the devices stand, whenever the page is asked for; `reports` must be quick."""
        self._devices.reports = reports

    def set_cpu_quota(self, throttled_periods: Callable[[], tuple[int, int]]) -> None:
        """Says how the quota of CPU time is kept, whenever the page is asked for.

        Args:
            throttled_periods: how many periods of it there were so far, and in how many of them it was used up.
        """
        self._quota.throttled_periods = throttled_periods

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

    def model(self, name: str) -> ModelMetrics:
        """The metrics of one version of a model, until they are closed.

        Args:
            name: of the model, without version.
        """
        return ModelMetrics(name, self._all_models)
