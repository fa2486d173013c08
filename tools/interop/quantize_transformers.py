"""Transformers loads block-FP8 and MXFP4 exports of `gantry quantize`, dequantizes them and computes the same block.

usage: quantize_transformers.py GANTRY GOLDEN_ROOT
"""
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
try:
    import torch
    import transformers
    from moe_block import BLOCK, quantize, verify
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"needs torch and transformers: {error}")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
GANTRY, GOLDEN = sys.argv[1], pathlib.Path(sys.argv[2])


def block_io(directory, path):
    """Loads the model as Transformers does (dequantized on a CPU), runs layer 0's block, writes input and output."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, output_loading_info=True)
    problems = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)}
    block = model.eval().model.layers[0].mlp.float()
    size = model.config.hidden_size
    hidden = torch.randn(1, 24, size, generator=torch.Generator().manual_seed(3)).bfloat16().float()
    with torch.no_grad():
        output = block(hidden)
    output = output[0] if isinstance(output, tuple) else output
    save_file({f"{BLOCK}.input": hidden.reshape(-1, size).contiguous(),
               f"{BLOCK}.output": output.reshape(-1, size).contiguous()}, path)
    return problems


def main():
    failures = 0
    # Dequantized to bf16: two roundings of 2^-9 in a block of two products.
    for fmt, source in (("fp8-block", GOLDEN / "sources" / "qwen3_moe"), ("mxfp4", GOLDEN / "quant" / "gpt_oss-mxfp4")):
        with tempfile.TemporaryDirectory() as temp:
            out, reference = pathlib.Path(temp) / "out", pathlib.Path(temp) / "reference.safetensors"
            quantize(GANTRY, source, out, fmt)
            problems = block_io(out, reference)
            ok, error = verify(GANTRY, out, reference, 1e-2)
            ok = ok and not problems
            print(f"{fmt:10s} of {source.name}: relative difference {error}, {problems or 'every tensor read'}"
                  f"{'' if ok else ': FAILED'}")
            failures += not ok
    return 1 if failures else 0


print(f"transformers {transformers.__version__}")
sys.exit(main())
