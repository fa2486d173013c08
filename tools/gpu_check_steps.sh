# The steps of tools/gpu_check.sh, which sources this: commands with a time each, of which none
# stops the others. With `plan` they are only told, with `dry` they must say that there is no GPU.

plan=""
dry=""
most_seconds="${GANTRY_PART_SECONDS:-390}"
summary=()
failed=0
# Threads for ranks: through the host with 1, 2, 3 and 5, NCCL with 1.
rank_tests='Groups/DeviceCommunicatorTest.*/0:*/1:*/2:*/3:*/4:NcclLibraryTest.ReadsTheRealLibrary'
no_gpu='no CUDA driver|but no GPU|has no CUDA'  # what the programs say

not_run() {
  summary+=("NOT RUN  $1")
  failed=1
}

# seconds_left WANTED: of the part, at most WANTED.
seconds_left() {
  local left=$((most_seconds - SECONDS))
  echo $((left < $1 ? left : $1))
}

# step NAME SECONDS COMMAND...: passes if the command does, in time.
step() {
  local name="$1" seconds="$2" begin="$SECONDS"
  shift 2
  if [[ -n "$plan" ]]; then
    printf '  %-40s %4d s  %s\n' "$name" "$seconds" "$*"
    return
  fi
  [[ -n "$dry" ]] || seconds="$(seconds_left "$seconds")"
  if (( seconds < 5 )); then
    not_run "$name (no time left)"
    return
  fi
  printf '\n==== %s\n' "$name"
  local status=0
  if [[ "$(type -t "$1")" == function ]]; then
    "$@" || status=$?
  elif [[ -n "$dry" ]]; then
    says_no_gpu timeout -k 5 "$seconds" "$@" || status=$?
  else
    timeout -k 5 "$seconds" "$@" || status=$?
  fi
  note "$name" "$status" "$((SECONDS - begin))"
}

note() {  # note NAME STATUS SECONDS
  case "$2" in
    0) summary+=("passed   $1 ($3 s)") ;;
    124|137) summary+=("HUNG     $1 (ended after $3 s)"); failed=1 ;;
    *) summary+=("FAILED   $1 ($3 s, exit $2)"); failed=1 ;;
  esac
}

# Exit 3 and the reason are right for the command, skipped tests for tests.
says_no_gpu() {
  local log status=0
  log="$("$@" 2>&1)" || status=$?
  if grep -qE "$no_gpu" <<< "$log" && { (( status == 3 )) || grep -q '^\[  SKIPPED' <<< "$log"; }; then
    grep -m1 -E "$no_gpu" <<< "$log"
    return 0
  fi
  printf '%s\n' "$log" | tail -20
  echo "gpu_check: expected word that there is no GPU, found exit $status" >&2
  return 1
}

# run_tests SECONDS COMMAND...: 0 if tests ran on the GPU and all passed. That nothing ran is no
# success: a test that is skipped for want of a GPU fails.
run_tests() {
  local seconds="$1" log status=0
  shift
  log="$(mktemp)"
  GANTRY_TEST_DEVICE="$GANTRY_GPU" timeout -k 5 "$seconds" "$@" > "$log" 2>&1 || status=$?
  grep -vE '^\[ +(OK|RUN) |^\[-+\]|^\[=+\]|^$|^Note: ' "$log" | tail -60 || true
  if grep -qE "$no_gpu" "$log"; then
    (( status == 0 )) && status=1
  elif ! grep -q '^\[  PASSED' "$log" && (( status == 0 )); then
    status=1
  fi
  rm -f "$log"
  return "$status"
}

# suites NAME SECONDS PROGRAM FILTER: at most 24 tests of a suite a process, as a kernel that fails
# takes its process' GPU context with it; the tests of a process that fails once more, one by one.
suites() {
  local name="$1" seconds="$2" program="$3" filter="$4" group groups
  if [[ -n "$plan" ]]; then
    printf '  %-40s %4d s  %s\n' "$name" "$seconds" "$program --gtest_filter=$filter"
    return
  fi
  groups="$(groups_of "$program" "$filter")"
  if [[ -z "$groups" ]]; then
    summary+=("FAILED   $name: no test is called $filter")
    failed=1
    return
  fi
  printf '\n==== %s: %d tests in %d processes\n' "$name" "$(tr : '\n' <<< "$groups" | wc -l)" \
    "$(wc -l <<< "$groups")"
  local begin="$SECONDS" end=$((SECONDS + $(seconds_left "$seconds"))) status=0
  if [[ -n "$dry" ]]; then
    skips_all "$program" "$filter" || status=$?
    note "$name" "$status" "$((SECONDS - begin))"
    return
  fi
  local bad=0 passed=0
  for group in $groups; do
    local left=$((end - SECONDS))
    if (( left < 5 )); then
      not_run "$name: from ${group%%:*} on (no time left)"
      return
    fi
    status=0
    run_tests "$((left < 40 ? left : 40))" "$program" --gtest_filter="$group" || status=$?
    if (( status == 0 )); then
      passed=$((passed + 1))
      continue
    fi
    bad=1
    note "$name: ${group%%:*} and on" "$status" "$((SECONDS - begin))"
    one_by_one "$program" "$group" "$end"
  done
  (( bad == 0 )) && note "$name" 0 "$((SECONDS - begin))"
  (( bad == 1 )) && summary+=("           $passed of $(wc -l <<< "$groups") processes of $name passed")
}

# A line for each process: its tests, joined by colons.
groups_of() {  # groups_of PROGRAM FILTER
  "$1" --gtest_list_tests --gtest_filter="$2" | awk '
    /^[^ ].*\.( |$)/ { sub(/ .*/, ""); suite = $0; count = 0; next }
    /^  / { printf "%s%s%s", count++ % 24 ? ":" : (line++ ? "\n" : ""), suite, $1 }
    END { if (line) print "" }'
}

# Without a GPU: tests that need one are skipped for that reason, all others pass.
skips_all() {  # skips_all PROGRAM FILTER
  local log status=0
  log="$(GANTRY_TEST_DEVICE="$GANTRY_GPU" timeout 120 "$1" --gtest_filter="$2" 2>&1)" || status=$?
  local skipped reasons
  skipped="$(grep -c '^\[  SKIPPED .*ms)$' <<< "$log" || true)"
  reasons="$(grep -cE "$no_gpu" <<< "$log" || true)"
  echo "$(grep -c '^\[       OK' <<< "$log" || true) passed, $skipped skipped: $(grep -m1 -E "$no_gpu" <<< "$log")"
  (( status == 0 && skipped > 0 && reasons >= skipped ))
}

one_by_one() {  # one_by_one PROGRAM TESTS END
  local test
  for test in ${2//:/ }; do
    local status=0 begin="$SECONDS" left=$(($3 - SECONDS))
    if (( left < 3 )); then
      summary+=("           the others of these were not run one by one (no time left)")
      return
    fi
    run_tests "$((left < 15 ? left : 15))" "$1" --gtest_filter="$test" || status=$?
    (( status == 0 )) || note "  $test" "$status" "$((SECONDS - begin))"
  done
}

sanitized() {  # sanitized NAME SECONDS SANITIZER TOOL PROGRAM FILTER
  local name="$1" seconds="$2" sanitizer="$3" tool="$4" program="$5" filter="$6"
  if [[ -n "$plan$dry" ]]; then
    suites "$name" "$seconds" "$program" "$filter"
    return
  fi
  seconds="$(seconds_left "$seconds")"
  (( seconds >= 20 )) || { not_run "$name (no time left)"; return; }
  local status=0 begin="$SECONDS"
  printf '\n==== %s\n' "$name"
  run_tests "$seconds" "$sanitizer" --tool "$tool" --error-exitcode 1 "$program" \
    "--gtest_filter=$filter" || status=$?
  note "$name" "$status" "$((SECONDS - begin))"
}

# profiled NAME SECONDS NCU COMMAND...: times and rates of the kernels of a layer; clocks are left
# alone. Its absence is no failure.
profiled() {
  local name="$1" seconds="$2" ncu="$3"
  shift 3
  if [[ -n "$plan$dry" ]]; then
    step "$name" "$seconds" "$@"
    return
  fi
  if [[ ! -x "$ncu" ]]; then
    summary+=("not run  $name: no ncu here")
    return
  fi
  local metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics+=,launch__registers_per_thread,launch__occupancy_limit_registers
  step "$name" "$seconds" "$ncu" --clock-control none --print-summary per-kernel --metrics "$metrics" \
    --kernel-name-base demangled \
    --kernel-name 'regex:Gemm|GatherExpertRows|QuantizeExpertRows|CombineRows|Plan|Choices|Counts' \
    --launch-count 20 "$@"
}

# The path of a shared library: installed, CUDA's, or in a Python wheel; empty where there is none.
find_library() {
  ldconfig -p 2>/dev/null | awk '{ print $NF }' | grep -E "/${1//./\\.}$" | head -1 && return
  compgen -G "/usr/local/cuda/lib64/$1" | head -1 && return
  local site
  site="$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null)" || return 0
  find "$site/nvidia" -name "$1" 2>/dev/null | head -1
}

facts() {
  nvidia-smi 2>&1 || echo "no nvidia-smi"
  uname -a
  nproc
  free -g | head -2
  command -v nvcc compute-sanitizer ncu mpirun || true
  "$gantry" info 2>&1 | head -40 || true
}
