#!/usr/bin/env bash
# Runs clang-tidy over our .cpp files, as build/cpu compiles them.
#   tools/lint.sh [FILE.cpp ...]     default: every .cpp of kernels parallel loader runtime tools
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

clang_tidy="$(command -v clang-tidy-14 || command -v clang-tidy || true)"
if [[ -z "$clang_tidy" ]]; then
  echo "lint.sh: no clang-tidy; tools/setup.sh lint installs it" >&2
  exit 1
fi
[[ -f build/cpu/compile_commands.json ]] || cmake --preset cpu

files=("$@")
if [[ ${#files[@]} -eq 0 ]]; then
  mapfile -t files < <(git ls-files --cached --others --exclude-standard \
                         {kernels,parallel,loader,runtime,tools}/'*.cpp' | sort --unique)
fi
printf '%s\0' "${files[@]}" |
  xargs --null --max-args=1 --max-procs="$(nproc)" "$clang_tidy" --quiet -p build/cpu
