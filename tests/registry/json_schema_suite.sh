#!/usr/bin/env bash
# The official JSON Schema Test Suite into .cache/json-schema-suite, from the source archive of the Python package `jsonschema`, which carries it whole:
# pinned by its hash, never part of this repository. (The npm package of the suite fetches it from a Git server instead.)
set -euo pipefail
cd "$(dirname "$0")/../.."
target=.cache/json-schema-suite
[ ! -e "$target/tests/draft7" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-.venv/bin/python}" -m pip download -q --no-deps --no-binary jsonschema --require-hashes -r tests/registry/json_schema_suite.txt -d "$work"
mkdir -p "$work/suite" "$(dirname "$target")"
tar -xzf "$work"/jsonschema-*.tar.gz -C "$work/suite" --strip-components=2 --wildcards 'jsonschema-*/json/tests/draft7/*' 'jsonschema-*/json/remotes/*' 'jsonschema-*/json/LICENSE'
rm -rf "$target"
mv "$work/suite" "$target"
