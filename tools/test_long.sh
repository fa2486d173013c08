#!/usr/bin/env bash
# Everything that takes too long for each change: each instruction set, the sanitizers, many more
# random trials, and fuzzing.
#   FUZZ_SECONDS=600     for each fuzz target
#   GANTRY_TRIALS=1000   of each property and mutation test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"
fuzz_seconds="${FUZZ_SECONDS:-600}"
trials="${GANTRY_TRIALS:-1000}"
unset GANTRY_TRIALS  # only the step that asks for many trials runs many

step() { printf '\n==== %s (%d s)\n' "$1" "$SECONDS"; }

build_cpu() {
  step "cpu preset"
  cmake --preset cpu
  cmake --build --preset cpu
}

test_each_isa() {
  local isa
  for isa in scalar avx2 avx512 amx; do
    step "tests, GANTRY_MAX_ISA=$isa"
    GANTRY_MAX_ISA="$isa" ctest --preset cpu --label-exclude fuzz
  done
}

test_many_trials() {
  step "property and mutation tests, GANTRY_TRIALS=$trials"
  local tests='mutation|rebalance|crash|token_exchange|rank_layouts'
  GANTRY_TRIALS="$trials" ctest --preset cpu --tests-regex "$tests" \
    --no-tests=error --timeout 36000
  step "every golden checkpoint on ranks with emulated devices"
  GANTRY_ALL_GOLDENS=1 ctest --preset cpu --tests-regex '^device_ranks$' --no-tests=error \
    --timeout 36000
}

# Every golden checkpoint over processes, and ranks that are killed and stopped at random points.
test_ranks() {
  if ! command -v mpirun > /dev/null; then
    step "ranks: skipped, no mpirun"
    return
  fi
  step "every golden checkpoint on ranks that mpirun starts, both exchanges"
  python3 tests/mp/verify_table.py build/cpu/tools/gantry tests/golden
  step "1002 rebalances a format over 4 processes"
  GANTRY_TRIALS=167 mpirun -np 4 build/cpu/tests/mp/rebalance_mpi_test --gtest_filter='*FourRanks*'
  step "50 killed ranks, 50 killed in MPI_Init, 50 stopped"
  python3 tests/mp/fault_trials.py build/cpu/tools/gantry tests/golden/families/mixtral \
    --kills 50 --startup-kills 50 --stops 50
}

test_sanitizers() {
  step "AddressSanitizer and UndefinedBehaviorSanitizer"
  cmake --workflow --preset asan
  ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 OMP_WAIT_POLICY=passive \
    UBSAN_OPTIONS=print_stacktrace=1 \
    ctest --test-dir build/asan --output-on-failure --parallel 2 --label-exclude mpi --timeout 7200
  step "ThreadSanitizer"
  cmake --workflow --preset tsan
}

check_cuda() {
  [[ -x /usr/local/cuda/bin/nvcc ]] && export PATH="/usr/local/cuda/bin:$PATH"
  if ! command -v nvcc > /dev/null; then
    echo "cuda: no nvcc here"
    return
  fi
  step "cuda: every architecture, registers kept in memory"
  cmake --preset cuda -B build/cuda_all -D GANTRY_CUDA_ARCHS="80;86-real;89-real;90a-real;100-real;120-real"
  cmake --build build/cuda_all --target gantry_kernels
  tools/check_spills.py --nvcc "$(command -v nvcc)" --jobs "$CMAKE_BUILD_PARALLEL_LEVEL" \
    --arch 80 --arch 86 --arch 89 --arch 90a --arch 100 --arch 120
}

fuzz_all() {
  step "fuzzing: build with clang"
  tools/setup.sh fuzz
  local build=build/fuzz
  CC=clang CXX=clang++ cmake -S . -B "$build" -G Ninja -D CMAKE_BUILD_TYPE=RelWithDebInfo \
    -D GANTRY_BUILD_FUZZERS=ON -D GANTRY_BUILD_BENCH=OFF -D GANTRY_SANITIZE=address,undefined \
    -D GANTRY_WITH_MPI=OFF -D GANTRY_WITH_CUDA=OFF -D GANTRY_WITH_NCCL=OFF
  local source name
  for source in tests/fuzz/*_fuzz.cpp; do
    name="$(basename "$source" .cpp)"
    cmake --build "$build" --target "$name"
    fuzz_one "$build" "$name"
  done
}

# New inputs go to build/fuzz/corpus, so that a later run starts from them; an input that fails is
# left in build/fuzz/findings.
fuzz_one() {
  local build="$1" name="$2"
  step "fuzz $name for $fuzz_seconds s"
  local corpus="$build/corpus/$name" log="$build/$name.log"
  mkdir -p "$corpus" "$build/findings"
  if ! "$build/tests/fuzz/$name" -max_total_time="$fuzz_seconds" -print_final_stats=1 \
      -artifact_prefix="$build/findings/$name-" "$corpus" "tests/fuzz/corpus/$name" 2> "$log"; then
    tail -n 60 "$log" >&2
    echo "fuzz $name: FAILED; the input is in $build/findings" >&2
    return 1
  fi
  echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") executions, no finding"
}

tools/setup.sh
build_cpu
test_each_isa
test_many_trials
test_ranks
test_sanitizers
check_cuda
fuzz_all
step "all passed"
