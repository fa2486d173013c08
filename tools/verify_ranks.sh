#!/usr/bin/env bash
# Verifies every checkpoint with a reference (moe_io.safetensors beside it) under folders on many
# layouts of ranks, with both exchanges and both orders of sums, in f32: one line a checkpoint.
#   tools/verify_ranks.sh [FOLDER...]      default: the goldens of the source tree
#   GANTRY=build/cpu/tools/gantry          the command
# Exit code 1 if one of them fails; checkpoints that gantry cannot read are listed as such.
set -uo pipefail
root="$(dirname "${BASH_SOURCE[0]}")/.."
gantry="${GANTRY:-$root/build/cpu/tools/gantry}"
if [ $# -eq 0 ]; then
  set -- "$root"/tests/golden/families "$root"/tests/golden/quant "$root"/tests/golden/gguf
fi

passed=0 failed=0
for folder in "$@"; do
  for reference in "$folder"/*/moe_io.safetensors; do
    [ -e "$reference" ] || continue
    directory="$(dirname "$reference")"
    line="$("$gantry" verify "$directory" --reference "$reference" --activations f32 --matrix \
      --quiet --no-progress 2>&1)"
    if [ $? -eq 0 ]; then
      passed=$((passed + 1))
      line="$(grep '^matrix' <<<"$line")"
    else
      failed=$((failed + 1))
      line="FAILED: $(tr '\n' ' ' <<<"$line")"
    fi
    printf '%-44s %s\n' "$(basename "$directory")" "$line"
  done
done
echo "$passed checkpoints pass, $failed fail"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
