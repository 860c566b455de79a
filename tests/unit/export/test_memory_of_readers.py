"""How much memory the readers of other formats take, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ct2_files
from support.marian_native import write_native

_MAX_FACTOR = 2.5  # of the weights in float32

_READ = """
import sys, threading, time
from pathlib import Path
from dragoman_export.families.table import read_model
from dragoman_export.stated import Stated

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

before, done, found = resident(), threading.Event(), [0]

def watch():
    while not done.wait(0.002):
        found.append(resident())

thread = threading.Thread(target=watch)
thread.start()
model = read_model(Path(sys.argv[1]), "model", Stated("en-fr")).model
done.set()
thread.join()
print((max(found) - before) / sum(parameter.nbytes for parameter in model.parameters()))
"""


def _write_marian(folder: Path) -> None:
    write_native(folder, dim_emb=1024, transformer_dim_ffn=4096, enc_depth=3, dec_depth=2, transformer_heads=16)


def _write_ctranslate2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ct2_files, "D_MODEL", 2048)
    monkeypatch.setattr(ct2_files, "D_FEED_FORWARD", 8192)
    ct2_files.Folder().write(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Marian", "CTranslate2"])
def test_weights_are_not_copied_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "Marian":
        _write_marian(tmp_path / "model")
    else:
        _write_ctranslate2(tmp_path / "model", monkeypatch)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _READ, str(tmp_path / "model")]
    factor = float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    assert factor < _MAX_FACTOR
