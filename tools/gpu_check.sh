#!/usr/bin/env bash
# Everything that needs a GPU, in five parts of under 8 minutes each. Needs a driver and, unless the
# programs are there already, nvcc and the packages of tools/setup.sh.
#
#   tools/gpu_check.sh 1        kernels and goldens on the GPU
#   tools/gpu_check.sh 2        quantized checkpoints of GANTRY_QUANT_DIR and the tree, the command
#   tools/gpu_check.sh 3        compute-sanitizer: memcheck, racecheck, synccheck
#   tools/gpu_check.sh 4        figures: layers against the ceilings of the same run, and cuBLAS
#   tools/gpu_check.sh 5        several ranks: device memory over the host and over NCCL
#   tools/gpu_check.sh build    builds what the parts run
#   tools/gpu_check.sh pack     puts it, stripped, into GANTRY_CARRY (default build/gpu_carry): the
#                               programs and the shared libraries that they load; below 64 MiB
#   tools/gpu_check.sh plan     says what each part would do, runs nothing
#
# GANTRY_BUILD_DIR (default build/cuda) has the programs; where GANTRY_CARRY has them, those are
# taken. GANTRY_GPU (default cuda:0) names the GPU. Results of a part: GANTRY_OUT (default
# build/gpu_check)/part_N.log, and a summary at its end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build="${GANTRY_BUILD_DIR:-build/cuda}"
carry="${GANTRY_CARRY:-build/gpu_carry}"
gpu="${GANTRY_GPU:-cuda:0}"
out="${GANTRY_OUT:-build/gpu_check}"
plan=""
most_seconds=470  # of a part; what does not fit is reported as not run

kernels_test="$build/tests/cuda/device_kernels_test"
golden_test="$build/tests/cuda/device_golden_test"
gantry="$build/tools/gantry"
if [[ -x "$carry/gantry" ]]; then
  kernels_test="$carry/device_kernels_test"
  golden_test="$carry/device_golden_test"
  gantry="$carry/gantry"
  export GANTRY_TEST_GOLDEN_ROOT="$PWD/tests/golden"
  export GANTRY_TEST_FAKE_CUBLAS="$PWD/$carry/lib/libfake_cublas.so"
  export LD_LIBRARY_PATH="$PWD/$carry/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi

summary=()
failed=0

build_programs() {
  [[ -x /usr/local/cuda/bin/nvcc ]] && export PATH="/usr/local/cuda/bin:$PATH"
  cmake --preset cuda -D GANTRY_BUILD_BENCH=OFF -B "$build"
  cmake --build "$build" --target device_kernels_test device_golden_test gantry \
    communicator_nccl_test $([[ -d "$build/tests/mp/CMakeFiles/communicator_mpi_test.dir" ]] && echo communicator_mpi_test)
}

pack_programs() {
  kernels_test="$build/tests/cuda/device_kernels_test"
  golden_test="$build/tests/cuda/device_golden_test"
  gantry="$build/tools/gantry"
  build_programs
  rm -rf "$carry"
  mkdir -p "$carry/lib"
  local program
  for program in "$kernels_test" "$golden_test" "$gantry"; do
    strip -o "$carry/$(basename "$program")" "$program"
    chmod +x "$carry/$(basename "$program")"
    # All but the C library, which belongs to the machine.
    ldd "$program" | awk '$3 ~ "^/" { print $3 }' |
      grep -Ev '/(libc|libm|libdl|librt|libpthread)\.so' | xargs -I{} cp -Lnu {} "$carry/lib/"
  done
  cp "$build/tests/cuda/libfake_cublas.so" "$carry/lib/"
  du -sh "$carry"
  local bytes
  bytes="$(du -sb "$carry" | cut -f1)"
  if (( bytes > 64 << 20 )); then
    echo "gpu_check: $bytes bytes to carry, expected at most $((64 << 20))" >&2
    return 1
  fi
}

# step NAME COMMAND...: runs a command, keeps the time, goes on if it fails.
step() {
  local name="$1" begin="$SECONDS"
  shift
  if [[ -n "$plan" ]]; then
    printf '  %-44s %s\n' "$name" "$*"
    return
  fi
  if (( SECONDS > most_seconds )); then
    summary+=("NOT RUN  $name (no time left)")
    failed=1
    return
  fi
  printf '\n==== %s\n' "$name"
  if timeout "$((most_seconds + 30 - SECONDS))" "$@"; then
    summary+=("passed   $name ($((SECONDS - begin)) s)")
  else
    summary+=("FAILED   $name ($((SECONDS - begin)) s)")
    failed=1
  fi
}

# A part of the list must not pass because nothing ran: a test that is skipped is a failure, except
# those of sm_90a on other GPUs.
run_tests() {
  local log
  log="$(mktemp)"
  GANTRY_TEST_DEVICE="$gpu" "$@" 2>&1 | tee "$log" |
    grep -E '^\[  (FAILED|PASSED)|Failure|^ERROR|^=====|ERROR SUMMARY' || true
  if grep -qE 'no CUDA driver|but no GPU|has no CUDA' "$log"; then
    echo "gpu_check: $(grep -m1 -oE '[^:]*(no CUDA driver|but no GPU|has no CUDA).*' "$log")" >&2
    return 1
  fi
  echo "skipped: $(grep -c '^\[  SKIPPED.*ms)' "$log" || true)"
  grep -q '^\[  PASSED' "$log" && ! grep -qE '^\[  FAILED|ERROR SUMMARY: [1-9]' "$log"
}
export -f run_tests
export gpu

tests() {  # tests NAME COMMAND...
  local name="$1"
  shift
  if [[ -n "$plan" ]]; then
    step "$name" "$@"
  else
    step "$name" bash -c 'run_tests "$@"' run_tests "$@"
  fi
}

part_1() {
  tests "kernels on $gpu" "$kernels_test"
  tests "goldens of all families" "$golden_test" '--gtest_filter=Families/*'
}

part_2() {
  tests "quantized goldens and GGUF" "$golden_test" '--gtest_filter=Quantized/*:Gguf/*'
  local golden
  for golden in mixtral gpt_oss deepseek_v3; do
    step "gantry verify $golden" "$gantry" verify "tests/golden/families/$golden" --device "$gpu" \
      --reference "tests/golden/families/$golden/moe_io.safetensors" --quiet
  done
  step "gantry run, 300 tokens" "$gantry" run tests/golden/families/qwen3_moe --device "$gpu" \
    --tokens 300
  step "gantry run, fp8 rows" "$gantry" run tests/golden/quant/hf_fp8-block-fused --device "$gpu" \
    --tokens 300 --activations scheme
}

part_3() {
  local sanitizer
  sanitizer="$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)"
  if [[ -z "$plan" && ! -x "$sanitizer" ]]; then
    summary+=("NOT RUN  no compute-sanitizer here")
    failed=1
    return
  fi
  # A few formats of each kernel: the sanitizer is some 100 times slower.
  local gemm='*bf16_columns*:*int4_group32_columns*:*bf16_wgmma*:*int4_group32_wgmma*:*nvfp4_wgmma*'
  local rest='DevicePlan*:DeviceRouting*:DeviceLayer*:DevicePrefill*:Rows8*:Formats/*'
  local tool
  for tool in memcheck racecheck synccheck; do
    tests "$tool: GEMMs" "$sanitizer" --tool "$tool" --error-exitcode 1 "$kernels_test" \
      "--gtest_filter=$gemm"
  done
  for tool in memcheck racecheck; do
    tests "$tool: the rest" "$sanitizer" --tool "$tool" --error-exitcode 1 "$kernels_test" \
      "--gtest_filter=$rest"
  done
}

# Each call measures its own ceilings. Weights are made up on the host: a minute a format. cuBLAS is
# compared with where it is installed.
part_4() {
  local cublas=no
  if ldconfig -p 2>/dev/null | grep -qE 'libcublas\.so\.1[23]'; then
    cublas=yes
  else
    local library
    for library in /usr/local/cuda/lib64/libcublas.so.1[23]; do
      [[ -e "$library" ]] && cublas="$library"
    done
  fi
  local few=(--tokens "1,8,32,64" --seconds 0.5 --rotate-gb 1.5)
  local many=(--tokens "512,4096" --seconds 0.5 --rotate-gb 1.5)
  local shape=(bench --shape qwen3-30b-a3b --device "$gpu")
  local format
  for format in fp8-block bf16 mxfp4 int4-g128; do
    step "$format, few and many tokens" "$gantry" "${shape[@]}" --format "$format" \
      --tokens "1,8,32,64,512,4096" --seconds 0.5 --rotate-gb 1.5
  done
  if [[ "$cublas" == no ]]; then
    [[ -n "$plan" ]] || summary+=("NOT RUN  cuBLAS: not installed here")
  else
    step "bf16 beside cuBLAS" "$gantry" "${shape[@]}" --format bf16 --cublas "$cublas" \
      --tokens "64,512,4096" --seconds 0.5 --rotate-gb 1.5
  fi
  step "fp8-block, bf16 rows" "$gantry" "${shape[@]}" --format fp8-block --activations bf16 "${many[@]}"
  step "bf16, kernels of every GPU" "$gantry" "${shape[@]}" --format bf16 --generic-kernels "${many[@]}"
  step "nvfp4" "$gantry" "${shape[@]}" --format nvfp4 "${few[@]}"
}

run_part() {
  mkdir -p "$out"
  "part_$1"
  [[ -n "$plan" ]] && return
  printf '\n==== summary of part %s (%d s)\n' "$1" "$SECONDS"
  printf '%s\n' "${summary[@]}"
  return "$failed"
}

part_5() {
  if [[ -n "$plan" ]]; then
    echo "  tools/gpu_check_nccl.sh"
    return
  fi
  GANTRY_BUILD_DIR="$build" GANTRY_GPU="$gpu" tools/gpu_check_nccl.sh
}

case "${1:-}" in
  build) build_programs ;;
  pack) pack_programs ;;
  plan)
    plan=1
    for part in 1 2 3 4 5; do
      echo "part $part (at most $most_seconds s):"
      run_part "$part"
    done
    ;;
  1|2|3|4|5)
    [[ -x "$kernels_test" && -x "$golden_test" && -x "$gantry" ]] || build_programs
    SECONDS=0
    mkdir -p "$out"
    run_part "$1" 2>&1 | tee "$out/part_$1.log"
    ;;
  *) echo "gpu_check.sh: expected build, pack, plan or 1 to 5, found '${1:-}'" >&2; exit 2 ;;
esac
