#!/usr/bin/env bash
# Checks against other projects' software that what Gantry writes is what they read. Every check is
# a Python file in tools/interop/, called with the gantry program and tests/golden; one whose
# packages are missing exits with 77 and counts as skipped.
#   PYTHON=python3                       the interpreter that has the packages
#   GANTRY=build/cpu/tools/gantry
#   tools/interop.sh [NAME ...]          only these checks
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
gantry="${GANTRY:-build/cpu/tools/gantry}"
if [[ ! -x "$gantry" ]]; then
  echo "interop.sh: $gantry is not there: build it, or name it in GANTRY" >&2
  exit 2
fi

failed=0
skipped=0
passed=0
for check in tools/interop/*.py; do
  name="$(basename "$check" .py)"
  if (($# > 0)) && [[ " $* " != *" $name "* ]]; then continue; fi
  echo "==== $name"
  "$python" "$check" "$gantry" tests/golden
  case $? in
    0) passed=$((passed + 1)) ;;
    77) skipped=$((skipped + 1)); echo "skipped: $name" ;;
    *) failed=$((failed + 1)); echo "FAILED: $name" ;;
  esac
done
echo "interop: $passed passed, $failed failed, $skipped skipped"
exit "$((failed > 0))"
