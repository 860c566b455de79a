"""Bundles that are not as they should be, given to the commands that open one."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from dragoman_export import __main__
from dragoman_export.bundle.writer import export
from dragoman_export.checkpoint import Checkpoint
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import LanguageTable
from dragoman_server.bundle.manifest import Precision
from support.bundles import edit_manifest, put
from support.tiny_model import random_sources


@pytest.mark.parametrize("command", ["verify", "evaluate", "align-tune"])
def test_every_command_refuses_what_the_server_refuses(
    command: str,
    tiny_checkpoint: Checkpoint,
    tiny_bundles: dict[Precision, Bundle],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundles["fp32"].folder, bundle)
    edit_manifest(bundle, put("limits", "max_target_tokens", 161))
    (tmp_path / "lines.txt").write_text("the old dog\n", encoding="utf-8")
    if command == "verify":
        tiny_checkpoint.save(tmp_path / "checkpoint")
    lines = tmp_path / "lines.txt"
    arguments: dict[str, list[object]] = {
        "verify": [tmp_path / "checkpoint", bundle],
        "evaluate": [bundle, "--test", f"en-fr={lines},{lines}"],
        "align-tune": [bundle, "--pairs", f"en-fr={lines}"],
    }
    files = {path: path.read_bytes() for path in bundle.iterdir()}
    monkeypatch.setattr("sys.argv", ["dragoman-export", command, *map(str, arguments[command])])
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"{bundle}/manifest.json: limits.max_target_tokens is 161, must be at most 160" in err
    assert {path: path.read_bytes() for path in bundle.iterdir()} == files


@pytest.mark.parametrize("changes", [{"name": "two\nlines"}, {"languages": LanguageTable.of([("en", "f r")])}])
def test_a_bundle_that_could_not_be_opened_is_not_begun(
    changes: dict[str, str], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_checkpoint.config, **changes)  # type: ignore[arg-type]
    checkpoint = dataclasses.replace(tiny_checkpoint, config=config)
    with pytest.raises(ValueError, match=f"{next(iter(changes))}.* is .*: Expected str matching"):
        export(checkpoint, tmp_path / "bundle", "fp32", random_sources(tiny_checkpoint, 1))
    assert list(tmp_path.iterdir()) == []
