#!/usr/bin/env bash
# GPTQ and AWQ against round-to-nearest on one layer of a real model's shape, through the command
# alone: a layer of random weights, hidden states with heavy tails and outlier channels, calibration
# with every token sent to every expert, the same format by each method, and each expert's output on
# tokens that calibration did not see. Times and peak memory are printed on the way.
#   tools/quantize_quality.sh WORK [FORMAT ...]      default: int4-g128
#   SHAPE=qwen3-30b-a3b HIDDEN=2048 TOKENS=2048 MEMORY=4G SEED=1
#   PYTHON=python3           with numpy and safetensors
#   BUILD=build/cpu          with GANTRY_BUILD_BENCH
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# == 0)); then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
work="$1"
shift
formats=("${@:-int4-g128}")
shape="${SHAPE:-qwen3-30b-a3b}"
hidden="${HIDDEN:-2048}"
seed="${SEED:-1}"
python="${PYTHON:-python3}"
build="${BUILD:-build/cpu}"
gantry="$build/tools/gantry"
mkdir -p "$work"

if [[ ! -d "$work/source" ]]; then
  "$gantry" synth "$work/source" --shape "$shape" --layers 1 --seed "$seed"
  # The norm in front of the block: synth writes MoE layers alone.
  "$python" - "$work/source" "$hidden" <<'NORM'
import json, pathlib, sys
import numpy as np
from safetensors.numpy import save_file
directory, hidden = pathlib.Path(sys.argv[1]), int(sys.argv[2])
name = "model.layers.0.post_attention_layernorm.weight"
save_file({name: np.ones(hidden, np.float32)}, directory / "norm.safetensors")
index = directory / "model.safetensors.index.json"
content = json.loads(index.read_text())
content["weight_map"][name] = "norm.safetensors"
content["metadata"]["total_size"] += 4 * hidden
index.write_text(json.dumps(content))
NORM
fi
if [[ ! -f "$work/held_out.safetensors" ]]; then
  "$python" tools/make_activations.py "$work/tokens.safetensors" --hidden-size "$hidden" \
    --tokens "${TOKENS:-2048}" --held-out "$work/held_out.safetensors" --held-out-tokens 512 --seed "$seed"
fi
if [[ ! -d "$work/stats" ]]; then
  "$gantry" calibrate "$work/source" --activations "$work/tokens.safetensors" -o "$work/stats" \
    --route-all --hessians --memory "${MEMORY:-4G}" --no-progress
fi
for format in "${formats[@]}"; do
  for method in rtn gptq awq; do
    [[ -d "$work/$format-$method" ]] || "$gantry" quantize "$work/source" "$work/$format-$method" --format "$format" \
      --method "$method" --stats "$work/stats" --memory "${MEMORY:-4G}" --no-progress
  done
  "$build/bench/expert_error_bench" "$work/source" "$work/held_out.safetensors" \
    "$work/$format-"{rtn,gptq,awq} >"$work/$format.jsonl"
  grep '^layer' "$work/$format.jsonl"
done
