"""GPTQModel's own loader, on a CPU, reads the GPTQ and AWQ exports: its MoE block gives what Gantry gives.

usage: quantize_gptqmodel.py GANTRY GOLDEN_ROOT
"""
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
try:
    import gptqmodel
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from moe_block import BLOCK, quantize, verify
    from safetensors.torch import save_file
except ImportError as error:
    print(f"needs torch and gptqmodel: {error}")
    sys.exit(77)

# Format, method's options, kernel. Scales are widened to float32 after loading: the kernels then multiply without a
# further rounding, and sums differ by their order alone.
CASES = {
    "gptq": ("gptq", [], BACKEND.GPTQ_TORCH),
    "gptq-asym": ("gptq-asym", [], BACKEND.GPTQ_TORCH),
    "gptq-int8": ("gptq-int8", [], BACKEND.GPTQ_TORCH),
    "gptq desc-act": ("gptq", ["--method", "gptq", "--desc-act"], BACKEND.GPTQ_TORCH),
    "awq": ("awq", [], BACKEND.AWQ_TORCH),
    "awq searched": ("awq", ["--method", "awq"], BACKEND.AWQ_TORCH),
}
TOLERANCE = 1e-5
# AwqTorchLinear rounds its weights to float16 before it multiplies.
AWQ_TOLERANCE = 1e-3


def calibrate(gantry, source, temp):
    generator = torch.Generator().manual_seed(5)
    sizes = torch.exp(torch.randn(256, generator=generator))
    captures = temp / "captures.safetensors"
    save_file({f"{BLOCK}.input": torch.randn(1024, 256, generator=generator) * sizes}, captures)
    subprocess.run([gantry, "calibrate", source, "--activations", captures, "-o", temp / "stats", "--route-all",
                    "--hessians", "-q", "--no-progress"], check=True, capture_output=True)
    return temp / "stats"


def run_block(directory, backend):
    """Input and output of GPTQModel's block in float32, and its matrices' kernels."""
    model = GPTQModel.load(str(directory), device="cpu", backend=backend, dtype=torch.float16).model
    layers = [module for module in model.modules() if hasattr(module, "qweight")]
    assert len(layers) == 12, f"{directory}: {len(layers)} quantized matrices"
    block = model.model.layers[0].mlp.float()
    for layer in layers:
        layer.scales = layer.scales.float()
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(1, 24, model.config.hidden_size, generator=generator).bfloat16().float()
    with torch.no_grad():
        output = block(hidden)
    output = output[0] if isinstance(output, tuple) else output
    return hidden, output, {type(layer).__name__ for layer in layers}


print(f"gptqmodel {gptqmodel.__version__}")
failures = 0
with tempfile.TemporaryDirectory() as temp_name:
    temp = pathlib.Path(temp_name)
    gantry, source = sys.argv[1], pathlib.Path(sys.argv[2]) / "sources" / "qwen3_moe"
    stats = calibrate(gantry, source, temp)
    for case, (fmt, options, backend) in CASES.items():
        out = temp / case.replace(" ", "-")
        quantize(gantry, source, out, fmt, *options, *(["--stats", stats] if options else []))
        hidden, output, kernels = run_block(out, backend)
        reference = temp / f"{out.name}.safetensors"
        size = hidden.shape[-1]
        save_file({f"{BLOCK}.input": hidden.reshape(-1, size).contiguous(),
                   f"{BLOCK}.output": output.float().reshape(-1, size).contiguous()}, reference)
        tolerance = AWQ_TOLERANCE if fmt == "awq" else TOLERANCE
        ok, error = verify(gantry, out, reference, tolerance)
        print(f"{case:14s} loaded ({', '.join(sorted(kernels))}): relative difference {error} "
              f"{'<=' if ok else 'FAILED, limit'} {tolerance}", flush=True)
        failures += not ok
sys.exit(1 if failures else 0)
