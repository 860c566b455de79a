"""Bundles that are not as they should be, given to a real server process."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import ATTENTION_FILE, ENCODER_FILE, Precision
from support.bundles import edit_graph, edit_manifest, put, replace_file, weight
from support.process import MAIN

# Says when the model is run for the first time.
ANNOUNCES_REPLAY = """
import threading
from dragoman_server.registry import loading, model

is_replaying = threading.Event()

def announce(bundle, runner, replay=model.replay):
    print("replaying", flush=True)
    is_replaying.set()
    return replay(bundle, runner)

model.replay = announce
"""

# The time to load begins with the replay: until then, the machine may be slow.
HAS_TWO_SECONDS_TO_REPLAY = """
import asyncio

async def wait(tasks, wait=asyncio.wait, **options):
    await asyncio.to_thread(is_replaying.wait)
    return await wait(tasks, **options)

asyncio.wait = wait
loading._MAX_SECONDS = 1
"""


@pytest.fixture
def folder(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> Path:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["fp32"].folder, copy)
    return copy


def start(folder: Path, program: str = MAIN, *options: str) -> "subprocess.Popen[str]":
    addresses = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    command = [sys.executable, "-c", program, "--model", str(folder), *addresses, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wrong_limit(folder: Path) -> None:
    edit_manifest(folder, put("limits", "max_target_tokens", 1000))


def wrong_name(folder: Path) -> None:
    edit_manifest(folder, put("name", "a\nb\ud800"))


def endless_loop(folder: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        values = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("i", "go_on")]
        body = helper.make_graph([], "body", values, values[1:])
        graph.node.insert(0, helper.make_node("Loop", ["", ""], ["looped"], body=body))

    edit_graph(folder, ENCODER_FILE, edit)


def broken_attention(folder: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        name = "const_float32__0.25"
        weight(graph, name).CopyFrom(numpy_helper.from_array(np.array(3e38, np.float32), name))

    edit_graph(folder, ATTENTION_FILE, edit)


def impossible_shape(folder: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "Transpose").attribute[0].ints[:] = [0, 0, 0, 0]

    edit_graph(folder, ENCODER_FILE, edit)


def other_tokenizer(folder: Path) -> None:
    replace_file(folder, "tokenizer.model", b"")


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (wrong_limit, "manifest.json: limits.max_target_tokens is 1000, must be at most 160"),
        (wrong_name, "manifest.json: it has .*, half of a surrogate pair"),
        (endless_loop, "encoder.onnx: it has fields of ONNX that no graph of a bundle has"),
        (broken_attention, "attention.onnx: the encoder weights of golden sentence 0 are no weights"),
        (impossible_shape, "encoder.onnx cannot be loaded: "),
        (other_tokenizer, "tokenizer.model cannot be loaded as a SentencePiece model"),
    ],
)
def test_a_server_with_a_damaged_bundle_says_why_and_ends(
    folder: Path, damage: Callable[[Path], None], fault: str
) -> None:
    damage(folder)
    files = sorted(folder.iterdir())
    with start(folder) as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert err.count("\n") == 1
    assert re.match(f"dragoman-server: {re.escape(str(folder))}/{fault}", err), err
    assert sorted(folder.iterdir()) == files


def never_ends(graph: onnx.GraphProto) -> None:
    """Hundreds of products of large matrices, of operators that every graph has."""
    graph.initializer.append(numpy_helper.from_array(np.array([300], np.int64), "many"))
    graph.node.extend(
        [
            helper.make_node("Shape", ["source_lengths"], ["eight"]),
            helper.make_node("Mul", ["eight", "many"], ["axis"]),
            helper.make_node("Concat", ["axis", "axis"], ["shape"], axis=0),
            helper.make_node("Cast", ["source_lengths"], ["lengths"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["lengths"], ["longest"], keepdims=0),
            helper.make_node("Expand", ["longest", "shape"], ["product_0"]),
        ]
    )
    for i in range(500):
        graph.node.append(helper.make_node("MatMul", [f"product_{i}"] * 2, [f"product_{i + 1}"]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_whose_graph_hangs(folder: Path, number: signal.Signals) -> None:
    edit_graph(folder, ENCODER_FILE, never_ends)
    with start(folder, ANNOUNCES_REPLAY + MAIN, "--trust-bundles") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "replaying\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_graph_that_hangs_is_not_waited_for(folder: Path) -> None:
    edit_graph(folder, ENCODER_FILE, never_ends)
    with start(folder, ANNOUNCES_REPLAY + HAS_TWO_SECONDS_TO_REPLAY + MAIN, "--trust-bundles") as process:
        out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == "replaying\n"
    assert err == (
        "dragoman-server: the model was not loaded within 2 seconds: a graph hangs, or the machine is too slow\n"
    )


def test_a_signal_ends_a_server_that_has_only_begun() -> None:
    """While its modules are imported."""
    program = f"""
import sys
print("begun", flush=True)
class Slow:
    def find_spec(self, name, path, target=None):
        if name == "dragoman_server.cli":
            print("importing", flush=True)
            import time
            time.sleep(60)
sys.meta_path.insert(0, Slow())
{MAIN}
"""
    with start(Path("unused"), program) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n", "importing\n"]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")
