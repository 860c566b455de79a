"""All that lives and dies with one bundle."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from dragoman_server.bundle.bundle import Bundle, Contents
from dragoman_server.bundle.manifest import ATTENTION_FILE, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.engine.engine import StepReport
from dragoman_server.engine.kv_budget import KvBudget
from dragoman_server.engine.sequence import Request
from dragoman_server.errors import BundleError, EngineDeadError, StartError
from dragoman_server.registry.model import Model
from dragoman_server.runtime.device import Device
from dragoman_server.runtime.hardware import Hardware, Seat
from dragoman_server.runtime.runner import OnnxRunner
from support.bundles import edit_manifest, put

OPTIONS = EngineOptions(max_running=8, lanes=2, num_threads=1)


@pytest.fixture
def hardware() -> Iterator[Hardware]:
    with Hardware(OPTIONS) as hardware:
        yield hardware


def test_a_model_answers_from_its_beginning_to_its_end(
    tiny_bundles: dict[Precision, Bundle], hardware: Hardware
) -> None:
    bundle, reports = tiny_bundles["int8"], list[StepReport]()
    golden = bundle.manifest.parity.golden[0]
    request = Request(tuple(golden.source_ids), 20)
    opened = Model.open(bundle.folder, OPTIONS, hardware, on_step=lambda _, report: reports.append(report))
    assert opened.name == bundle.resource_name
    assert len(opened.runners) == hardware.seats(bundle)[0].device.num_lanes == 2
    with pytest.raises(EngineDeadError, match="has not been started"):
        opened.engine.submit([request])
    with opened as model:
        (answer,) = model.engine.submit([request])
        assert answer.result(timeout=30).hypotheses[0].token_ids
    assert reports
    with pytest.raises(EngineDeadError, match="was stopped"):
        opened.engine.submit([request])
    assert not any(thread.name.startswith("dragoman-attention") for thread in threading.enumerate())


def test_pools_are_counted_over_all_lanes(tiny_bundles: dict[Precision, Bundle], hardware: Hardware) -> None:
    with Model.open(tiny_bundles["fp32"].folder, OPTIONS, hardware) as model:
        limits = model.manifest.limits
        num_tokens = limits.max_source_tokens + limits.max_target_tokens
        assert model.max_kv_bytes == 2 * 8 * num_tokens * model.kv_bytes_per_token


def test_keys_and_values_take_a_quarter_of_the_memory_unless_told(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dragoman_server.runtime.hardware.available_memory", lambda: 4000)
    for options, most in ((OPTIONS, 1000), (replace(OPTIONS, max_kv_bytes=2000), 2000)):
        with Hardware(options) as hardware, Model.open(tiny_bundles["fp32"].folder, options, hardware) as model:
            assert model.max_kv_bytes == most


@pytest.mark.parametrize(("num_weight_bytes", "is_large"), [((24 << 20) - 1, False), (24 << 20, True)])
def test_a_large_model_has_sessions_for_a_lane_that_is_alone(
    tiny_bundles: dict[Precision, Bundle],
    hardware: Hardware,
    monkeypatch: pytest.MonkeyPatch,
    num_weight_bytes: int,
    is_large: bool,
) -> None:
    monkeypatch.setattr(Contents, "num_weight_bytes", num_weight_bytes)
    monkeypatch.setattr("dragoman_server.runtime.runner.available_cpus", lambda: 2)
    with Model.open(tiny_bundles["fp32"].folder, OPTIONS, hardware) as model:
        runners = cast("list[OnnxRunner]", model.runners)
        graphs = runners[0].graphs
        assert (graphs.alone is not graphs.shared) == is_large
        assert all(runner.graphs is graphs for runner in runners)


def test_a_bundle_may_have_no_attention(folder: Path, hardware: Hardware) -> None:
    edit_manifest(folder, lambda values: values["files"].pop(ATTENTION_FILE))
    with Model.open(folder, OPTIONS, hardware) as model:
        assert model.attention is None


def test_a_bundle_that_does_not_do_what_its_source_did_is_no_model(folder: Path, hardware: Hardware) -> None:
    edit_manifest(folder, put("parity", "golden", 0, "token_logprobs", 0, -9.0))
    with pytest.raises(BundleError, match="log-probs of golden sentence 0 differ"):
        Model.open(folder, OPTIONS, hardware)


def test_a_model_whose_default_beam_has_no_room_is_refused(folder: Path, hardware: Hardware) -> None:
    edit_manifest(folder, put("generation", "beam_size", 9))
    with pytest.raises(
        StartError, match=r"max_running is 8; the model's default beam_size of 9 needs at least as many"
    ):
        Model.open(folder, OPTIONS, hardware)


def test_a_pool_that_a_gpu_may_come_to_have_no_room_for_is_refused(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = [SimpleNamespace(max_kv_bytes=5000)]
    monkeypatch.setattr("dragoman_server.registry.model.open_runners", lambda *_, takes_lists: runners)
    with Device(1) as device:
        seat = Seat("cuda", 1, "H100", device, KvBudget(4000))
        on_gpu = cast("Hardware", SimpleNamespace(seats=lambda _: (seat,)))
        with pytest.raises(StartError) as refusal:
            Model.open(tiny_bundles["fp16"].folder, OPTIONS, on_gpu)
    assert str(refusal.value) == (
        f"max_running is {OPTIONS.max_running}: the keys and values of so many rows can come to take up 5000 bytes on "
        "CUDA device 1; max_kv_bytes is 4000 there"
    )


def test_a_bundle_with_other_contents_than_were_listed_is_refused(
    hardware: Hardware, tiny_bundles: dict[Precision, Bundle]
) -> None:
    bundle = tiny_bundles["fp32"]
    with pytest.raises(BundleError, match="its contents have changed since it was listed"):
        Model.open(bundle.folder, OPTIONS, hardware, version="0123456789ab")
    Model.open(bundle.folder, OPTIONS, hardware, version=bundle.version).close()
