#!/usr/bin/env bash
# Builds and tests everything that a change must pass: the cpu preset, the source checks and the
# sanitizers. Without a compiler cache about 20 minutes on two cores, mostly compiling.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

step() { printf '\n==== %s (%d s)\n' "$1" "$SECONDS"; }

step "packages"
tools/setup.sh

if command -v nvcc > /dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then
  echo "CUDA toolkit found, but Gantry has no GPU kernels yet: this run tests the CPU"
else
  echo "CPU only: no nvcc here"
fi

step "cpu: configure, build, test"
cmake --workflow --preset cpu

step "source checks"
python3 tools/check_includes.py
if command -v clang-format-14 > /dev/null || command -v clang-format > /dev/null; then
  tools/format.sh --check
else
  echo "format check skipped: no clang-format (tools/setup.sh lint installs it)"
fi

step "asan: configure, build, test"
cmake --workflow --preset asan

step "all passed"
