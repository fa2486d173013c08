#!/usr/bin/env python3
"""Writes what MoE blocks compute whose static input scales of up differ from those of gate.

usage: dump_up_scales.py REF.py CHECKPOINTS OUT.safetensors NAME...
REF.py is the script that made the references of the quantized goldens (its dequantizers, activation
quantizers and block; torch 2.13, compressed-tensors 0.20, ModelOpt 0.47). The up scale of expert e is
multiplied by FACTORS[e]. Tensors: "NAME.up_scales" [E] f32, as stored in the edited checkpoint, and
"NAME.output_act_quant" [T, H] f32.
"""
import importlib.util
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

FACTORS = [0.5, 1.0, 1.75, 3.0]  # one expert keeps its scale


def load_module(path):
    spec = importlib.util.spec_from_file_location("ref", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edited(ref, directory):
    """The block's input and output, and the new scales of up by the names of their tensors."""
    config = json.loads((directory / "config.json").read_text())
    quantization = config["quantization_config"]
    tensors = ref.load_dir(directory)
    block = next(k for k in tensors if k.endswith(".gate.weight"))[: -len(".gate.weight")]
    weights, prescales, quantizers, scales = [], [], [], {}
    for expert, factor in enumerate(FACTORS):
        for kind in (weights, prescales, quantizers):
            kind.append({})
        for part, spellings in ref.NAMES.items():
            prefix = next(f"{block}.experts.{expert}.{s}." for s in spellings
                          if any(k.startswith(f"{block}.experts.{expert}.{s}.") for k in tensors))
            own = {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
            if part == "up":
                name = next(k for k in ("input_scale", "input_global_scale") if k in own)
                own[name] = own[name].float() * factor
                scales[prefix + name] = own[name]
            weight, _, _, quantizer, prescale = ref.deq(own, quantization, prefix[:-1])
            weights[expert][part] = weight.contiguous()
            prescales[expert][part] = prescale
            quantizers[expert][part] = quantizer
    io = load_file(directory / "moe_io.safetensors")
    x = io[block + ".input"]
    output = ref.block(x, tensors[block + ".gate.weight"], weights, prescales, quantizers)
    assert not torch.equal(output, io[block + ".output_act_quant"])
    return block, output.contiguous(), scales


def main():
    ref = load_module(sys.argv[1])
    result = {}
    for name in sys.argv[4:]:
        _, output, scales = edited(ref, pathlib.Path(sys.argv[2]) / name)
        result[name + ".output_act_quant"] = output
        result[name + ".up_scales"] = torch.stack([s.reshape(()) for s in scales.values()])
    save_file(result, sys.argv[3])


if __name__ == "__main__":
    main()
