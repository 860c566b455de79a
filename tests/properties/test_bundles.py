"""Manifests with anything anywhere: each is refused by one sentence, or says what its files bear out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.manifest import MANIFEST_FILE, Precision
from dragoman_server.errors import BundleError
from dragoman_server.registry.parity import replay
from dragoman_server.runtime.runner import OnnxRunner

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 400),
    st.sampled_from([2**31, 2**63, 10**400, -(2**63)]),
    st.floats(),
    st.text(st.characters(), max_size=5),
    st.sampled_from(["\ud800", "a\nb", "x" * 1000, "../weights.bin", "fp32", "int8", "marian", "byte_bpe"]),
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys or indexes."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


@pytest.fixture(scope="module")
def folder(tiny_bundles: dict[Precision, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("bundles") / "int8"
    shutil.copytree(tiny_bundles["int8"].folder, copy)
    return copy


@pytest.fixture(scope="module")
def manifest(folder: Path) -> str:
    values = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    # Most places are numbers of the certificate; a short one leaves more examples for the others.
    values["parity"]["golden"] = values["parity"]["golden"][:1]
    return json.dumps(values)


def fault_of(folder: Path) -> str:
    try:
        bundle = Bundle.open(folder)
        replay(bundle, OnnxRunner.open(bundle, max_rows=1, num_threads=1))
    except BundleError as error:
        return str(error)
    return ""


@given(data=st.data())
def test_a_manifest_with_anything_anywhere_is_refused_or_is_right(
    folder: Path, manifest: str, data: st.DataObject
) -> None:
    values = json.loads(manifest)
    for _ in range(data.draw(st.integers(1, 2))):
        container, key = data.draw(st.sampled_from(list(places(values))))
        match data.draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                container[key] = data.draw(ANYTHING)
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[data.draw(st.text(max_size=5))] = data.draw(ANYTHING)
            case "add":
                container.insert(key, data.draw(ANYTHING))
    (folder / MANIFEST_FILE).write_text(json.dumps(values), encoding="utf-8")
    fault = fault_of(folder)
    assert "\n" not in fault
    assert len(fault) < 1000
