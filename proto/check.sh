#!/usr/bin/env bash
# Fails unless the .proto files are well formed, break no caller of the contract in released.binpb, and the
# committed stubs and descriptors are what proto/generate.sh makes of them.
#
# Usage: proto/check.sh, with proto/requirements.txt installed for the interpreter named by PYTHON.
set -euo pipefail

python=$(realpath --no-symlinks "$(command -v "${PYTHON:-python3}")")
proto=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

# buf is a program beside the interpreter.
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
(cd "$proto" && buf lint && buf breaking --against released.binpb)

"$proto/generate.sh" "$fresh"
for stubs in client/dragoman/v1 server/dragoman_server/wire/generated; do
    if ! diff -r -x __init__.py -x __pycache__ "$fresh/$stubs" "$proto/../$stubs"; then
        echo "The stubs in $stubs are out of date: run make proto and commit." >&2
        exit 1
    fi
done
if ! cmp "$fresh/deploy/envoy/dragoman.binpb" "$proto/../deploy/envoy/dragoman.binpb"; then
    echo "The descriptors in deploy/envoy are out of date: run make proto and commit." >&2
    exit 1
fi
