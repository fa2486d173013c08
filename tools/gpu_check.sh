#!/usr/bin/env bash
# Everything that needs a GPU, in five parts of under 8 minutes each. Needs a driver and, unless the
# programs are there already, nvcc.
#
#   tools/gpu_check.sh 1        kernels and goldens on the GPU
#   tools/gpu_check.sh 2        quantized checkpoints of GANTRY_QUANT_DIR and the tree, the command
#   tools/gpu_check.sh 3        compute-sanitizer: memcheck and racecheck
#   tools/gpu_check.sh 4        times of whole calls of a Qwen3-30B-A3B layer, copies included
#   tools/gpu_check.sh 5        several ranks: device memory over the host and over NCCL
#   tools/gpu_check.sh build    builds what the parts run
#
# GANTRY_BUILD_DIR (default build/cuda) has the programs; GANTRY_GPU (default cuda:0) names the GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build="${GANTRY_BUILD_DIR:-build/cuda}"
gpu="${GANTRY_GPU:-cuda:0}"
kernels_test="$build/tests/cuda/device_kernels_test"
golden_test="$build/tests/cuda/device_golden_test"
gantry="$build/tools/gantry"

step() { printf '\n==== %s (%d s)\n' "$1" "$SECONDS"; }

build_programs() {
  [[ -x /usr/local/cuda/bin/nvcc ]] && export PATH="/usr/local/cuda/bin:$PATH"
  cmake --preset cuda -D GANTRY_BUILD_BENCH=OFF -B "$build"
  cmake --build "$build" --target device_kernels_test device_golden_test gantry \
    communicator_nccl_test $([[ -d "$build/tests/mp/CMakeFiles/communicator_mpi_test.dir" ]] && echo communicator_mpi_test)
}

# A part of the list must not pass because nothing ran.
run_tests() {
  local log
  log="$(mktemp)"
  GANTRY_TEST_DEVICE="$gpu" "$@" 2>&1 | tee "$log" | grep -E '^\[  (FAILED|PASSED|SKIPPED)|Failure|^ERROR|=====' || true
  if grep -q '^\[  SKIPPED' "$log"; then
    echo "gpu_check: tests were skipped: $(grep -m1 -E 'no CUDA driver|no GPU|has no CUDA' "$log")" >&2
    return 1
  fi
  grep -q '^\[  PASSED' "$log" && ! grep -q '^\[  FAILED' "$log"
}

part_1() {
  step "kernels on $gpu"
  run_tests "$kernels_test"
  step "goldens of all families"
  run_tests "$golden_test" --gtest_filter='Families/*'
}

part_2() {
  step "quantized goldens and GGUF"
  run_tests "$golden_test" --gtest_filter='Quantized/*:Gguf/*'
  step "the command"
  local golden
  for golden in tests/golden/families/mixtral tests/golden/families/gpt_oss; do
    "$gantry" verify "$golden" --device "$gpu" --reference "$golden/moe_io.safetensors" --quiet
  done
  "$gantry" run tests/golden/families/qwen3_moe --device "$gpu" --tokens 300
}

part_3() {
  local sanitizer
  sanitizer="$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)"
  if [[ ! -x "$sanitizer" ]]; then
    echo "gpu_check: no compute-sanitizer here" >&2
    return 1
  fi
  # A few formats of each kernel: the sanitizer is some 100 times slower.
  local filter='*bf16_columns*:*int4_group32_columns*:*nvfp4_columns*:DevicePlan*:DeviceRouting*:DeviceLayer*'
  step "memcheck"
  run_tests "$sanitizer" --tool memcheck --error-exitcode 1 "$kernels_test" --gtest_filter="$filter"
  step "racecheck"
  run_tests "$sanitizer" --tool racecheck --error-exitcode 1 "$kernels_test" --gtest_filter="$filter"
}

# Whole calls, with the copies of the batch in and out: no figures of kernels yet.
part_4() {
  local format dir tokens
  for format in bf16 fp8-block mxfp4 int4-g128; do
    dir="$build/gpu_check_$format"
    [[ -d "$dir" ]] || "$gantry" synth --shape qwen3-30b-a3b --layers 1 --format "$format" "$dir"
    for tokens in 1 8 64 512 4096; do
      step "$format, $tokens tokens"
      "$gantry" run "$dir" --device "$gpu" --tokens "$tokens" --repeat 20
    done
  done
}

part_5() { GANTRY_BUILD_DIR="$build" GANTRY_GPU="$gpu" tools/gpu_check_nccl.sh; }

case "${1:-}" in
  build) build_programs ;;
  1|2|3|4|5)
    [[ -x "$kernels_test" && -x "$golden_test" && -x "$gantry" ]] || build_programs
    "part_$1"
    step "part $1 passed"
    ;;
  *) echo "gpu_check.sh: expected build or 1 to 5, found '${1:-}'" >&2; exit 2 ;;
esac
