"""Holds Kubernetes' objects on standard input, a JSON array, against schemas; prints a JSON array of what is wrong.

Runs in an environment of its own, with `kubernetes-validate`. The kinds of others, whose schemas no package has, are
held against `crds.json` beside this file.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

# The first with `sleep` in `preStop` and gRPC probes without a feature gate, and the newest.
VERSIONS = ("1.30", "1.37")
CRDS = json.loads((Path(__file__).parent / "crds.json").read_text())


def faults(thing: dict[str, Any]) -> Iterator[str]:
    name = f"{thing['kind']}/{thing['metadata']['name']}"
    crd = CRDS.get(f"{thing['apiVersion']}/{thing['kind']}")
    if crd is None:
        for version in VERSIONS:
            yield from (f"{name}: {fault}" for fault in built_in(thing, version))
        return
    for error in jsonschema.Draft202012Validator(crd).iter_errors(thing):
        yield f"{name}: {error.json_path}: {error.message}"
    containers = thing["spec"].get("containers")
    if containers is not None:  # as a pod has them
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": containers}}
        yield from (f"{name}: {fault}" for version in VERSIONS for fault in built_in(pod, version))


def built_in(thing: dict[str, Any], version: str) -> Iterator[str]:
    try:
        kubernetes_validate.validate(thing, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{version}: {error.json_path}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield error.message


print(json.dumps([fault for thing in json.load(sys.stdin) for fault in faults(thing)]))
