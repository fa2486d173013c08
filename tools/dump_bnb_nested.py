#!/usr/bin/env python3
"""Writes small double-quantized bitsandbytes matrices, for tests of the encodings.

usage: dump_bnb_nested.py OUT_DIR      (needs torch and bitsandbytes)
Writes OUT_DIR/bitsandbytes-{nf4,fp4}-nested.safetensors in the form of dump_encodings.py: the tensors
that bitsandbytes saves ("gate.weight", "gate.weight.absmax" ...), its own dequantization in float32
("gate.rows16": the first 16 rows, but all rows of gate), and the quantization_config that
Transformers writes. gate [320, 64] has 320 blocks of 64, so that the scales have two blocks of 256.
"""
import json
import sys
from pathlib import Path

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from dump_encodings import write

DTYPES = {torch.float32: "F32", torch.uint8: "U8"}


def entry(tensor):
    tensor = tensor.contiguous()
    return DTYPES[tensor.dtype], list(tensor.shape), bytes(tensor.view(torch.uint8).flatten().tolist())


def main():
    target = Path(sys.argv[1])
    for kind in ("nf4", "fp4"):
        generator = torch.Generator().manual_seed(0)
        out = {}
        for name, shape in (("gate", (320, 64)), ("up", (320, 64)), ("down", (64, 320))):
            # Rows of different magnitude: with equal ones a wrong scale would go unnoticed.
            size = torch.exp2(torch.randint(-4, 4, (shape[0], 1), generator=generator).float())
            weight = torch.randn(shape, generator=generator) * size
            codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True,
                                         quant_type=kind)
            out[f"{name}.weight"] = entry(codes)
            for suffix, tensor in state.as_dict(packed=True).items():
                out[f"{name}.weight.{suffix}"] = entry(tensor)
            rows = shape[0] if name == "gate" else 16
            out[f"{name}.rows16"] = entry(dequantize_4bit(codes, state).float()[:rows])
        config = {"quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": ["gate", "lm_head"]}}
        write(target / f"bitsandbytes-{kind}-nested.safetensors", out,
              {"quantization_config": json.dumps(config)})


if __name__ == "__main__":
    main()
