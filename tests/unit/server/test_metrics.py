import time

import pytest

from dragoman_server.engine.engine import StepReport
from dragoman_server.engine.lane import LaneStep
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
    ),
    num_cached_tokens=30,
    num_waiting=5,
    num_running=3,
    num_cancelled=1,
    num_expired=2,
)
IDLE = STEP._replace(step=LaneStep(20, 0, 0.0, 0.0), num_waiting=0, num_running=0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"dragoman_{name}", labels)


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
    metrics.set_kv_cache(bytes_per_token=1000, limit_bytes=64_000)
    before = time.time()
    metrics.observe_step(STEP)
    last_step = value(metrics, "engine_last_step_timestamp_seconds")
    assert last_step is not None
    assert before <= last_step <= time.time()
    assert value(metrics, "kv_cache_bytes") == 30_000
    assert value(metrics, "kv_cache_limit_bytes") == 64_000
    assert value(metrics, "queue_wait_seconds_count") == 2
    assert value(metrics, "queue_wait_seconds_sum") == 0.75
    assert value(metrics, "time_to_first_token_seconds_sum") == 0.75
    assert value(metrics, "num_requests_waiting") == 5
    assert value(metrics, "num_requests_running") == 3
    assert value(metrics, "batch_size_sum") == 4
    assert value(metrics, "encode_seconds_sum") == 0.02
    assert value(metrics, "decode_step_seconds_sum") == 0.004
    assert value(metrics, "source_tokens_total") == 17
    assert value(metrics, "generated_tokens_total") == 4
    assert value(metrics, "cancelled_total", reason="caller") == 1
    assert value(metrics, "cancelled_total", reason="deadline") == 2


def test_a_phase_that_did_not_run_is_not_timed(metrics: Metrics) -> None:
    metrics.observe_step(IDLE)
    assert value(metrics, "num_requests_running") == 0
    for name in ("batch_size", "encode_seconds", "decode_step_seconds"):
        assert value(metrics, f"{name}_count") == 0


def test_the_model_stands_in_labels(metrics: Metrics) -> None:
    metrics.set_model("tiny", "0123", "int8")
    assert value(metrics, "model_info", model="tiny", version="0123", precision="int8") == 1
