#!/usr/bin/env bash
# Fails unless the committed stubs are what proto/generate.sh makes of the .proto files.
set -euo pipefail

proto=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

"$proto/generate.sh" "$fresh"
if ! diff -r -x __init__.py -x __pycache__ "$fresh/dragoman/v1" "$proto/../client/dragoman/v1"; then
    echo "The stubs in client/dragoman/v1 are out of date: run make proto and commit." >&2
    exit 1
fi
