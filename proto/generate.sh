#!/usr/bin/env bash
# Generates the Python stubs of proto/dragoman into a source root. Those of proto/google are in
# the package googleapis-common-protos.
#
# Usage: proto/generate.sh OUT, with proto/requirements.txt installed for the
# interpreter named by PYTHON (default: python3). The path of a .proto file equals its
# Python package, so the generated imports need no rewriting.
set -euo pipefail

mkdir -p "$1"
out=$(cd "$1" && pwd)
python=$(realpath --no-symlinks "$(command -v "${PYTHON:-python3}")")
proto=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The plugins are scripts beside the interpreter.
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"

cd "$proto"
mapfile -t sources < <(find dragoman -name '*.proto' | sort)
"$python" -m grpc_tools.protoc \
    --proto_path=. \
    --python_out="$out" --mypy_out="quiet:$out" \
    --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" \
    "${sources[@]}"
