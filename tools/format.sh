#!/usr/bin/env bash
# Formats our C++ files in place; with --check it only names those that are not formatted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Other versions format differently, so 14 is the one that counts.
clang_format="$(command -v clang-format-14 || command -v clang-format || true)"
if [[ -z "$clang_format" ]]; then
  echo "format.sh: no clang-format; tools/setup.sh lint installs it" >&2
  exit 1
fi

mapfile -t files < <(git ls-files --cached --others --exclude-standard \
                       '*.h' '*.cpp' '*.cuh' '*.cu' | sort --unique)
existing=()
for file in "${files[@]}"; do
  [[ ! -f "$file" ]] || existing+=("$file")
done
case "${1:-}" in
  --check) "$clang_format" --dry-run --Werror "${existing[@]}" ;;
  "") "$clang_format" -i "${existing[@]}" ;;
  *) echo "format.sh: expected --check or nothing, found '$1'" >&2; exit 2 ;;
esac
