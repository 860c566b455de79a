"""`dragoman-export verify BUNDLE --device cuda` over a stub that computes nothing."""

import subprocess
from pathlib import Path

import pytest
import torch

from dragoman_export.bundle.writer import export
from dragoman_server.bundle.manifest import Precision
from support.cuda_stub import build_driver, environment, needs_stub, python
from support.tiny_model import random_checkpoint, random_sources

# PyTorch and the packages of the commands are those of this interpreter, and ONNX Runtime is the other's.
COMMAND = "import sys; sys.path.append(sys.argv.pop(1)); from dragoman_export.__main__ import main; main()"


@needs_stub
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_replay_fails_with_what_it_found_and_names_provider_and_kernels(precision: Precision, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(num_heads=2)
    export(checkpoint, tmp_path / "bundle", precision, random_sources(checkpoint, 8))
    site = str(Path(torch.__file__).parents[1])
    command = [str(python()), "-c", COMMAND, site, "verify", str(tmp_path / "bundle"), "--device", "cuda:0"]
    variables = environment(build_driver(tmp_path))
    process = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=200, check=False)
    assert process.returncode == 2, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0].endswith(f" at {precision}, by CUDAExecutionProvider on stub of an H100")
    # Of two encoder layers; of two decoder layers, each with two kinds of attention.
    assert lines[1:4] == [
        "Attention of one encoding and one step:",
        "  Attention by FLASH_ATTENTION: 2",
        "  GroupQueryAttention by FLASH_ATTENTION: 4",
    ]
    assert len([line for line in lines if " tokens: " in line]) == 8
    assert len([line for line in lines if " ms, of 32 steps" in line]) == 4
    assert "SdpaKernel" not in process.stdout  # ONNX Runtime's own lines
    (line,) = process.stderr.splitlines()
    assert "on stub of an H100 the log-probs of " in line
    assert " of 8 golden sentences are out of the tolerance of " in line
