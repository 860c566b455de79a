"""Bundles that are not as they should be, with hashes that are right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from dragoman_server.bundle.bundle import file_sha256
from dragoman_server.bundle.manifest import MANIFEST_FILE

ManifestEdit = Callable[[dict[str, Any]], object]


def edit_manifest(folder: Path, edit: ManifestEdit) -> None:
    path = folder / MANIFEST_FILE
    values = json.loads(path.read_text(encoding="utf-8"))
    edit(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def put(*path_and_value: Any) -> ManifestEdit:
    """Replaces the value at a path of keys and indexes."""
    *parents, key, value = path_and_value

    def edit(values: dict[str, Any]) -> None:
        place: Any = values
        for parent in parents:
            place = place[parent]
        place[key] = value

    return edit


def rehash(folder: Path, *names: str) -> None:
    """Puts the hashes of changed files into the manifest, that of no manifest's file too."""
    for name in names:
        edit_manifest(folder, put("files", name, file_sha256(folder / name)))


def replace_file(folder: Path, name: str, contents: bytes) -> None:
    (folder / name).write_bytes(contents)
    rehash(folder, name)


def edit_graph(folder: Path, name: str, edit: Callable[[onnx.GraphProto], object]) -> None:
    model = onnx.load(folder / name, load_external_data=False)
    edit(model.graph)
    replace_file(folder, name, model.SerializeToString())


def weight(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    """The tensor of this name."""
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == name)
    return tensor


def node(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    """The first of these operators."""
    return next(node for node in graph.node if node.op_type == operator)
