"""compressed-tensors decompresses `gantry unfuse` of gpt-oss' MXFP4 to the weights that Transformers reads in the blocks.

usage: unfuse_mxfp4.py GANTRY GOLDEN_ROOT
"""
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
try:
    import compressed_tensors
    import torch
    import transformers
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from moe_block import BLOCK, expert_tensors, quantization_config
    from safetensors.torch import load_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
except ImportError as error:
    print(f"needs torch, transformers and compressed-tensors: {error}")
    sys.exit(77)


def main(gantry, golden):
    source = pathlib.Path(golden) / "quant" / "gpt_oss-mxfp4"
    stacked = load_file(source / "model.safetensors")
    expected = {}
    for part in ("gate_up_proj", "down_proj"):  # [experts, in, out]
        weights = convert_moe_packed_tensors(stacked[f"{BLOCK}.experts.{part}_blocks"],
                                             stacked[f"{BLOCK}.experts.{part}_scales"], dtype=torch.float32)
        for expert, weight in enumerate(weights):
            rows = weight.T
            names = {"gate_proj": rows[::2], "up_proj": rows[1::2]} if part == "gate_up_proj" else {"down_proj": rows}
            expected.update({(expert, name): matrix for name, matrix in names.items()})
    with tempfile.TemporaryDirectory() as temp:
        out = pathlib.Path(temp) / "out"
        subprocess.run([gantry, "unfuse", source, out, "-q", "--no-progress"], check=True, capture_output=True)
        config = quantization_config(out)
        scheme = QuantizationScheme(**config["config_groups"]["group_0"])
        compressor = BaseCompressor.get_value_from_registry(config["format"])
        equal = 0
        for place, tensors in expert_tensors(load_file(out / "model.safetensors")).items():
            given = {name: tensor for name, tensor in tensors.items() if name != "bias"}
            found = compressor.decompress(given, scheme)["weight"]
            equal += torch.equal(found.float(), expected[place])
    print(f"transformers {transformers.__version__}, compressed-tensors {compressed_tensors.__version__}: "
          f"{equal} of {len(expected)} matrices equal in every bit")
    return 0 if equal == len(expected) else 1


sys.exit(main(*sys.argv[1:3]))
