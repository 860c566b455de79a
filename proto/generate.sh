#!/usr/bin/env bash
# Generates the Python stubs: of proto/dragoman for the SDK, of proto/inference for the server. Those of
# proto/google and proto/grpc are in the packages googleapis-common-protos and grpcio-health-checking. Then the
# descriptors by which Envoy translates between JSON and protobuf: those of proto/dragoman, and of the details of errors.
#
# Usage: proto/generate.sh OUT, with proto/requirements.txt installed for the interpreter named by PYTHON
# (default: python3); OUT is the root of the checkout, or another folder that gets the same folders. To the
# generator, the path of a .proto file equals its Python package, so the generated imports need no rewriting.
set -euo pipefail

mkdir -p "$1/client" "$1/server" "$1/deploy/envoy"
out=$(cd "$1" && pwd)
python=$(realpath --no-symlinks "$(command -v "${PYTHON:-python3}")")
proto=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The plugins are scripts beside the interpreter.
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"

# Usage: generate FOLDER PROTO_PATH FILE ...
generate() {
    local out="$out/$1"
    "$python" -m grpc_tools.protoc \
        --proto_path="$2" \
        --python_out="$out" --mypy_out="quiet:$out" \
        --grpc_python_out="$out" --mypy_grpc_out="quiet:$out" \
        "${@:3}"
}

cd "$proto"
mapfile -t sources < <(find dragoman -name '*.proto' | sort)
generate client . "${sources[@]}"
# The server alone knows the foreign protocol, and its package is in a room of the server.
generate server dragoman_server/wire/generated=inference dragoman_server/wire/generated/open_inference.proto

"$python" -m grpc_tools.protoc --proto_path=. --include_imports --descriptor_set_out="$out/deploy/envoy/dragoman.binpb" \
    "${sources[@]}" google/rpc/error_details.proto
