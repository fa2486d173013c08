#!/usr/bin/env python3
"""Dumps blocks of each ggml type with their values, for tests of the decoders.

usage: dump_ggml_blocks.py OUT.safetensors
For each type T: "T.blocks" u8 [n, block bytes], random bytes whose f16 scales are of ordinary size,
the first block all zeros, the second all ones (0xff) but for its scales; and "T.values" f32 [n, block
elements], what the `gguf` package (0.19.0, ggml's own) dequantizes them to. Needs gguf and numpy.
"""
import json
import struct
import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

SEED = 20
BLOCKS = 12
# Where the f16 numbers of a block stand.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0],
          "IQ4_XS": [0], "MXFP4": []}


def blocks_of(name, rng):
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    blocks = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    blocks[0], blocks[1] = 0, 255
    for at in HALVES[name]:
        halves = (rng.standard_normal(BLOCKS) * 10.0 ** rng.integers(-4, 2, BLOCKS)).astype("<f2")
        halves[2] = 6e-8  # the smallest subnormal
        blocks[:, at:at + 2] = halves.view(np.uint8).reshape(BLOCKS, 2)
    if name == "MXFP4":  # small exponents are subnormal or zero, 255 is an ordinary number in ggml
        blocks[:, 0] = [0, 1, 2, 3, 127, 128, 120, 134, 254, 255, 100, 118]
    return blocks


def main():
    rng = np.random.default_rng(SEED)
    tensors = {}
    for name in HALVES:
        kind = GGMLQuantizationType[name]
        blocks = blocks_of(name, rng)
        with np.errstate(all="ignore"):
            values = dequantize(blocks, kind).astype("<f4")
        tensors[f"{name.lower()}.blocks"] = ("U8", blocks)
        tensors[f"{name.lower()}.values"] = ("F32", values)
    header, offset = {"__metadata__": {"source": f"gguf 0.19.0, seed {SEED}"}}, 0
    order = sorted(tensors, key=lambda name: (tensors[name][0], name))  # f32 first: aligned
    for name in order:
        dtype, array = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(sys.argv[1], "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name][1]).tobytes())


if __name__ == "__main__":
    main()
