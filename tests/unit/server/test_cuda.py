"""Which CUDA devices are found, and what is said where none is: on machines that are made up."""

import pytest

from dragoman_server.errors import StartError
from dragoman_server.runtime.cuda import CudaDevice, CudaSystem, find_devices
from support.fake_cuda import FakeDriver, fake_cuda

H100 = CudaDevice(0, "NVIDIA H100 80GB HBM3", 80 << 30, (9, 0))
L4 = CudaDevice(1, "NVIDIA L4", 24 << 30, (8, 9))


def fault(system: CudaSystem, *numbers: int) -> str:
    with pytest.raises(StartError) as caught:
        find_devices(numbers or (0,), system)
    return str(caught.value)


def test_devices_are_given_in_the_order_asked_for() -> None:
    system = fake_cuda(FakeDriver(H100, L4))
    assert find_devices((0,), system) == (H100,)
    assert find_devices((1, 0), system) == (L4, H100)


def test_a_build_for_the_cpu_is_told_before_anything_is_loaded() -> None:
    system = CudaSystem(lambda: ["AzureExecutionProvider", "CPUExecutionProvider"], pytest.fail, pytest.fail)
    assert fault(system) == (
        "The ONNX Runtime that is installed is the one for CPUs alone, and both are the same Python module: pip "
        "uninstall onnxruntime onnxruntime-gpu, then pip install '.[gpu]' in a checkout of Dragoman."
    )


def test_a_missing_driver_is_told() -> None:
    text = fault(fake_cuda(None))
    assert text.startswith("There is no NVIDIA driver, as libcuda.so.1 cannot be loaded (libcuda.so.1: not found): ")
    assert "install driver R580 or newer" in text
    assert "NVIDIA Container Toolkit on its host, and --gpus all" in text


def test_a_driver_that_does_not_start_is_told() -> None:
    text = fault(fake_cuda(FakeDriver(H100, init_code=999)))
    assert "does not start, as cuInit says CUDA_ERROR_UNKNOWN: see whether nvidia-smi works" in text


@pytest.mark.parametrize(("version", "name"), [(12_080, "12.8"), (12_090, "12.9"), (11_040, "11.4")])
def test_a_driver_that_is_too_old_is_told_with_its_version(version: int, name: str) -> None:
    text = fault(fake_cuda(FakeDriver(H100, version=version)))
    assert text == f"The NVIDIA driver is too old, for CUDA {name}: CUDA 13 needs driver R580 or newer."


@pytest.mark.parametrize("missing", [["libcudnn.so.9"], ["libcublasLt.so.13", "libcublas.so.13"]])
def test_missing_libraries_are_named_with_what_brings_them(missing: list[str]) -> None:
    text = fault(fake_cuda(FakeDriver(H100), missing=missing))
    assert (
        text
        == f"Libraries of CUDA 13 are missing, {', '.join(missing)}: pip install '.[gpu]' in a checkout of Dragoman "
        "brings them."
    )


def test_libraries_are_looked_for_once_those_of_python_packages_are_loaded() -> None:
    done: list[str] = []
    system = fake_cuda(FakeDriver(H100), log=done)
    find_devices((0,), system)
    assert done == [
        *("libcuda.so.1", "preload", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"),
        *("libcurand.so.10", "libcudnn.so.9"),
    ]


@pytest.mark.parametrize(
    ("visible", "hint"), [(None, "."), ("3", "; CUDA_VISIBLE_DEVICES is '3' and hides all others.")]
)
def test_a_number_without_a_device_is_told_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, hint: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    text = fault(fake_cuda(FakeDriver(H100, L4)), 0, 2)
    assert text == f"There is no CUDA device 2; those there are: 0 ({H100.name}), 1 ({L4.name}){hint}"


def test_a_driver_without_devices_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = fault(fake_cuda(FakeDriver()))
    assert text == "There is no CUDA device 0; the driver knows none; CUDA_VISIBLE_DEVICES is '' and hides all others."


def test_what_onnx_runtime_prints_does_not_get_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda **_: print("Failed to load libcublas.so.13"))
    CudaSystem().preload()
    assert capsys.readouterr() == ("", "")
