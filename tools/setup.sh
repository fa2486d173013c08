#!/usr/bin/env bash
# Installs the Debian packages that Gantry is built with, as far as they are missing.
#   tools/setup.sh [lint] [fuzz]     lint: clang-format and clang-tidy;  fuzz: clang with libFuzzer
set -euo pipefail

packages=(g++ cmake ninja-build ccache python3 git pkg-config
          libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev
          libgtest-dev libgmock-dev libbenchmark-dev libxxhash-dev
          libhwloc-dev libopenmpi-dev openmpi-bin)
for group in "$@"; do
  case "$group" in
    lint) packages+=(clang-format-14 clang-tidy-14) ;;
    fuzz) packages+=(clang libclang-rt-14-dev) ;;
    *) echo "setup.sh: expected lint or fuzz, found '$group'" >&2; exit 2 ;;
  esac
done

if ! command -v dpkg-query > /dev/null; then
  echo "setup.sh: no dpkg here, so nothing is installed. Needed: ${packages[*]}" >&2
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  status="$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null || true)"
  [[ "$status" == installed ]] || missing+=("$package")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
if [[ "$(id -u)" -ne 0 ]]; then
  if ! command -v sudo > /dev/null; then
    echo "setup.sh: these packages are missing, and only root can install them: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup.sh: installing ${missing[*]}"
"${as_root[@]}" apt-get update --quiet
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
