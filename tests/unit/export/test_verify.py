"""`dragoman-export verify BUNDLE`: the certificate replayed on a device."""

import re
import shutil
from pathlib import Path

import pytest

from dragoman_export.bundle import device_replay
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import Precision
from dragoman_server.errors import BundleError
from support.bundles import edit_manifest, put
from support.export_command import ExportCommand
from support.marian_model import write_marian


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capfd)


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_a_bundle_is_replayed_without_its_checkpoint(
    precision: Precision, run: ExportCommand, tiny_bundles: dict[Precision, Bundle]
) -> None:
    bundle = tiny_bundles[precision]
    assert run("verify", bundle.folder) == 0, run.err
    first, *lines = run.out.splitlines()
    assert first.startswith(f"{bundle.resource_name} at {precision}, by CPUExecutionProvider on ")
    tolerance = bundle.manifest.parity.logprob_tolerance
    assert f"8 golden sentences, largest difference (tolerance {tolerance:.2e}):" in lines
    differences = [float(line.rpartition(" ")[2]) for line in lines if " tokens: " in line]
    assert len(differences) == 8
    assert max(differences) <= tolerance
    rows = [match[1] for line in lines if (match := re.match(r"  (\d+) rows?: [0-9.]+ ms, of 32 steps", line))]
    assert rows == ["1", "8", "32", "64"]


def test_a_bundle_that_is_another_fails_with_all_differences_told(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], tmp_path: Path
) -> None:
    shutil.copytree(tiny_bundles["fp16"].folder, tmp_path / "bundle")
    edit_manifest(tmp_path / "bundle", put("parity", "golden", 2, "token_logprobs", 0, -9.0))
    assert run("verify", tmp_path / "bundle") == 2
    assert run.out.count(" tokens: ") == 8
    assert re.search(
        r"log-probs of 1 of 8 golden sentences are out of the tolerance of 0\.0\d+, the worst by ", run.err
    )


@pytest.mark.parametrize("part", ["replay", "replay_attention"])
def test_what_makes_a_server_refuse_the_bundle_fails_too(
    part: str, run: ExportCommand, tiny_bundles: dict[Precision, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BundleError("the outputs of a step contradict each other")

    monkeypatch.setattr(device_replay, part, refuse)
    assert run("verify", tiny_bundles["fp32"].folder) == 2
    assert run.err == "dragoman-export: the outputs of a step contradict each other\n"


@pytest.mark.parametrize(
    ("precision", "arguments", "fault"),
    [
        ("fp16", ["--device", "gpu"], "--device must be cpu, cuda or cuda:N, and is 'gpu'"),
        ("fp16", ["--device", "auto"], "--device must be cpu, cuda or cuda:N, and is 'auto'"),
        ("fp16", ["--device", "cuda"], "The ONNX Runtime that is installed is the one for CPUs alone"),
        ("int8", ["--device", "cuda"], "is at int8, which is for CPUs: for CUDA, export with --precision fp16 or bf16"),
        ("fp16", ["--num-sources", "3"], "all options but --device are for a comparison"),
        ("fp16", ["--details"], "all options but --device are for a comparison, which takes SOURCE"),
        ("fp16", ["a", "b"], "verify takes [SOURCE] BUNDLE, not 3 folders"),
        ("fp16", ["a", "--device", "cuda"], "a source is compared on the CPU: without it, BUNDLE is replayed"),
    ],
    ids=str,
)
def test_what_cannot_be_replayed_is_refused(
    precision: Precision, arguments: list[str], fault: str, run: ExportCommand, tiny_bundles: dict[Precision, Bundle]
) -> None:
    assert run("verify", tiny_bundles[precision].folder, *arguments) == 2
    assert fault in run.err
    assert run.err.count("\n") == 1


def test_bf16_is_exported_imported_and_compared_with_its_checkpoint(
    run: ExportCommand, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tiny_checkpoint.save(tmp_path / "checkpoint")
    write_marian(tmp_path / "marian")
    options = ("--precision", "bf16", "--num-sources", 10)
    assert run("import", tmp_path / "marian", tmp_path / "imported", *options) == 0, run.err
    assert run("export", tmp_path / "checkpoint", tmp_path / "bundle", *options) == 0, run.err
    assert "at bf16" in run.out
    assert "of PyTorch, rounding" in run.out
    for folder in ("imported", "bundle"):
        assert Bundle.open(tmp_path / folder).manifest.precision == "bf16"
    assert run("verify", tmp_path / "checkpoint", tmp_path / "bundle") == 0, run.err
    assert run("verify", tmp_path / "bundle") == 2
    assert "is at bf16, for which ONNX Runtime has no CPU kernels" in run.err
