#!/usr/bin/env python3
"""Cuts expert 0 out of quantized checkpoints, for tests of the encodings.

usage: dump_encodings.py GOLDEN_QUANT_DIR OUT_DIR
Each directory of GOLDEN_QUANT_DIR is a tiny checkpoint by a real exporter, with a moe_io.safetensors
that holds the first 16 rows of expert 0's matrices as its format defines them in float32
("BLOCK.experts.0.gate.rows16"). Writes OUT_DIR/<name>.safetensors: "gate.<suffix>", "up.<suffix>",
"down.<suffix>" as exported, "gate.rows16" ..., and the quantization_config as metadata. Needs only
Python. Fused tensors are cut; GGUF files are left out.
"""
import json
import re
import struct
import sys
from pathlib import Path

PROJECTIONS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down",
               "w1": "gate", "w3": "up", "w2": "down"}
PER_EXPERT = re.compile(r"\.experts\.0\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.(.+)$")
FUSED = re.compile(r"\.experts\.(gate_up_proj|down_proj)(?:_(.+))?$")
# What the suffixes of fused tensors are called where there is one tensor an expert.
FUSED_SUFFIX = {None: "weight", "scale_inv": "weight_scale_inv", "blocks": "blocks",
                "scales": "scales"}


def read(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"],
                   data[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]])
            for name, entry in header.items()}


def write(path, tensors, metadata):
    header, offset, order = {"__metadata__": metadata}, 0, sorted(
        tensors, key=lambda n: (-{"F32": 4, "I32": 4, "I64": 8, "F16": 2, "BF16": 2}.get(
            tensors[n][0], 1), n))
    for name in order:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[n][2] for n in order))


def expert0_of_fused(name, tensor, interleaved):
    """Yields (projection, suffix, tensor) for expert 0 of a stacked tensor [E, rows, ...]."""
    which, suffix = FUSED.search(name).groups()
    if suffix not in FUSED_SUFFIX:
        return
    dtype, shape, data = tensor
    one = len(data) // shape[0]
    rows, row_bytes = shape[1], one // shape[1]
    lines = [data[r * row_bytes:(r + 1) * row_bytes] for r in range(rows)]
    halves = ({"down": lines} if which == "down_proj" else
              {"gate": lines[0::2], "up": lines[1::2]} if interleaved else
              {"gate": lines[:rows // 2], "up": lines[rows // 2:]})
    for projection, part in halves.items():
        yield projection, FUSED_SUFFIX[suffix], (dtype, [len(part)] + shape[2:], b"".join(part))


def cut(source, target):
    config = json.loads((source / "config.json").read_text())
    quant = config.get("quantization_config") or config.get("text_config", {}).get(
        "quantization_config")
    out = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in read(file).items():
            if file.name == "moe_io.safetensors":
                found = re.search(r"\.experts\.0\.(gate|up|down)\.rows16$", name)
                if found:
                    out[f"{found[1]}.rows16"] = tensor
            elif (found := PER_EXPERT.search(name)):
                out[f"{PROJECTIONS[found[1]]}.{found[2]}"] = tensor
            elif FUSED.search(name):
                for projection, suffix, part in expert0_of_fused(name, tensor,
                                                                 config["model_type"] == "gpt_oss"):
                    out[f"{projection}.{suffix}"] = part
    if "gate.rows16" not in out or quant is None:
        return False
    write(target, out, {"quantization_config": json.dumps({"quantization_config": quant})})
    return True


def main():
    golden, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(p for p in golden.iterdir() if (p / "config.json").exists()):
        done = cut(source, target / f"{source.name}.safetensors")
        print(source.name if done else f"left out: {source.name}")


if __name__ == "__main__":
    main()
