#!/usr/bin/env bash
# Builds and tests everything that a change must pass: the cpu preset, the source checks and the
# sanitizers. Without a compiler cache some 40 minutes on two cores, mostly compiling.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

step() { printf '\n==== %s (%d s)\n' "$1" "$SECONDS"; }

step "packages"
tools/setup.sh

[[ -x /usr/local/cuda/bin/nvcc ]] && export PATH="/usr/local/cuda/bin:$PATH"

step "cpu: configure, build, test"
cmake --workflow --preset cpu

# The GPU's programs only: everything else is what the cpu preset has built and tested.
if command -v nvcc > /dev/null; then
  step "cuda: configure, build, GPU tests (skipped where there is no GPU)"
  cmake --preset cuda -D GANTRY_BUILD_BENCH=OFF
  # Spills are errors there; that wgmma was serialised ptxas only mentions.
  cmake --build --preset cuda --target device_kernels_test device_golden_test gantry |
    tee build/cuda/build.log
  tools/check_spills.py --unasked --ptxas-log build/cuda/build.log
  ctest --preset cuda --label-regex gpu
else
  echo "cuda: not built, no nvcc here"
fi

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
