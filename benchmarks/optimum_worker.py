"""ONNX Runtime as Hugging Face's users have it: optimum exports a model, quantises it to int8 and generates.

A process of its own, in an environment of its own (`optimum.txt`): it imports nothing of this project. It is given the
folder of a model and one for its files, and says {"version": ...} when it is ready. Then it answers lines of JSON.
"""

import json
import sys
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from onnxruntime import SessionOptions
from optimum.onnxruntime import ORTModelForSeq2SeqLM, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig

_GRAPHS = {"encoder": "encoder_model", "decoder": "decoder_model", "decoder_with_past": "decoder_with_past_model"}


def prepare(source: Path, folder: Path) -> None:
    """Writes the graphs to fp32/ and, quantised as the guide to quantisation says for CPUs with VNNI, to int8/."""
    ORTModelForSeq2SeqLM.from_pretrained(source, export=True).save_pretrained(folder / "fp32")
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    for name in _GRAPHS.values():
        quantizer = ORTQuantizer.from_pretrained(folder / "fp32", file_name=f"{name}.onnx")
        quantizer.quantize(save_dir=folder / "int8", quantization_config=config)


@lru_cache(maxsize=2)
def load(folder: Path, precision: str, threads: int) -> Any:
    """The model with so many threads within an operator."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    suffix = "_quantized" if precision == "int8" else ""
    files = {f"{key}_file_name": f"{name}{suffix}.onnx" for key, name in _GRAPHS.items()}
    return ORTModelForSeq2SeqLM.from_pretrained(folder / precision, session_options=options, **files)


@torch.inference_mode()
def translate(folder: Path, request: dict[str, Any]) -> list[list[int]]:
    """Targets of all sources; sources of similar length together, `max_batch` at a time."""
    model = load(folder, request["precision"], request["threads"])
    sources, pad_id = request["sources"], model.config.pad_token_id
    order = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    targets: list[list[int]] = [[]] * len(sources)
    for begin in range(0, len(order), request["max_batch"]):
        places = order[begin : begin + request["max_batch"]]
        width = max(len(sources[i]) for i in places)
        rows = [sources[i] + [pad_id] * (width - len(sources[i])) for i in places]
        mask = [[1] * len(sources[i]) + [0] * (width - len(sources[i])) for i in places]
        generated = model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            num_beams=request["beam_size"],
            min_new_tokens=request["min_target_tokens"],
            max_new_tokens=request["max_target_tokens"],
        )
        for i, target in zip(places, generated[:, 1:].tolist(), strict=True):  # the first is the decoder's own start
            targets[i] = target
    return targets


def main() -> None:
    """Answers requests from stdin on stdout, one a line."""
    source, folder = map(Path, sys.argv[1:])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing; what comes out is compared with the model before it is timed
        prepare(source, folder)
    print(json.dumps({"version": version("optimum-onnx")}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps({"targets": translate(folder, json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
