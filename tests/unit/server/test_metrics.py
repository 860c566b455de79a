import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
from prometheus_client import Gauge, generate_latest

from dragoman_server.device_metrics import DeviceReport
from dragoman_server.engine.engine import StepReport
from dragoman_server.engine.lane import Answer, LaneStep
from dragoman_server.metrics import Metrics

STEP = StepReport(
    LaneStep(
        num_cached_tokens=20,
        num_decoded=4,
        decode_seconds=0.004,
        encode_seconds=0.02,
        num_encoded_tokens=17,
        queue_seconds=(0.5, 0.25),
        first_token_seconds=(0.75,),
        num_padding_tokens=3,
        answers=(Answer(2.0, 0.0004), Answer(1.0, 0.002)),
        num_wasted_tokens=6,
    ),
    num_cached_tokens=30,
    num_waiting=5,
    num_running=3,
    num_cancelled=1,
    num_expired=5,
    num_expired_waiting=2,
)
IDLE = STEP._replace(step=LaneStep(20, 0, 0.0, 0.0), num_waiting=0, num_running=0)

# What is added up over the versions of a name.
GAUGES = (
    "num_requests_waiting",
    "num_requests_running",
    "kv_cache_bytes",
    "kv_cache_limit_bytes",
    "model_weights_bytes",
)
OUTCOMES = ("hit", "shared", "miss")
STATES = ("ready", "listed", "loading", "draining", "failed")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"dragoman_{name}", labels)


def labels_of(metrics: Metrics, name: str) -> list[dict[str, str]]:
    """Of every series of a gauge."""
    (family,) = (family for family in metrics.registry.collect() if family.name == f"dragoman_{name}")
    return [sample.labels for sample in family.samples]


def test_requests_are_counted_by_method_and_code(metrics: Metrics) -> None:
    metrics.observe_request("Translate", "OK", 0.5)
    metrics.observe_request("Translate", "OK", 1.0)
    metrics.observe_request("Translate", "CANCELLED", 0.1)
    assert value(metrics, "requests_total", method="Translate", code="OK") == 2
    assert value(metrics, "requests_total", method="Translate", code="CANCELLED") == 1
    assert value(metrics, "request_duration_seconds_sum", method="Translate") == pytest.approx(1.6)


def test_rejections_are_counted_by_reason(metrics: Metrics) -> None:
    metrics.observe_rejection("QUEUE_FULL")
    assert value(metrics, "rejected_total", reason="QUEUE_FULL") == 1


def test_a_step_moves_all_metrics_of_the_engine(metrics: Metrics) -> None:
    version = metrics.model("tiny")
    version.set_kv_cache(bytes_per_token=1000, limit_bytes=64_000)
    assert value(metrics, "engine_last_step_timestamp_seconds", model="tiny") == 0
    before = time.time()
    version.observe_step(0, STEP)
    last_step = value(metrics, "engine_last_step_timestamp_seconds", model="tiny")
    assert last_step is not None
    assert before <= last_step <= time.time()
    assert value(metrics, "kv_cache_bytes", model="tiny") == 30_000
    assert value(metrics, "kv_cache_limit_bytes", model="tiny") == 64_000
    assert value(metrics, "queue_wait_seconds_count", model="tiny") == 2
    assert value(metrics, "queue_wait_seconds_sum", model="tiny") == 0.75
    assert value(metrics, "time_to_first_token_seconds_sum", model="tiny") == 0.75
    assert value(metrics, "num_requests_waiting", model="tiny") == 5
    assert value(metrics, "num_requests_running", model="tiny") == 3
    assert value(metrics, "batch_size_sum", model="tiny") == 4
    assert value(metrics, "encode_seconds_sum", model="tiny") == 0.02
    assert value(metrics, "decode_step_seconds_sum", model="tiny") == 0.004
    assert value(metrics, "source_tokens_total", model="tiny") == 17
    assert value(metrics, "generated_tokens_total", model="tiny") == 4
    assert value(metrics, "cancelled_total", model="tiny", reason="caller") == 1
    assert value(metrics, "cancelled_total", model="tiny", reason="deadline") == 5
    assert value(metrics, "deadline_missed_total", model="tiny", stage="queue") == 2
    assert value(metrics, "deadline_missed_total", model="tiny", stage="decode") == 3
    assert value(metrics, "padding_tokens_total", model="tiny") == 3
    assert value(metrics, "segment_duration_seconds_sum", model="tiny") == 3.0
    assert value(metrics, "time_per_output_token_seconds_sum", model="tiny") == pytest.approx(0.0024)
    assert value(metrics, "wasted_tokens_total", model="tiny") == 6


@pytest.mark.parametrize(("seconds", "le"), [(0.0002, "0.00025"), (0.0006, "0.001"), (0.001, "0.001"), (7.0, "+Inf")])
def test_a_step_is_in_the_bucket_of_its_duration(metrics: Metrics, seconds: float, le: str) -> None:
    metrics.model("tiny").observe_step(0, STEP._replace(step=LaneStep(1, 1, seconds, 0.0)))
    (family,) = (found for found in metrics.registry.collect() if found.name == "dragoman_decode_step_seconds")
    buckets = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    bounds = [*buckets]
    assert [*map(float, bounds)] == sorted(map(float, bounds))
    assert [*buckets.values()] == [0.0] * bounds.index(le) + [1.0] * (len(bounds) - bounds.index(le))
    assert value(metrics, "decode_step_seconds_count", model="tiny") == 1


def test_a_phase_that_did_not_run_is_not_timed(metrics: Metrics) -> None:
    metrics.model("tiny").observe_step(0, IDLE)
    assert value(metrics, "num_requests_running", model="tiny") == 0
    for name in ("batch_size", "encode_seconds", "decode_step_seconds"):
        assert value(metrics, f"{name}_count", model="tiny") == 0


def test_the_version_and_the_weights_of_a_model(metrics: Metrics) -> None:
    version = metrics.model("tiny")
    assert not labels_of(metrics, "model_info")
    version.set_info("0123", "int8", "cpu")
    version.set_weights(5_000)
    assert value(metrics, "model_info", model="tiny", version="0123", precision="int8", device="cpu") == 1
    assert value(metrics, "model_weights_bytes", model="tiny") == 5_000


def test_segments_are_counted_by_their_vocabulary(metrics: Metrics) -> None:
    metrics.observe_segments("tiny", "shortlist", 3)
    metrics.observe_segments("tiny", "full", 2)
    metrics.observe_segments("tiny", "shortlist", 1)
    assert value(metrics, "segments_total", model="tiny", vocabulary="shortlist") == 4
    assert value(metrics, "segments_total", model="tiny", vocabulary="full") == 2


def test_suspicions_are_counted_by_model(metrics: Metrics) -> None:
    metrics.observe_suspicion("tiny", "length")
    metrics.observe_suspicion("small", "length")
    metrics.observe_suspicion("tiny", "length")
    assert value(metrics, "suspect_translations_total", model="tiny", suspicion="length") == 2


# -- several versions and models ---------------------------------------------------------------------------------------


def test_models_are_counted_apart(metrics: Metrics) -> None:
    metrics.model("small")
    metrics.model("tiny").observe_step(0, STEP)
    for name in ("num_requests_waiting", "batch_size_count", "generated_tokens_total"):
        assert value(metrics, name, model="small") == 0
        assert value(metrics, name, model="tiny") != 0


def test_gauges_are_the_sum_of_the_versions_that_are_loaded(metrics: Metrics) -> None:
    old, new = metrics.model("tiny"), metrics.model("tiny")
    for version, bytes_per_token in ((old, 1000), (new, 10)):
        version.set_kv_cache(bytes_per_token, limit_bytes=64 * bytes_per_token)
        version.set_weights(bytes_per_token)
        version.observe_step(0, STEP)
    old.observe_step(0, STEP._replace(num_waiting=1, num_running=2, num_cached_tokens=7))

    def gauges() -> list[float | None]:
        return [value(metrics, name, model="tiny") for name in GAUGES]

    assert gauges() == [5 + 1, 3 + 2, 30 * 10 + 7 * 1000, 64 * 1010, 1010]
    old.close()
    assert gauges() == [5, 3, 30 * 10, 640, 10]
    old.observe_step(0, STEP)  # of a lane that was late
    old.close()
    assert gauges() == [5, 3, 30 * 10, 640, 10]
    assert value(metrics, "batch_size_count", model="tiny") == 4


def test_the_engines_of_a_version_are_counted_together(metrics: Metrics) -> None:
    version = metrics.model("tiny")
    version.set_kv_cache(10, limit_bytes=0)
    version.observe_step(0, STEP)
    version.observe_step(1, STEP._replace(num_waiting=1, num_running=2, num_cached_tokens=7))
    version.observe_step(1, STEP._replace(num_waiting=0, num_running=1, num_cached_tokens=6))
    assert [value(metrics, name, model="tiny") for name in GAUGES[:3]] == [5, 3 + 1, 10 * (30 + 6)]
    assert value(metrics, "batch_size_count", model="tiny") == 3


def test_the_last_step_is_the_later_one_of_all_versions(metrics: Metrics) -> None:
    first, second = metrics.model("tiny"), metrics.model("tiny")
    first.last_step_time, second.last_step_time = 20.0, 10.0
    assert value(metrics, "engine_last_step_timestamp_seconds", model="tiny") == 20
    first.close()
    assert value(metrics, "engine_last_step_timestamp_seconds", model="tiny") == 10


def test_a_model_that_is_gone_leaves_only_what_it_has_counted(metrics: Metrics) -> None:
    stays, goes = metrics.model("small"), metrics.model("tiny")
    stays.set_info("4567", "fp32", "cpu")
    goes.set_info("0123", "int8", "cpu")
    for version in (stays, goes):
        version.observe_step(0, STEP)
    goes.close()
    for name in (*GAUGES, "num_attention_waiting", "engine_last_step_timestamp_seconds", "model_info"):
        assert [labels["model"] for labels in labels_of(metrics, name)] == ["small"]
    assert value(metrics, "generated_tokens_total", model="tiny") == 4
    metrics.model("tiny").observe_step(0, STEP)
    assert value(metrics, "generated_tokens_total", model="tiny") == 8
    assert value(metrics, "num_requests_waiting", model="tiny") == 5


def test_the_info_of_a_version_goes_with_it(metrics: Metrics) -> None:
    old, new, same = (metrics.model("tiny") for _ in range(3))
    old.set_info("0123", "int8", "cpu")
    for version in (new, same):
        version.set_info("4567", "int8", "cpu")

    def versions() -> list[str]:
        return [labels["version"] for labels in labels_of(metrics, "model_info")]

    assert versions() == ["0123", "4567"]
    old.close()
    assert versions() == ["4567"]
    new.close()
    assert versions() == ["4567"]
    same.close()
    assert versions() == []


def test_steps_count_while_versions_come_and_go(metrics: Metrics) -> None:
    num_threads, num_versions, num_steps = 4, 25, 40
    begin = Barrier(num_threads + 1)
    is_over = Event()

    def serve(_: int) -> None:
        begin.wait()
        for _ in range(num_versions):
            version = metrics.model("tiny")
            version.set_info("0123", "int8", "cpu")
            for _ in range(num_steps):
                version.observe_step(0, STEP)
            version.close()

    def scrape() -> set[float]:
        begin.wait()
        seen: set[float] = set()
        while not is_over.is_set():
            generate_latest(metrics.registry)
            seen.add(value(metrics, "num_requests_waiting", model="tiny") or 0.0)
        return seen

    with ThreadPoolExecutor(num_threads + 1) as threads:
        scraped = threads.submit(scrape)
        try:
            list(threads.map(serve, range(num_threads)))
        finally:
            is_over.set()
    assert scraped.result() <= {5.0 * n for n in range(num_threads + 1)}
    num_counted = num_threads * num_versions * num_steps
    assert value(metrics, "generated_tokens_total", model="tiny") == 4 * num_counted
    assert value(metrics, "batch_size_count", model="tiny") == num_counted
    assert value(metrics, "cancelled_total", model="tiny", reason="deadline") == 5 * num_counted
    assert value(metrics, "num_requests_waiting", model="tiny") is None


def test_attention_is_counted_by_model(metrics: Metrics) -> None:
    version = metrics.model("tiny")
    version.observe_attention(0.5, 0.25)
    version.observe_attention(2.0, None)
    assert value(metrics, "attention_wait_seconds_sum", model="tiny") == 2.5
    assert value(metrics, "attention_pass_seconds_count", model="tiny") == 1
    assert value(metrics, "attention_pass_seconds_sum", model="tiny") == 0.25
    assert value(metrics, "deadline_missed_total", model="tiny", stage="attention") == 1
    metrics.observe_attention_bytes("tiny", 10)
    metrics.observe_attention_bytes("tiny", 5)
    assert value(metrics, "attention_bytes_total", model="tiny") == 15
    other = metrics.model("tiny")
    for each, number in ((version, 3), (other, 4)):
        each.set_attention(lambda number=number: number)  # type: ignore[misc]
    assert value(metrics, "num_attention_waiting", model="tiny") == 7


def test_lookups_are_counted_by_model_and_outcome(metrics: Metrics) -> None:
    first, second = metrics.model("tiny"), metrics.model("small")
    first.observe_lookups(3, 2, 1)
    first.observe_lookups(0, 0, 4)
    second.observe_lookups(1, 0, 0)
    found = {outcome: value(metrics, "cache_requests_total", model="tiny", outcome=outcome) for outcome in OUTCOMES}
    assert found == {"hit": 3, "shared": 2, "miss": 5}
    assert value(metrics, "cache_requests_total", model="small", outcome="hit") == 1


def test_the_cache_is_as_large_as_it_is_when_the_page_is_asked_for(metrics: Metrics) -> None:
    assert value(metrics, "cache_bytes") == value(metrics, "cache_limit_bytes") == 0
    sizes = [10]
    metrics.set_cache(lambda: sizes[-1], 100)
    assert (value(metrics, "cache_bytes"), value(metrics, "cache_limit_bytes")) == (10, 100)
    sizes.append(20)
    assert value(metrics, "cache_bytes") == 20


def test_the_server_is_as_it_is_when_the_page_is_asked_for(metrics: Metrics) -> None:
    calls, serving = [1], [True]
    metrics.set_server(lambda: len(calls), lambda: serving[-1])
    assert (value(metrics, "num_calls_in_flight"), value(metrics, "serving")) == (1, 1)
    calls.clear()
    serving.append(False)
    assert (value(metrics, "num_calls_in_flight"), value(metrics, "serving")) == (0, 0)


def test_the_devices_are_as_they_are_when_the_page_is_asked_for(metrics: Metrics) -> None:
    assert value(metrics, "lanes", device="cpu") is None
    metrics.set_devices(
        lambda: [DeviceReport("cpu", 2, 1.5, 10, 20.0, 30, 40), DeviceReport("cuda:1", 1, 3, 4, 5, 6, 7)]
    )
    names = (
        "lanes",
        "lane_busy_seconds_total",
        "kv_reserved_bytes",
        "kv_budget_bytes",
        "device_memory_used_bytes",
        "device_memory_limit_bytes",
    )
    assert [value(metrics, name, device="cpu") for name in names] == [2, 1.5, 10, 20, 30, 40]
    assert [value(metrics, name, device="cuda:1") for name in names] == [1, 3, 4, 5, 6, 7]


def test_the_lag_of_the_event_loop(metrics: Metrics) -> None:
    metrics.observe_loop_lag(0.003)
    assert value(metrics, "event_loop_lag_seconds_bucket", le="0.0025") == 0
    assert value(metrics, "event_loop_lag_seconds_bucket", le="0.005") == 1


# -- the models of the server ------------------------------------------------------------------------------------------


def test_models_are_counted_by_state(metrics: Metrics) -> None:
    def models() -> dict[str, float | None]:
        return {state: value(metrics, "models", state=state) for state in STATES}

    assert models() == dict.fromkeys(STATES, 0)
    metrics.set_models({"ready": 3, "failed": 1})
    assert models() == {**dict.fromkeys(STATES, 0), "ready": 3, "failed": 1}
    metrics.set_models({"ready": 2})
    assert models() == {**dict.fromkeys(STATES, 0), "ready": 2}
    with pytest.raises(ValueError, match="no state of a model: lost"):
        metrics.set_models({"ready": 1, "lost": 1})
    assert models()["ready"] == 2


def test_the_quota_of_cpu_time_is_asked_for_with_the_page(metrics: Metrics) -> None:
    assert value(metrics, "cpu_periods_total") == 0
    periods = [(8, 0)]
    metrics.set_cpu_quota(lambda: periods[-1])
    assert value(metrics, "cpu_throttled_periods_total") == 0
    periods.append((10, 2))
    assert (value(metrics, "cpu_periods_total"), value(metrics, "cpu_throttled_periods_total")) == (10, 2)


def test_the_engine_that_has_stalled_for_longest_counts(metrics: Metrics) -> None:
    first, second = metrics.model("tiny"), metrics.model("tiny")
    assert value(metrics, "engine_stalled_seconds", model="tiny") == 0
    first.stalled_seconds, second.stalled_seconds = (lambda: 3.0), (lambda: 12.0)
    assert value(metrics, "engine_stalled_seconds", model="tiny") == 12
    second.close()
    assert value(metrics, "engine_stalled_seconds", model="tiny") == 3


def test_failed_reloads_of_tokens_are_there_before_the_first(metrics: Metrics) -> None:
    assert value(metrics, "token_reloads_total", outcome="failed") == 0
    metrics.observe_token_reload(False)
    assert value(metrics, "token_reloads_total", outcome="failed") == 1


def test_loads_are_counted_by_model_and_outcome(metrics: Metrics) -> None:
    metrics.observe_load("tiny", True, 0.2)
    metrics.observe_load("tiny", False, 400.0)
    metrics.observe_load("small", True, 7.0)
    assert value(metrics, "model_loads_total", model="tiny", outcome="ok") == 1
    assert value(metrics, "model_loads_total", model="tiny", outcome="failed") == 1
    assert value(metrics, "model_loads_total", model="small", outcome="ok") == 1
    assert value(metrics, "model_load_seconds_sum") == pytest.approx(407.2)
    assert value(metrics, "model_load_seconds_bucket", le="0.1") == 0
    assert value(metrics, "model_load_seconds_bucket", le="300.0") == 2


# -- names -------------------------------------------------------------------------------------------------------------


def test_the_model_comes_first_of_the_labels(metrics: Metrics) -> None:
    metrics.model("tiny").set_info("0123", "int8", "cpu")
    metrics.observe_suspicion("tiny", "length")
    metrics.observe_load("tiny", True, 1.0)
    metrics.observe_attention_bytes("tiny", 1)
    labels = {family.name: [*sample.labels] for family in metrics.registry.collect() for sample in family.samples}
    of_models = {name: names for name, names in labels.items() if "model" in names}
    assert of_models.keys() == {
        *(f"dragoman_{name}" for name in GAUGES),
        "dragoman_attention_bytes",
        "dragoman_attention_pass_seconds",
        "dragoman_attention_wait_seconds",
        "dragoman_batch_size",
        "dragoman_cache_requests",
        "dragoman_cancelled",
        "dragoman_deadline_missed",
        "dragoman_decode_step_seconds",
        "dragoman_encode_seconds",
        "dragoman_engine_last_step_timestamp_seconds",
        "dragoman_engine_stalled_seconds",
        "dragoman_generated_tokens",
        "dragoman_model_info",
        "dragoman_model_loads",
        "dragoman_num_attention_waiting",
        "dragoman_padding_tokens",
        "dragoman_queue_wait_seconds",
        "dragoman_segment_duration_seconds",
        "dragoman_source_tokens",
        "dragoman_suspect_translations",
        "dragoman_time_per_output_token_seconds",
        "dragoman_time_to_first_token_seconds",
        "dragoman_wasted_tokens",
    }
    assert {names[0] for names in of_models.values()} == {"model"}
    assert of_models["dragoman_model_info"] == ["model", "version", "precision", "device"]


def test_no_metric_has_the_name_of_another(metrics: Metrics) -> None:
    for name in ("num_requests_waiting", "model_info"):
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            Gauge(f"dragoman_{name}", "Not the one of the server.", registry=metrics.registry)
