"""What graphs for CUDA ask of a GPU, over a stub that computes nothing: no operator on the CPU, no hidden copy."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dragoman_export.bundle.writer import export
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from support.cuda_stub import ROOT, build_driver, environment, needs_stub, python
from support.tiny_model import random_checkpoint, random_sources

pytestmark = needs_stub


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


def over_stub(task: str, folder: Path, driver: Path) -> Any:
    script = Path(__file__).parents[1] / "support" / "over_stub.py"
    variables = environment(driver) | {"CUDA_PLACEMENT": str(python().parents[2])}
    command = [str(python()), "-P", str(script), task, str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT, timeout=200, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


# With the kernels, and the calls of cuBLAS, that a step of four rows starts where it is no CUDA graph; bf16 is only
# loaded there. Two decoder layers, unless it says otherwise.
CONFIGURATIONS: dict[str, tuple[Precision, int | None, dict[str, Any]]] = {
    "heads of 32": ("fp16", 43, {"d_model": 128}),
    "heads of 64, three layers": ("fp16", 65, {"d_model": 256, "num_decoder_layers": 3}),
    "heads of 128": ("fp16", 47, {"d_model": 256, "num_heads": 2}),
    "pre-norm, GELU": ("fp16", 42, {"d_model": 128, "norm": "pre", "activation": "gelu"}),
    "SiLU, learned positions": ("fp16", 43, {"d_model": 128, "activation": "silu", "positions": "learned"}),
    "as T5 1.1": (
        "fp16",
        57,
        {
            "norm": "pre",
            "norm_kind": "rms",
            "linear_bias": False,
            "positions": "relative",
            "activation": "gelu_tanh",
            "gated": True,
            "head_size": 64,
            "scale_embedding": False,
            "d_model": 128,
        },
    ),
    "bf16, as T5": (
        "bf16",
        None,
        {
            "norm": "pre",
            "norm_kind": "rms",
            "linear_bias": False,
            "positions": "relative",
            "activation": "gelu_tanh",
            "gated": True,
            "head_size": 64,
            "scale_embedding": False,
            "d_model": 128,
        },
    ),
    "bf16": ("bf16", None, {"d_model": 128, "norm": "pre"}),
}


@pytest.mark.parametrize(("precision", "num_launches", "dimensions"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_step_stays_on_the_device(
    precision: Precision, num_launches: int | None, dimensions: dict[str, Any], tmp_path: Path, driver: Path
) -> None:
    checkpoint = random_checkpoint(**dimensions)
    export(checkpoint, tmp_path / "bundle", precision, random_sources(checkpoint, 3))
    found = over_stub("placement", tmp_path / "bundle", driver)
    for graph in found.values():
        assert graph["problems"] == []  # an operator on the CPU, or a copy that the graph does not have
        assert list(graph["nodes"]) == ["CUDAExecutionProvider"]
        assert graph.get("allocations", 0) == 0
        assert graph.get("mismatches", []) == []
    assert found["step"].get("launches") == num_launches


@pytest.fixture(scope="module")
def calls(tiny_bundles: dict[Precision, Bundle], driver: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = over_stub("calls", tiny_bundles["fp16"].folder, driver)
    return found


MAX_ROWS = 16
TABLE, IDS, LOGPROBS = MAX_ROWS * 4 * 4, MAX_ROWS * 8, MAX_ROWS * 4  # bytes
STEPS = ("step", "step again", "step after that", "grown step")


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_one_upload_one_launch_and_two_fetches(calls: dict[str, dict[str, Any]], name: str) -> None:
    step = calls[f"captured {name}"]
    assert (step["to device"], step["to host"], step["within"]) == ([TABLE], [IDS, LOGPROBS], 0)
    assert (step["launches"], step["graphs"]) == (0, {"launch": 1})
    assert (step["syncs"], step["allocations"]) == (2, 0)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_no_cuda_graph_copies_no_more(calls: dict[str, dict[str, Any]], name: str) -> None:
    step = calls[f"uncaptured {name}"]
    assert (step["to device"], step["to host"], step["within"]) == ([TABLE], [IDS, LOGPROBS], 0)
    assert (step["launches"] > 0, step["graphs"], step["allocations"]) == (True, {}, 0)


def test_scores_are_fetched_where_they_are_wanted(calls: dict[str, dict[str, Any]]) -> None:
    assert calls["captured score"]["to host"] == [IDS, LOGPROBS, LOGPROBS]
    assert calls["captured score"]["graphs"] == {"launch": 1}


def test_the_whole_vocabulary_is_fetched_without_a_cuda_graph(
    calls: dict[str, dict[str, Any]], tiny_bundles: dict[Precision, Bundle]
) -> None:
    row = 4 * tiny_bundles["fp16"].manifest.architecture.vocabulary_size
    assert sorted(calls["captured vocabulary"]["to host"]) == sorted([row, row, IDS, LOGPROBS])
    assert calls["captured vocabulary"]["graphs"] == {}


def test_a_pool_that_grows_is_captured_anew_and_never_replayed_as_it_was(calls: dict[str, dict[str, Any]]) -> None:
    assert calls["captured growing step"]["graphs"] == {"capture begins": 1, "capture ends": 1, "launch": 1}


def test_the_encoder_writes_where_keys_and_values_stay(calls: dict[str, dict[str, Any]]) -> None:
    encode = calls["captured encode"]
    assert (len(encode["to device"]), encode["to host"], encode["allocations"]) == (2, [], 0)


def test_moved_rows_stay_on_the_device(calls: dict[str, dict[str, Any]]) -> None:
    moves = calls["captured moves"]
    assert (len(moves["to device"]), moves["to host"], moves["within"]) == (4, [], 0)  # where, for either attention


def test_no_copy_takes_an_address_of_the_host_for_one_of_the_device(calls: dict[str, dict[str, Any]]) -> None:
    assert {name: call["mismatches"] for name, call in calls.items() if call["mismatches"]} == {}


def test_a_run_that_may_not_take_up_what_it_needs_fails(tiny_bundles: dict[Precision, Bundle], driver: Path) -> None:
    assert "vailable memory" in over_stub("arena", tiny_bundles["fp16"].folder, driver)
