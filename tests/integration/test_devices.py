"""Where a server process decodes: what it says of a GPU that it cannot use, and one model on several devices."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dragoman import AsyncClient
from dragoman_server import app, backend
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.config import Config, EngineOptions, ModelOptions
from dragoman_server.engine.engine import Engine
from dragoman_server.registry.entry import Listing
from dragoman_server.registry.opener import ModelOpener
from dragoman_server.runtime.hardware import Placement
from support.cuda_stub import build_driver, environment, needs_stub, packages_without, python
from support.fake_hardware import SeveralDevices
from support.process import MAIN
from support.server_parts import CONFIG


def refusal(program: Sequence[str], device: str, variables: dict[str, str] | None = None) -> str:
    """The one line on stderr of a server that does not start."""
    addresses = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    command = [*program, *addresses, "--device", device]
    process = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=100, check=False)
    assert (process.returncode, process.stdout) == (2, ""), process.stderr
    lines = [line for line in process.stderr.splitlines() if "[info" not in line]
    (line,) = lines
    return line


@asynccontextmanager
async def serving(config: Config, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[str]:
    """A server in this process; the line that it prints."""
    server, line = asyncio.create_task(app.serve(config)), ""
    try:
        while not line.endswith("\n") and not server.done():
            line += capsys.readouterr().out
            await asyncio.sleep(0.005)
        yield line
    finally:
        if not server.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await server


def address_in(line: str) -> str:
    found = re.fullmatch(r"serving tiny@\w+ \(.*\) on the CPU on (\S+), metrics on \S+\n", line)
    assert found is not None, line
    return found[1]


def test_a_server_with_onnx_runtime_for_the_cpu_refuses_a_gpu() -> None:
    line = refusal([sys.executable, "-c", MAIN], "cuda")
    assert line.startswith("dragoman-server: --device is cuda, and no GPU can be used. The ONNX Runtime that is ")
    assert "pip uninstall onnxruntime onnxruntime-gpu, then pip install '.[gpu]' in a checkout of Dragoman" in line


async def test_without_a_gpu_fp16_is_served_on_the_cpu_and_the_log_says_why(
    tiny_bundles: dict[Precision, Bundle], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    models = ModelOptions(
        model=tuple(f"{name}={tiny_bundles[name].folder}" for name in ("fp16", "int8")), trust_bundles=True
    )
    async with serving(replace(CONFIG, models=models), capsys) as line:
        assert line.startswith("serving 2 models on the CPU on 127.0.0.1:")
    (warning,) = [record.message for record in caplog.records if "GPU" in record.message]
    assert (
        "fp16 runs on the CPU, slowly, and bf16 nowhere: The ONNX Runtime that is installed is the one for CPUs"
        in warning
    )


async def test_models_on_several_devices_are_counted_in_the_start_line(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = Placement("cuda", "cuda:0", "CUDA device 0 (NVIDIA L4)", 1)
    peek = ModelOpener.peek

    def on_gpu(opener: ModelOpener, folder: Path) -> Listing:
        listing = peek(opener, folder)
        return listing._replace(placement=gpu) if folder.name == "int8" else listing

    monkeypatch.setattr(ModelOpener, "peek", on_gpu)
    models = ModelOptions(
        model=tuple(f"{name}={tiny_bundles[name].folder}" for name in ("fp32", "int8")), trust_bundles=True
    )
    async with serving(replace(CONFIG, models=models), capsys) as line:
        assert line.startswith("serving 2 models (1 on the CPU, 1 on CUDA device 0 (NVIDIA L4)) on 127.0.0.1:")


# -- over a stub of CUDA -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"), num_devices=2)


def stub_refusal(device: str, driver: Path, *packages: Path) -> str:
    return refusal([str(python()), "-c", MAIN], device, environment(driver, *packages))


@needs_stub
def test_a_server_without_a_driver_says_so(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()  # comes before one that this machine may have
    assert "There is no NVIDIA driver, as libcuda.so.1 cannot be loaded" in stub_refusal("cuda", tmp_path)


@needs_stub
def test_a_server_with_an_old_driver_says_so(tmp_path: Path) -> None:
    line = stub_refusal("cuda", build_driver(tmp_path, version=12_090))
    assert "The NVIDIA driver is too old, for CUDA 12.9: CUDA 13 needs driver R580 or newer." in line


@needs_stub
@pytest.mark.parametrize(
    ("library", "named"),
    [
        ("libcudnn.so.9", "libcudnn.so.9"),
        ("libcublas.so.13", "libcublas.so.13"),
        ("libcublasLt.so.13", "libcublasLt.so.13"),
        ("libcurand.so.10", "libcurand.so.10"),
    ],
)
def test_a_server_without_a_library_names_it(driver: Path, tmp_path: Path, library: str, named: str) -> None:
    line = stub_refusal("cuda", driver, packages_without(tmp_path, library))
    assert (
        f"Libraries of CUDA 13 are missing, {named}: pip install '.[gpu]' in a checkout of Dragoman brings them."
        in line
    )


@needs_stub
def test_a_server_without_the_device_names_those_there_are(driver: Path) -> None:
    line = stub_refusal("cuda:0,7", driver)
    assert line == (
        "dragoman-server: --device is cuda:0,7, and no GPU can be used. There is no CUDA device 7; those there are: 0 "
        "(stub of an H100), 1 (stub of an H100)."
    )


@needs_stub
def test_a_server_on_gpus_refuses_the_model_that_it_is_shipped_with(driver: Path) -> None:
    line = stub_refusal("cuda:0,1", driver)
    assert line.startswith(
        "dragoman-server: the model that is shipped with the server has precision int8, which is for CPUs, and "
        "--device asks for a GPU: dragoman-export export models/default BUNDLE --precision fp16 makes one"
    )


# -- several devices ---------------------------------------------------------------------------------------------------


async def test_one_model_is_decoded_on_two_devices(
    tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit: Callable[..., Any] = Engine.submit
    nums_requests: Counter[Engine] = Counter()

    def count(engine: Engine, requests: Sequence[Any], *rest: Any, **keywords: Any) -> Any:
        nums_requests[engine] += len(requests)
        return submit(engine, requests, *rest, **keywords)

    monkeypatch.setattr(Engine, "submit", count)
    monkeypatch.setattr(backend, "Hardware", partial(SeveralDevices, num_devices=2))
    models = ModelOptions(model=(str(tiny_bundles["fp32"].folder),), trust_bundles=True)
    options = EngineOptions(lanes=1, num_threads=1, max_running=4, max_waiting=40)
    words = ["the small dog", "a red house", "a bird sees the old tree", "here", "the green river"]
    texts = [f"{words[i % 5]} and {words[i // 5 % 5]}" for i in range(40)]
    config = replace(CONFIG, models=models, engine=options)
    async with serving(config, capsys) as line, AsyncClient(address_in(line)) as client:
        together = await client.translate(texts, source="en", target="de")
        assert len(nums_requests) == 2
        assert nums_requests.total() == len(texts)
        alone = [await client.translate(text, source="en", target="de") for text in texts[:10]]
        (model,) = await client.models()
    assert [one.text for one in together[:10]] == [one.text for one in alone]
    assert [one.score for one in together[:10]] == [one.score for one in alone]
    assert (model.device, model.execution_provider) == ("cpu", "CPUExecutionProvider")
