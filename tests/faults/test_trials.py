"""Bundles that are tried in a process of their own, where their graphs crash, hang or want all memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dragoman import Client
from dragoman.v1 import models_pb2 as pb
from dragoman.v1 import models_pb2_grpc
from dragoman_server.bundle.bundle import Bundle, embedded_bundle
from dragoman_server.bundle.manifest import DECODER_STEP_FILE, ENCODER_FILE, Precision
from dragoman_server.config import EngineOptions
from dragoman_server.errors import BundleError, StartError
from dragoman_server.registry import loading
from dragoman_server.registry.trial import Trials
from support.bundles import edit_graph, edit_manifest, put
from support.process import MAIN, server_process
from support.repository import swap

# Has the replay of certain bundles do something else, in the process that tries them alone: every Python runs this file
# when it starts.
HOOK = """
import sys
if "dragoman_server.registry.trial_process" in sys.orig_argv:
    import ctypes, os, time
    from dragoman_server.registry import model

    def replay(bundle, runner, replay=model.replay):
        fault = bundle.manifest.name.partition("-")[0]
        if fault == "crashes":
            ctypes.string_at(0)
        if fault == "aborts":
            os.abort()
        if fault == "fails":
            raise MemoryError("no room")
        if fault == "hangs":
            print(os.getpid(), file=open(os.environ["PID_FILE"], "w"), flush=True)
            while True:
                pass
        return replay(bundle, runner)

    model.replay = replay
"""


@pytest.fixture
def folder(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Path:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["fp32"].folder, copy)
    return copy


@pytest.fixture
def has_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    monkeypatch.syspath_prepend(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(StartError) as caught:
        Trials(EngineOptions()).hold(Bundle.peek(folder)[0])
    return str(caught.value)


def wants_terabytes(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([300], np.int64), "many"))
    graph.node.extend(
        [
            helper.make_node("Shape", ["source_lengths"], ["rows"]),
            helper.make_node("Mul", ["rows", "many"], ["axis"]),
            helper.make_node("Concat", ["axis"] * 4, ["wide"], axis=0),
            helper.make_node("Cast", ["source_lengths"], ["lengths"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0),
            helper.make_node("Expand", ["longest", "wide"], ["terabytes"]),
            helper.make_node("Relu", ["terabytes"], ["result"]),
        ]
    )


def test_a_bundle_that_is_as_it_should_be_passes_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials, bundle = Trials(EngineOptions()), Bundle.peek(folder)[0]
    trials.hold(bundle)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    trials.hold(bundle)
    edit_manifest(folder, put("name", "other"))
    with pytest.raises(StartError, match=r"^no process can be started to try .*/bundle: No such file or directory$"):
        trials.hold(Bundle.peek(folder)[0])


def test_the_embedded_model_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    Trials(EngineOptions()).hold(Bundle.peek(embedded_bundle())[0])


@pytest.mark.usefixtures("has_hook")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("crashes", "by SIGSEGV"),
        ("aborts", "by SIGABRT"),
        ("fails", "with exit code 1, with the words 'MemoryError: no room'$"),
    ],
)
def test_a_graph_that_crashes_ends_the_process_that_tries_it_alone(folder: Path, name: str, how: str) -> None:
    edit_manifest(folder, put("name", name))
    with pytest.raises(BundleError, match=rf"^{folder}: the process that tried it ended {how}"):
        Trials(EngineOptions()).hold(Bundle.peek(folder)[0])


@pytest.mark.parametrize("file", [ENCODER_FILE, DECODER_STEP_FILE])
def test_a_graph_that_wants_all_memory_is_refused(folder: Path, file: str) -> None:
    edit_graph(folder, file, wants_terabytes)
    assert "golden sentence 0 cannot be run" in refusal(folder)


def test_a_bundle_that_does_not_reproduce_its_source_is_refused_as_by_the_server(folder: Path) -> None:
    edit_manifest(folder, put("parity", "golden", 1, "token_logprobs", 0, -9.0))
    assert "the log-probs of golden sentence 1 differ by" in refusal(folder)


def test_contents_that_have_changed_since_they_were_listed_are_refused(folder: Path) -> None:
    bundle = Bundle.peek(folder)[0]
    edit_manifest(folder, put("name", "other"))
    with pytest.raises(StartError, match="its contents have changed since it was listed"):
        Trials(EngineOptions()).hold(bundle)


@pytest.mark.usefixtures("has_hook")
def test_a_graph_that_hangs_is_ended(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    monkeypatch.setattr(loading, "_MAX_SECONDS", 3.0)
    edit_manifest(folder, put("name", "hangs"))
    assert refusal(folder) == ("the model was not loaded within 3 seconds: a graph hangs, or the machine is too slow")
    if (tmp_path / "pid").exists():  # the machine was fast enough
        assert not _is_running(int((tmp_path / "pid").read_text()))


# -- a server ----------------------------------------------------------------------------------------------------------


def start(folder: Path) -> "subprocess.Popen[str]":
    addresses = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    command = [sys.executable, "-c", MAIN, "--model", str(folder), *addresses]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("has_hook")
def test_a_server_with_a_bundle_that_crashes_says_so_and_ends(folder: Path) -> None:
    edit_manifest(folder, put("name", "crashes"))
    with start(folder) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"dragoman-server: {folder}: the process that tried it ended by SIGSEGV")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("has_hook")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_trial_ends_with_the_server(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    pid_file = tmp_path / "pid"
    monkeypatch.setenv("PID_FILE", str(pid_file))
    edit_manifest(folder, put("name", "hangs"))
    with start(folder) as process:
        assert _becomes_true(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert _becomes_true(lambda: not _is_running(int(pid_file.read_text())))


@pytest.mark.usefixtures("has_hook")
def test_a_bundle_that_crashes_when_it_is_loaded_leaves_what_is_served(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    shutil.copytree(folder, root / "a")
    with (
        server_process(None, "--repository", str(root), "--trust-bundles", "0") as server,
        grpc.insecure_channel(str(server.admin_address)) as channel,
        Client(server.address) as client,
    ):
        served = client.translate("the small dog", source="en", target="de").model
        edit_manifest(folder, put("name", "crashes-now"))
        swap(root / "a", folder)
        with pytest.raises(grpc.RpcError, match="the process that tried it ended by SIGSEGV") as caught:
            models_pb2_grpc.ModelAdminServiceStub(channel).LoadModel(pb.LoadModelRequest(path="a"), timeout=60)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert client.translate("the small dog", source="en", target="de").model == served
        assert server.terminate() == 0


def _becomes_true(condition: Callable[[], bool], max_seconds: float = 60.0) -> bool:
    until = time.monotonic() + max_seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _is_running(pid: int) -> bool:
    """Whether there is such a process, and it is more than one that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
