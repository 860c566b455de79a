"""What Marian itself gives, by `pymarian`.

It runs as a script of its own, since an error of Marian's ends its process. From stdin it reads a request as JSON.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Answer = list[tuple[str, float]]  # pieces of the target, and its score; best first
LENGTH_FACTOR = 3  # targets have at most as many times the tokens of their sources


def translate(
    model: Path, vocabularies: Sequence[Path], lines: Sequence[str], beam_size: int, normalize: float
) -> list[Answer]:
    """All hypotheses of each line."""
    answers: list[Answer] = _ask(
        model=str(model),
        vocabularies=[*map(str, vocabularies)],
        sources=[*lines],
        beam_size=beam_size,
        normalize=normalize,
    )
    return answers


def score(model: Path, vocabularies: Sequence[Path], sources: Sequence[str], targets: Sequence[str]) -> list[float]:
    """The sum of log-probs of each target."""
    sums: list[float] = _ask(
        model=str(model), vocabularies=[*map(str, vocabularies)], sources=[*sources], targets=[*targets]
    )
    return sums


def _ask(**request: Any) -> Any:
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def _translated(request: dict[str, Any]) -> list[Answer]:
    import pymarian

    translator = pymarian.Translator(
        models=request["model"],
        vocabs=request["vocabularies"],
        cpu_threads=1,
        mini_batch=1,  # a batch ends with its first target that is too long
        beam_size=request["beam_size"],
        normalize=request["normalize"],
        max_length=1000,
        max_length_factor=LENGTH_FACTOR,
        workspace=128,
        n_best="",
        no_spm_decode="",
        quiet="",
        quiet_translation="",
    )
    answers: list[Answer] = [[] for _ in request["sources"]]
    for line in "\n".join(translator.translate(request["sources"])).split("\n"):
        index, target, _, total = line.split(" ||| ")
        answers[int(index)].append((target.strip(" "), float(total)))
    return answers


def _scored(request: dict[str, Any]) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in ("sources", "targets"):
            files.append(Path(folder) / name)
            files[-1].write_text("".join(f"{line}\n" for line in request[name]), encoding="utf-8")
        options = ["-m", request["model"], "-v", *request["vocabularies"], "-t", *map(str, files)]
        code = "import sys, _pymarian; sys.exit(_pymarian.main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "score", *options, "--cpu-threads", "1", "--workspace", "128", "--quiet"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [*map(float, done.stdout.split())]


def main() -> None:
    """Answers the request."""
    request = json.loads(sys.stdin.read())
    print(json.dumps(_scored(request) if "targets" in request else _translated(request)))


if __name__ == "__main__":
    main()
