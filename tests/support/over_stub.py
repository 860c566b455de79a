"""What a bundle asks of CUDA, as JSON: run by the interpreter of `cuda_stub`, over the stub, as

over_stub.py placement FOLDER     where the operators of both graphs go, and what an uncaptured step asks for
over_stub.py calls FOLDER         what each call of the runner asks for
over_stub.py arena FOLDER         the error of a run that may not take up what it needs
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, K = 4, 4


def placement(folder: Path) -> dict[str, Any]:
    """Problems, and counts of one run at fp16; bf16 is only loaded."""
    from placement import report

    manifest = json.loads((folder / "manifest.json").read_text())
    is_runnable = manifest["precision"] == "fp16"
    options = {"sdpa_kernel": "19"}
    share = {"present.*": "past_key_values.*"}
    step = report(
        folder / "decoder_step.onnx",
        {"batch": BATCH, "all": 0, "target_capacity": 64, "source_capacity": 64} if is_runnable else {},
        cpu_inputs=["longest_*", "top_k"],
        cpu_outputs=["top_*"],
        options=options,
        share=share,
        values={"longest_target": 64, "longest_source": 64, "top_k": K, "rows": [1, 3, 5, 2]},
    )
    encoder = report(
        folder / "encoder.onnx",
        {"batch": BATCH, "source": 10, "capacity": 64} if is_runnable else {},
        options=options,
        share=share,
        values={"source_lengths": [3, 10, 5, 1]},
    )
    return {name: described(graph) for name, graph in (("step", step), ("encoder", encoder))}


def described(graph: Any) -> dict[str, Any]:
    """The parts of a report that tests look at."""
    found = {"problems": graph.problems(), "attention": graph.attention, "nodes": graph.nodes}
    if graph.run is not None:
        found["launches"] = sum(graph.run.kernels.values()) + sum(graph.run.library_calls.values())
        found |= {"allocations": graph.run.allocations, "mismatches": graph.run.mismatches}
    return found


def calls(folder: Path) -> dict[str, Any]:
    """By call: launches, copies by direction with their bytes, CUDA graphs, allocations, and wrong directions."""
    import cuda_stub

    cuda_stub.load()
    from dragoman_server.bundle.bundle import Bundle
    from dragoman_server.engine.slots import Move
    from dragoman_server.runtime.device_memory import Memory
    from dragoman_server.runtime.device_runner import DeviceGraphs, DeviceRunner

    bundle, contents = Bundle.load(folder)
    graphs = DeviceGraphs.open(bundle.manifest, contents, Memory("cuda", 0))
    found: dict[str, Any] = {}

    def record(name: str, call: Callable[..., object], *arguments: object, **options: object) -> None:
        with cuda_stub.record() as log:
            call(*arguments, **options)
        found[name] = {
            "launches": sum(log.kernels.values()) + sum(log.library_calls.values()),
            "to device": [size for (kind, size), n in log.copies.items() if kind == "host to device" for _ in range(n)],
            "to host": [size for (kind, size), n in log.copies.items() if kind == "device to host" for _ in range(n)],
            "within": log.num_bytes("device to device"),
            "syncs": sum(log.synchronisations.values()),
            "graphs": dict(log.graphs),
            "allocations": sum(log.allocations.values()),
            "mismatches": log.mismatches,
        }

    sources = [[5, 6, 7, 3], [8, 3], [5, 5, 5, 5, 5, 3]]
    for kind, max_captured_rows in (("captured", 256), ("uncaptured", 0)):
        runner = DeviceRunner(graphs, 16, max_captured_rows)

        def step(position: int, runner: DeviceRunner = runner, **given: Any) -> None:
            runner.decode_step([2] * 3, [position] * 3, **given)

        record(f"{kind} first encode", runner.encode, sources, 0)
        record(f"{kind} encode", runner.encode, sources, 0)
        record(f"{kind} first step", step, 0)
        record(f"{kind} step", step, 1)
        record(f"{kind} step again", step, 2)
        record(f"{kind} score", step, 3, score_ids=[4, 5, 6])
        record(f"{kind} vocabulary", step, 3, all_rows=[1])
        record(f"{kind} step after that", step, 4)
        record(f"{kind} moves", runner.move_rows, [Move(0, 4, True), Move(1, 5, False)])
        record(f"{kind} growing step", step, 64)
        record(f"{kind} grown step", step, 65)
        runner.close()
    return found


def arena(folder: Path) -> str:
    """What is said."""
    import cuda_stub

    cuda_stub.load()
    from dragoman_server.bundle.bundle import Bundle
    from dragoman_server.runtime.device_memory import Memory
    from dragoman_server.runtime.device_runner import DeviceGraphs, DeviceRunner

    bundle, contents = Bundle.load(folder)
    runner = DeviceRunner(DeviceGraphs.open(bundle.manifest, contents, Memory("cuda", 0), max_arena_bytes=1 << 20), 64)
    try:
        runner.encode([[5] * 100] * 64, 0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps({"placement": placement, "calls": calls, "arena": arena}[sys.argv[1]](Path(sys.argv[2]))))
