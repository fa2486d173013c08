"""compressed-tensors decompresses what `gantry quantize` writes to the weights that Gantry computes with.

usage: quantize_compressed_tensors.py GANTRY GOLDEN_ROOT
"""
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
try:
    import compressed_tensors
    import torch
    import transformers
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from moe_block import check_formats
except ImportError as error:
    print(f"needs torch, transformers and compressed-tensors: {error}")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SCALES = ("weight_scale", "weight_global_scale")
# Sums in float32 differ by their order; NVFP4 is decompressed to bf16.
FORMATS = {"fp8-channel": 1e-5, "fp8-static": 1e-5, "int8": 1e-5, "int8-g128": 1e-5, "int4-g128": 1e-5, "int4-g32": 1e-5,
           "int4-asym": 1e-5, "mxfp4": 1e-5, "mxfp4-a16": 1e-5, "mxfp8": 1e-5, "nvfp4-ct": 1e-2, "nvfp4-ct-a16": 1e-2}


def dequantize(config, tensors):
    group = config["config_groups"]["group_0"]
    scheme = QuantizationScheme(**group)
    # In float32 where the file has bf16: the same numbers, without a rounding of the products.
    given = {name: tensor.float() if name in SCALES and tensor.dtype == torch.bfloat16 else tensor
             for name, tensor in tensors.items() if not name.startswith("input_")}
    return BaseCompressor.get_value_from_registry(config["format"]).decompress(given, scheme)["weight"]


print(f"compressed-tensors {compressed_tensors.__version__}")
with tempfile.TemporaryDirectory() as temp:
    sys.exit(check_formats(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(temp), FORMATS, dequantize, "decompressed"))
