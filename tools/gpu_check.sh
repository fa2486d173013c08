#!/usr/bin/env bash
# Everything that needs a GPU, in four parts of under 8 minutes each, half an hour together. Needs a
# driver and, unless the programs are there already, nvcc and the packages of tools/setup.sh.
#
#   tools/gpu_check.sh 1        kernels and goldens on the GPU
#   tools/gpu_check.sh 2        quantized checkpoints, the command, several ranks (host, NCCL)
#   tools/gpu_check.sh 3        compute-sanitizer: memcheck, racecheck, synccheck
#   tools/gpu_check.sh 4        figures: layers against the ceilings of the same run, cuBLAS, ncu
#   tools/gpu_check.sh build    builds what the parts run
#   tools/gpu_check.sh pack     puts it, stripped, with the shared libraries that it loads into
#                               GANTRY_CARRY (default build/gpu_carry) and next to it a .tar.xz;
#                               what travels, the tree and the archive, stays below 64 MiB
#   tools/gpu_check.sh plan     says what each part would do, runs nothing
#   tools/gpu_check.sh dry      runs all parts without a GPU: every program must start, find its tests
#                               and files, and say that there is no GPU
#
# GANTRY_BUILD_DIR (default build/cuda) has the programs; where GANTRY_CARRY or its archive has
# them, those are taken. GANTRY_GPU (default cuda:0) names the GPU. GANTRY_OUT (default OUT, else
# build/gpu_check) gets part_N.log, and a summary at its end. GANTRY_PART_SECONDS (default 390) is
# what a part may take: a step that finds less than its time left gets what is left, or is not run.
#
# A step that fails or hangs stops nothing: tests run in many processes, those of a process that fails
# once more one by one, and the rest goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export GANTRY_BUILD_DIR="${GANTRY_BUILD_DIR:-build/cuda}"
export GANTRY_GPU="${GANTRY_GPU:-cuda:0}"
export GANTRY_OUT="${GANTRY_OUT:-${OUT:-build/gpu_check}}"
carry="${GANTRY_CARRY:-build/gpu_carry}"
source tools/gpu_check_steps.sh

build_programs() {
  [[ -x /usr/local/cuda/bin/nvcc ]] && export PATH="/usr/local/cuda/bin:$PATH"
  # An RPATH beside the program, for pack: no LD_LIBRARY_PATH, which other programs would see.
  cmake --preset cuda -D GANTRY_BUILD_BENCH=OFF -B "$GANTRY_BUILD_DIR" \
    -D CMAKE_BUILD_RPATH='$ORIGIN/lib' -D CMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags
  local targets=(device_kernels_test device_golden_test gantry communicator_nccl_test)
  [[ -d "$GANTRY_BUILD_DIR/tests/mp/CMakeFiles/communicator_mpi_test.dir" ]] &&
    targets+=(communicator_mpi_test)
  cmake --build "$GANTRY_BUILD_DIR" --target "${targets[@]}"
}

pack_programs() {
  build_programs
  rm -rf "$carry" "$carry.tar.xz"
  mkdir -p "$carry/lib"
  local program
  for program in tests/cuda/device_kernels_test tests/cuda/device_golden_test tools/gantry \
    tests/parallel/communicator_nccl_test; do
    strip -o "$carry/$(basename "$program")" "$GANTRY_BUILD_DIR/$program"
    chmod +x "$carry/$(basename "$program")"
    # All but the C library, which belongs to the machine.
    ldd "$GANTRY_BUILD_DIR/$program" | awk '$3 ~ "^/" { print $3 }' |
      grep -Ev '/(libc|libm|libdl|librt|libpthread)\.so' | xargs -I{} cp -Lnu {} "$carry/lib/"
  done
  cp "$GANTRY_BUILD_DIR/tests/cuda/libfake_cublas.so" "$carry/lib/"
  tar -C "$(dirname "$carry")" -cf - "$(basename "$carry")" | xz --lzma2=preset=6,dict=64MiB -T1 > "$carry.tar.xz"  # the kernels stand in every program
  du -h --apparent-size "$carry.tar.xz"
  local glibc tree bytes
  glibc="$(find "$carry" -type f -exec objdump -T {} + 2>/dev/null | grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -1)"
  echo "needs $glibc or later, and no other library of the machine"
  tree="$(git ls-files -z | xargs -0 du -cb | tail -1 | cut -f1)"
  bytes=$((tree + $(stat -c %s "$carry.tar.xz")))
  echo "$bytes bytes travel: $tree of the tree and the archive"
  if (( bytes > 64 << 20 )); then
    echo "gpu_check: $bytes bytes to carry, expected at most $((64 << 20))" >&2
    return 1
  fi
}

take_programs() {
  if [[ ! -d "$carry" && -f "$carry.tar.xz" ]]; then
    tar -C "$(dirname "$carry")" -xJf "$carry.tar.xz" 2>/dev/null ||  # without xz: Python has it
      python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
        "$carry.tar.xz" "$(dirname "$carry")"
  fi
  if [[ -x "$carry/gantry" ]]; then
    kernels_test="$carry/device_kernels_test"
    golden_test="$carry/device_golden_test"
    nccl_test="$carry/communicator_nccl_test"
    gantry="$carry/gantry"
    export GANTRY_TEST_GOLDEN_ROOT="$PWD/tests/golden"
    export GANTRY_TEST_FAKE_CUBLAS="$PWD/$carry/lib/libfake_cublas.so"
  else
    kernels_test="$GANTRY_BUILD_DIR/tests/cuda/device_kernels_test"
    golden_test="$GANTRY_BUILD_DIR/tests/cuda/device_golden_test"
    nccl_test="$GANTRY_BUILD_DIR/tests/parallel/communicator_nccl_test"
    gantry="$GANTRY_BUILD_DIR/tools/gantry"
  fi
  export nccl_test gantry
  [[ -n "$plan" ]] && return
  [[ -x "$kernels_test" && -x "$golden_test" && -x "$gantry" && -x "$nccl_test" ]] ||
    build_programs
}

# From what everything else rests on to what rests on everything.
part_1() {
  step "the machine" 30 facts
  suites "plan, routing" 60 "$kernels_test" 'DevicePlan*:DeviceRouting*'
  suites "GEMMs of every GPU" 120 "$kernels_test" '*columns*:*tiled*'
  suites "wgmma" 120 "$kernels_test" '*wgmma*'
  suites "e4m3 rows" 60 "$kernels_test" 'Rows8*:*/Rows8*'
  suites "goldens of all families" 150 "$golden_test" 'Families/*'
  suites "layers: chunks, ids, graphs, streams" 120 "$kernels_test" 'DeviceLayer*:DevicePrefill*:*/DevicePrefill*'
}

part_2() {
  suites "quantized goldens" 150 "$golden_test" 'Quantized/*'
  suites "GGUF" 60 "$golden_test" 'Gguf/*'
  local golden
  for golden in mixtral gpt_oss deepseek_v3; do
    step "gantry verify $golden" 40 "$gantry" verify "tests/golden/families/$golden" \
      --device "$GANTRY_GPU" --reference "tests/golden/families/$golden/moe_io.safetensors" --quiet
  done
  step "gantry run, 300 tokens" 40 "$gantry" run tests/golden/families/qwen3_moe \
    --device "$GANTRY_GPU" --tokens 300
  step "gantry run, fp8 rows" 40 "$gantry" run tests/golden/quant/hf_fp8-block-fused \
    --device "$GANTRY_GPU" --tokens 300 --activations scheme
  if [[ -n "$dry" ]]; then
    suites "several ranks" 60 "$nccl_test" "$rank_tests"
  else
    step "several ranks" 200 tools/gpu_check_nccl.sh
  fi
}

part_3() {
  local sanitizer
  sanitizer="$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)"
  if [[ -z "$plan$dry" ]]; then
    [[ -x "$sanitizer" ]] || { not_run "compute-sanitizer: not installed here"; return; }
    # Machines that hide the GPU behind a sandbox of system calls refuse it.
    local said
    said="$(timeout 60 "$sanitizer" "$kernels_test" --gtest_filter='DevicePlan*' 2>&1 || true)"
    if grep -q 'Device not supported' <<< "$said"; then
      not_run "compute-sanitizer: it says that it does not support this device"
      return
    fi
  fi
  # A few formats of each kernel: the sanitizer is some 100 times slower.
  local gemm='*bf16_columns*:*int4_group32_columns*:*bf16_wgmma*:*int4_group32_wgmma*:*nvfp4_wgmma*'
  local rest='DevicePlan*:DeviceRouting*:DeviceLayer*:DevicePrefill*:Rows8*:*/Rows8*'
  local tool
  for tool in memcheck racecheck synccheck; do
    sanitized "$tool: GEMMs" 90 "$sanitizer" "$tool" "$kernels_test" "$gemm"
  done
  for tool in memcheck racecheck; do
    sanitized "$tool: the rest" 90 "$sanitizer" "$tool" "$kernels_test" "$rest"
  done
}

# Each call measures its own ceilings. cuBLAS is compared with where it is installed.
part_4() {
  local shape=("$gantry" bench --shape qwen3-30b-a3b --device "$GANTRY_GPU" --seconds 0.3 --rotate-gb 1.5)
  local all=1,8,32,64,512,4096
  local format
  for format in fp8-block bf16 mxfp4 int4-g128; do
    step "$format" 60 "${shape[@]}" --format "$format" --tokens "$all"
  done
  step "fp8-block, bf16 rows" 60 "${shape[@]}" --format fp8-block --activations bf16 --tokens "$all"
  local cublas
  cublas="$(find_library 'libcublas.so.1[23]')"
  if [[ -n "$cublas" || -n "$plan$dry" ]]; then
    step "bf16 beside cuBLAS" 60 "${shape[@]}" --format bf16 --cublas "${cublas:-yes}" --tokens 64,512,4096
  else
    not_run "cuBLAS: not installed here"
  fi
  local ncu
  ncu="$(command -v ncu || echo /usr/local/cuda/bin/ncu)"
  local tokens
  for format in fp8-block bf16; do
    for tokens in 1 64 4096; do
      profiled "$format, $tokens tokens, kernel by kernel" 40 "$ncu" "$gantry" bench \
        --shape qwen3-30b-a3b --device "$GANTRY_GPU" --seconds 0.01 --rotate-gb 0.1 --format "$format" \
        --tokens "$tokens"
    done
  done
  step "bf16, kernels of every GPU" 50 "${shape[@]}" --format bf16 --generic-kernels --tokens 64,512,4096
  step "nvfp4" 50 "${shape[@]}" --format nvfp4 --tokens "$all"
}

run_part() {
  "part_$1"
  [[ -n "$plan" ]] && return
  printf '\n==== summary of part %s (%d s)\n' "$1" "$SECONDS"
  printf '%s\n' "${summary[@]}"
  (( failed == 0 ))
}

case "${1:-}" in
  build) build_programs ;;
  pack) pack_programs ;;
  plan)
    plan=1
    take_programs
    for part in 1 2 3 4; do
      echo "part $part (at most $most_seconds s):"
      run_part "$part"
    done
    ;;
  dry)
    dry=1
    export CUDA_VISIBLE_DEVICES=  # also where there is one
    take_programs
    bad=0
    for part in 1 2 3 4; do
      run_part "$part" || bad=1
      summary=()
      failed=0
    done
    exit "$bad"
    ;;
  1|2|3|4)
    take_programs
    SECONDS=0
    mkdir -p "$GANTRY_OUT"
    run_part "$1" 2>&1 | tee "$GANTRY_OUT/part_$1.log"
    ;;
  *) echo "gpu_check.sh: expected build, pack, plan, dry or 1 to 4, found '${1:-}'" >&2; exit 2 ;;
esac
