"""What the checks of `gantry quantize` share: exports, and a MoE block in Transformers over given weights."""
import json
import pathlib
import subprocess

import torch
from safetensors.torch import load_file, save_file

BLOCK = "model.layers.0.mlp"
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def quantize(gantry, source, out, fmt, *options):
    subprocess.run([gantry, "quantize", source, out, "--format", fmt, "-q", "--no-progress", *options],
                   check=True, capture_output=True)


def read(directory):
    """All tensors of a checkpoint, by name."""
    tensors = {}
    for file in sorted(pathlib.Path(directory).glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def quantization_config(directory):
    return json.loads((pathlib.Path(directory) / "config.json").read_text())["quantization_config"]


def expert_tensors(tensors):
    """{(expert, projection): {suffix: tensor}} of layer 0."""
    found = {}
    for name, tensor in tensors.items():
        if not name.startswith(f"{BLOCK}.experts."):
            continue
        expert, projection, suffix = name[len(BLOCK) + 9:].split(".", 2)
        found.setdefault((int(expert), projection), {})[suffix] = tensor
    return found


def write_reference(source, weights, path):
    """Runs Transformers' own block in float32 with these expert matrices [out, in]; writes its input and output."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    block = model.model.layers[0].mlp
    with torch.no_grad():
        for (expert, projection), weight in weights.items():
            experts = block.experts
            if projection == "down_proj":
                experts.down_proj[expert] = weight
            else:
                half = experts.gate_up_proj.shape[1] // 2
                rows = slice(0, half) if projection == "gate_proj" else slice(half, 2 * half)
                experts.gate_up_proj[expert, rows] = weight
        generator = torch.Generator().manual_seed(3)
        hidden = torch.randn(1, 24, model.config.hidden_size, generator=generator).bfloat16().float()
        output = block(hidden)
    output = output[0] if isinstance(output, tuple) else output
    size = hidden.shape[-1]
    save_file({f"{BLOCK}.input": hidden.reshape(-1, size).contiguous(),
               f"{BLOCK}.output": output.reshape(-1, size).contiguous()}, path)


def verify(gantry, directory, reference, tolerance):
    """`gantry verify`'s relative error, and whether it is satisfied."""
    run = subprocess.run([gantry, "verify", directory, "--reference", reference, "--activations", "f32", "--tolerance",
                          str(tolerance), "--json", "--no-progress"], capture_output=True, text=True)
    errors = [json.loads(line)["rel"] for line in run.stdout.splitlines() if '"event":"block"' in line.replace(" ", "")]
    return run.returncode == 0 and len(errors) == 1, errors[0] if errors else run.stdout + run.stderr


def check_formats(gantry, golden, temp, formats, dequantize, label):
    """Quantizes the source by each format {name: tolerance}, has the consumer dequantize every expert's matrix, and
    compares Gantry's forward over the file with Transformers' over those matrices. Returns the exit code."""
    source = golden / "sources" / "qwen3_moe"
    failures = 0
    for fmt, tolerance in formats.items():
        out = temp / fmt
        quantize(gantry, source, out, fmt)
        config = quantization_config(out)
        weights = {place: dequantize(config, tensors).float() for place, tensors in expert_tensors(read(out)).items()}
        assert len(weights) == 12, f"{fmt}: {len(weights)} matrices"
        reference = temp / f"{fmt}.safetensors"
        write_reference(source, weights, reference)
        ok, error = verify(gantry, out, reference, tolerance)
        print(f"{fmt:14s} {label}: relative difference {error} {'<=' if ok else 'FAILED, limit'} {tolerance}")
        failures += not ok
    return 1 if failures else 0
