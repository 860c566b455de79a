"""The contract is complete: any language can compile it from proto/ alone."""

import re
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
FILES = sorted(path.relative_to(PROTO) for path in PROTO.rglob("*.proto"))

# Every compiler of protobuf brings these along.
WELL_KNOWN = "google/protobuf/"


def test_the_contract_is_where_it_is_looked_for() -> None:
    names = ("dragoman/v1/translation", "dragoman/v1/attention", "dragoman/v1/models")
    assert {Path(f"{name}.proto") for name in (*names, "grpc/health/v1/health", "inference/open_inference")} <= set(
        FILES
    )


def test_health_is_as_grpc_has_it() -> None:
    text = (PROTO / "grpc/health/v1/health.proto").read_text(encoding="utf-8")
    for message in health_pb2.DESCRIPTOR.message_types_by_name.values():
        for field in message.fields:
            assert re.search(rf"\b{field.name} = {field.number};", text), field.full_name
    for method in health_pb2.DESCRIPTOR.services_by_name["Health"].methods:
        assert f"rpc {method.name}({method.input_type.name}) returns (" in text


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_import_is_found(path: Path) -> None:
    text = (PROTO / path).read_text(encoding="utf-8")
    imported = re.findall(r'^\s*import\s+(?:public\s+|weak\s+)?"([^"]+)"\s*;', text, flags=re.MULTILINE)
    assert len(imported) == len(re.findall(r"^\s*import\b", text, flags=re.MULTILINE))
    missing = [name for name in imported if not (name.startswith(WELL_KNOWN) or (PROTO / name).is_file())]
    assert missing == []


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "google"], ids=str)
def test_what_is_not_ours_has_its_licence(path: Path) -> None:
    head = (PROTO / path).read_text(encoding="utf-8")[:800]
    assert re.match(r"// Copyright \d{4} Google LLC\n", head)
    assert "Licensed under the Apache License, Version 2.0" in head
