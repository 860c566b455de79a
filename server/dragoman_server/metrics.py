"""Every Prometheus metric of the server, declared once."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)

from dragoman_server.engine.engine import StepReport

_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


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
        self._request_duration = Histogram(
            "dragoman_request_duration_seconds",
            "Time in the handler of an RPC, whatever its outcome.",
            ("method",),
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._num_requests_waiting = Gauge(
            "dragoman_num_requests_waiting",
            "Segments that wait for a row to be decoded in.",
            registry=self.registry,
        )
        self._num_requests_running = Gauge(
            "dragoman_num_requests_running",
            "Segments being decoded, each in one row or, with a beam, several.",
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "dragoman_batch_size",
            "Rows decoded together, per decoding step.",
            buckets=_ROWS,
            registry=self.registry,
        )
        self._encode_seconds = Histogram(
            "dragoman_encode_seconds",
            "Time that a step spent in the encoder, where it did.",
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self._decode_step_seconds = Histogram(
            "dragoman_decode_step_seconds",
            "Duration of a decoding step.",
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self._source_tokens = Counter(
            "dragoman_source_tokens_total",
            "Tokens encoded, language tags and end-of-sentence included.",
            registry=self.registry,
        )
        self._generated_tokens = Counter(
            "dragoman_generated_tokens_total",
            "Tokens decoded, those of all beams and end-of-sentence included.",
            registry=self.registry,
        )
        self._queue_wait = Histogram(
            "dragoman_queue_wait_seconds",
            "Time from a segment's arrival until its encoding began.",
            buckets=_CALL_SECONDS,
            registry=self.registry,
        )
        self._time_to_first_token = Histogram(
            "dragoman_time_to_first_token_seconds",
            "Time from a segment's arrival until its first token.",
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
            ("suspicion",),
            registry=self.registry,
        )
        cancelled = Counter(
            "dragoman_cancelled_total",
            "Segments given up unfinished, by reason: the caller left, or its deadline passed.",
            ("reason",),
            registry=self.registry,
        )
        self._cancelled_by_caller = cancelled.labels("caller")
        self._cancelled_by_deadline = cancelled.labels("deadline")
        self._kv_cache_bytes = Gauge(
            "dragoman_kv_cache_bytes",
            "Keys and values of the segments being decoded.",
            registry=self.registry,
        )
        self._kv_cache_limit_bytes = Gauge(
            "dragoman_kv_cache_limit_bytes",
            "Size of the pool for keys and values, were all rows as long as the model allows.",
            registry=self.registry,
        )
        self._kv_bytes_per_token = 0
        self._last_step = Gauge(
            "dragoman_engine_last_step_timestamp_seconds",
            "Unix time of the engine's last step. It stands still while there is nothing to do.",
            registry=self.registry,
        )
        self._model_info = Gauge(
            "dragoman_model_info",
            "Always 1; the labels say which model is served.",
            ("model", "version", "precision"),
            registry=self.registry,
        )

    def observe_request(self, method: str, code: str, seconds: float) -> None:
        """Counts an RPC that has ended; `method` must be one of a bounded set."""
        self._requests.labels(method, code).inc()
        self._request_duration.labels(method).observe(seconds)

    def observe_rejection(self, reason: str) -> None:
        """Counts an RPC that was answered with an error; `reason` must be one of a bounded set."""
        self._rejected.labels(reason).inc()

    def observe_suspicion(self, suspicion: str) -> None:
        """Counts a segment whose translation is suspect; `suspicion` must be one of a bounded set."""
        self._suspect_translations.labels(suspicion).inc()

    def observe_step(self, report: StepReport) -> None:
        """Counts a step of the engine."""
        step = report.step
        self._num_requests_waiting.set(report.num_waiting)
        self._num_requests_running.set(report.num_running)
        self._kv_cache_bytes.set(report.num_cached_tokens * self._kv_bytes_per_token)
        self._last_step.set_to_current_time()
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

    def set_model(self, model: str, version: str, precision: str) -> None:
        """Says which model is served."""
        self._model_info.labels(model, version, precision).set(1)

    def set_kv_cache(self, bytes_per_token: int, limit_bytes: int) -> None:
        """Says what a cached token takes up, and the size of the pool."""
        self._kv_bytes_per_token = bytes_per_token
        self._kv_cache_limit_bytes.set(limit_bytes)
