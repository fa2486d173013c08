#!/usr/bin/env python3
"""Writes rows and what PyTorch makes of them when it quantizes and dequantizes them.

usage: dump_row_quantization.py OUT.safetensors   (torch 2.13, safetensors; seed 0)
Tensors: "x" [R, 256] f32, and one [R, 256] f32 for each quantization of activations. The formulas are
those of kernels/quant/quantize_rows.h, written with torch's own casts (float8_e4m3fn), search over
the code values (e2m1), torch.round and float64 logarithms.
"""
import sys

import torch
from safetensors.torch import save_file

STATIC_FP8, STATIC_INT8, STATIC_NVFP4 = 0.0113525390625, 0.03857421875, 544.25


def e4m3(x):
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def e2m1(x):
    """The nearest value; between two equally near ones that with the even mantissa bit (its code)."""
    values = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    distance = (x.abs().clamp(max=6).double().unsqueeze(-1) - values).abs()
    best = distance.min(-1, keepdim=True).values
    candidates = distance == best
    even = candidates & (torch.arange(8) % 2 == 0)
    pick = torch.where(even.any(-1, keepdim=True), even, candidates)
    return torch.copysign(values[pick.int().argmax(-1)].float(), x)


def groups(x, size):
    y = x.unflatten(-1, (-1, size))
    return y, y.abs().amax(-1, keepdim=True)


def power_of_two(exponent):
    return torch.exp2(exponent.clamp(-127, 127)).float()


def quantize(x):
    amax = x.abs().amax(-1, keepdim=True)
    s = STATIC_FP8
    yield "fp8_static", e4m3(x / s) * s
    s = (amax / 448).clamp(min=1 / (448 * 512))
    yield "fp8_token", e4m3(x / s) * s
    for name, size, ue8m0 in (("fp8_group", 128, False), ("fp8_group_48", 48, False),
                              ("fp8_group_pow2", 128, True)):
        padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % size))
        y, a = groups(padded, size)
        s = a.clamp(min=1e-10) / 448
        if ue8m0:
            s = power_of_two(torch.ceil(torch.log2(s.double())))
        yield name, (e4m3(y / s) * s).flatten(-2)[:, :x.shape[-1]]
    s = STATIC_INT8
    yield "int8_static", (x / s).round().clamp(-128, 127) * s
    s = amax / 127
    yield "int8_token", torch.where(s > 0, (x / s).round().clamp(-128, 127) * s, torch.zeros(()))
    y, a = groups(x, 32)
    s = power_of_two(torch.ceil(torch.log2((a.clamp(min=torch.finfo(torch.float32).tiny) / 448)
                                           .double())))
    yield "mxfp8", (e4m3(y / s) * s).flatten(-2)
    # Largest magnitude with one mantissa bit, ties up; then its exponent.
    exponent = torch.floor(torch.log2(a.double()))
    exponent = torch.where(a.double() >= 1.75 * torch.exp2(exponent), exponent + 1, exponent)
    s = power_of_two(exponent - 2)
    yield "mxfp4", (e2m1(y / s) * s).flatten(-2)
    for name, g in (("nvfp4_static", torch.tensor(STATIC_NVFP4)),
                    ("nvfp4_token", (torch.tensor(448.0 * 6) / amax).unsqueeze(-1))):
        y, a = groups(x, 16)
        g = torch.where(torch.isfinite(g), g, torch.ones(()))
        s = e4m3(g * (a * (1 / 6)))
        inverse = torch.where(s == 0, torch.zeros(()), g / s)
        yield name, (e2m1(y * inverse) * s / g).flatten(-2)


def rows():
    torch.manual_seed(0)
    n = 256
    yield torch.randn(n)
    yield torch.randn(n) * 37
    yield torch.randn(n).to(torch.bfloat16).float()
    yield torch.randn(n) ** 5                       # a few values far above the rest
    yield torch.zeros(n)
    yield torch.cat([torch.zeros(n - 1), torch.tensor([-3.0])])
    yield torch.randn(n) * 1e-9
    yield torch.randn(n) * 1e-41                    # subnormal
    yield torch.randn(n) * 1e30
    yield torch.arange(n) / 8 - 16                  # ties of the integers and of e2m1
    yield torch.arange(n) % 32 / 4.0 - 3.875        # groups whose largest magnitude is 3.875
    yield torch.arange(n) % 32 / 4.0 - 3.5          # 4.25
    yield torch.arange(n) % 29 / 4.0 - 3.5          # 3.5: the tie of mxfp4's exponent
    yield torch.where(torch.arange(n) % 32 == 0, 448.0, torch.randn(n) * 20)
    yield torch.where(torch.arange(n) % 32 == 0, torch.tensor(448.0).nextafter(torch.tensor(1e9)),
                      torch.randn(n) * 20)
    yield torch.full((n,), -1.0)
    yield torch.exp2(torch.arange(n) % 24 - 14.0) * torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)


def main():
    x = torch.stack(list(rows()))
    tensors = {"x": x} | {name: y.contiguous().float() for name, y in quantize(x)}
    save_file(tensors, sys.argv[1], {"torch": torch.__version__, "seed": "0",
                                     "fp8_static": str(STATIC_FP8),
                                     "int8_static": str(STATIC_INT8),
                                     "nvfp4_static": str(STATIC_NVFP4)})


if __name__ == "__main__":
    main()
