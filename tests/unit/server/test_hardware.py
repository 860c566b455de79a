"""Which devices a server has, and which model is decoded on which."""

import logging
import threading
from dataclasses import replace
from typing import Any, cast

import pytest

from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import EngineOptions
from dragoman_server.errors import BundleError, StartError
from dragoman_server.runtime.cuda import CudaDevice, CudaSystem
from dragoman_server.runtime.hardware import Hardware, Placement
from support.fake_cuda import FakeDriver, fake_cuda
from support.server_parts import tiny_manifest

H100 = CudaDevice(0, "NVIDIA H100 80GB HBM3", 80 << 30, (9, 0))
L4 = CudaDevice(1, "NVIDIA L4", 24 << 30, (8, 9))
GPUS = fake_cuda(FakeDriver(H100, L4))


def options(device: str, **others: Any) -> EngineOptions:
    return EngineOptions(device=device, lanes=2, num_threads=1, **others)


def bundle(precision: str) -> Bundle:
    manifest = replace(tiny_manifest(), precision=cast(Precision, precision))
    return Bundle(embedded_bundle().parent / "models" / "tiny", manifest, "0123")


def placement(hardware: Hardware, precision: str) -> Placement:
    return Placement.of(hardware.seats(bundle(precision)))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_models_of_16_bits_are_decoded_on_the_first_gpu(device: str, precision: str) -> None:
    with Hardware(options(device), GPUS) as hardware:
        (seat,) = seats = hardware.seats(bundle(precision))
        assert (seat.kind, seat.number, seat.device.num_lanes) == ("cuda", 0, 1)
        assert seat.budget.max_bytes == H100.num_bytes // 2
        assert hardware.seats(bundle(precision)) is seats
        found = Placement.of(seats)
    assert (found.device, found.execution_provider, found.num_gpus) == ("cuda:0", "CUDAExecutionProvider", 1)
    assert found.description == "CUDA device 0 (NVIDIA H100 80GB HBM3)"


def test_several_gpus_are_taken_where_they_are_named() -> None:
    with Hardware(options("cuda:1,0", max_kv_bytes=5000), GPUS) as hardware:
        seats = hardware.seats(bundle("fp16"))
        assert [seat.number for seat in seats] == [1, 0]
        assert [seat.budget.max_bytes for seat in seats] == [5000, 5000]
        assert seats[0].budget is not seats[1].budget
        found = Placement.of(seats)
    assert (found.device, found.num_gpus) == ("cuda:1,0", 2)
    assert found.description == "CUDA devices 1 and 0 (NVIDIA L4, NVIDIA H100 80GB HBM3)"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_other_models_are_decoded_on_the_cpu_without_a_look_at_gpus(device: str, precision: str) -> None:
    with Hardware(options(device), CudaSystem(pytest.fail, pytest.fail, pytest.fail)) as hardware:
        (seat,) = hardware.seats(bundle(precision))
        assert (seat.kind, seat.device.num_lanes) == ("cpu", 2)
        assert placement(hardware, precision).device == "cpu"
        assert placement(hardware, precision).description == "the CPU"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_server_for_gpus_refuses_models_for_the_cpu(precision: str) -> None:
    with Hardware(options("cuda"), GPUS) as hardware:
        with pytest.raises(BundleError) as caught:
            hardware.seats(bundle(precision))
        shipped = replace(bundle(precision), folder=embedded_bundle())
        with pytest.raises(BundleError, match="dragoman-export export models/default BUNDLE --precision fp16") as other:
            hardware.seats(shipped)
    assert f"{bundle(precision).folder} has precision {precision}, which is for CPUs" in str(caught.value)
    assert "dragoman-export export CHECKPOINT BUNDLE --precision fp16" in str(caught.value)
    assert str(other.value).startswith(f"the model that is shipped with the server has precision {precision}")


def test_a_server_for_gpus_starts_no_lanes_of_the_cpu() -> None:
    before = threading.active_count()
    with Hardware(options("cuda"), GPUS):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_without_a_gpu_fp16_is_decoded_on_the_cpu_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with Hardware(options("auto"), fake_cuda(None)) as hardware:
        assert not caplog.records
        assert placement(hardware, "fp16").device == placement(hardware, "fp16").device == "cpu"
    (record,) = caplog.records  # once
    assert record.levelno == logging.WARNING
    assert "no GPU is used; fp16 runs on the CPU, slowly, and bf16 nowhere: There is no NVIDIA driver" in record.message


def test_without_gpus_asked_for_fp16_is_decoded_on_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with Hardware(options("cpu"), GPUS) as hardware:
        assert placement(hardware, "fp16").device == "cpu"
    assert not caplog.records


@pytest.mark.parametrize(("device", "why"), [("cpu", "--device is cpu"), ("auto", "There is no NVIDIA driver")])
def test_no_cpu_runs_bf16(device: str, why: str) -> None:
    with (
        Hardware(options(device), fake_cuda(None)) as hardware,
        pytest.raises(BundleError, match=f"has precision bf16, which runs on GPUs alone, and none is used: {why}"),
    ):
        hardware.seats(bundle("bf16"))


def test_gpus_that_are_asked_for_and_absent_are_an_error_before_any_model() -> None:
    with pytest.raises(StartError, match="--device is cuda:0,2, and no GPU can be used"):
        Hardware(options("cuda:0,2"), GPUS)
