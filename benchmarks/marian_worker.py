"""Marian in a process of its own, which an error of Marian's ends.

It is given the folder of a model, model.npz and vocabulary.yml, and says {"version": ...} when it is ready. Then it
answers lines of JSON.
"""

import json
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pymarian

# What Marian packs weights for; it refuses to run on another processor.
_GEMM_TYPES = {True: "packed8avx512", False: "packed8avx2"}
_WORKSPACE_MEGABYTES = 512  # of each thread


@lru_cache(maxsize=1)
def load(folder: Path, precision: str, threads: int, mini_batch: int, beam_size: int, length_factor: float) -> Any:
    """A translator with one worker a thread, each of which takes so many sentences of similar length at a time."""
    vocabulary = folder / "vocabulary.yml"
    return pymarian.Translator(
        models=folder / ("model.npz" if precision == "fp32" else "packed.bin"),
        vocabs=[vocabulary, vocabulary],
        cpu_threads=threads,
        mini_batch=mini_batch,
        maxi_batch=1000,  # mini-batches that are sorted by length
        maxi_batch_sort="src",
        beam_size=beam_size,
        normalize=1,
        max_length=1000,
        max_length_factor=length_factor,
        workspace=_WORKSPACE_MEGABYTES,
        skip_cost=beam_size == 1,
        allow_unk=True,
        quiet=True,
        quiet_translation=True,
    )


def pack(folder: Path) -> None:
    """Writes packed.bin, with int8 weights for the processor at hand."""
    has_avx512 = "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    files = ["--from", str(folder / "model.npz"), "--to", str(folder / "packed.bin")]
    command = [sys.executable, "-m", "pymarian", "convert", *files, "--gemm-type", _GEMM_TYPES[has_avx512]]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout)


def translate(folder: Path, request: dict[str, Any]) -> list[list[int]]:
    """Targets of all sources, as ids; end-of-sentence stands neither in sources nor in targets."""
    names = ("precision", "threads", "mini_batch", "beam_size", "length_factor")
    translator = load(folder, *(request[name] for name in names))
    lines = translator.translate([" ".join(map(str, source)) for source in request["sources"]])
    return [[*map(int, line.split())] for line in lines]


def main() -> None:
    """Answers requests from stdin on stdout, one a line."""
    folder = Path(sys.argv[1])
    pack(folder)
    print(json.dumps({"version": version("pymarian")}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"targets": translate(folder, json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
