#!/usr/bin/env bash
# Builds the gantry command and runs it.
#   tools/run.sh                 writes one layer of Qwen3-30B-A3B with random weights to build/demo,
#                                then verifies it and runs 64 tokens through it
#   tools/run.sh inspect DIR     any gantry command
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

tools/setup.sh >&2

# Quiet unless it fails, so that stdout is the command's alone.
build_log="$(mktemp)"
trap 'rm -f "$build_log"' EXIT
if ! { cmake --preset release && cmake --build --preset release --target gantry; } \
    > "$build_log" 2>&1; then
  cat "$build_log" >&2
  exit 1
fi
gantry="build/release/tools/gantry"

if [[ $# -gt 0 ]]; then
  "$gantry" "$@"
  exit
fi

demo="build/demo/qwen3-30b-a3b-1layer"
# config.json is written last: without it the directory is what an interrupted run left.
if [[ ! -f "$demo/config.json" ]]; then
  rm -rf "$demo"
  mkdir -p "$(dirname "$demo")"
  "$gantry" synth --shape qwen3-30b-a3b --layers 1 --format bf16 "$demo"
fi
"$gantry" verify "$demo"
"$gantry" run "$demo" --tokens 64
