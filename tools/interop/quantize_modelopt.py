"""ModelOpt's tensors dequantize what `gantry quantize` writes to the weights that Gantry computes with.

usage: quantize_modelopt.py GANTRY GOLDEN_ROOT
"""
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
try:
    import modelopt
    import torch
    import transformers
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
    from moe_block import check_formats
except ImportError as error:
    print(f"needs torch, transformers and nvidia-modelopt: {error}")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FORMATS = {"fp8-tensor": 1e-5, "nvfp4": 1e-5, "nvfp4-a16": 1e-5}


def dequantize(config, tensors):
    weight, scale = tensors["weight"], tensors["weight_scale"]
    if config["quant_algo"] == "FP8":
        return FP8QTensor(weight.shape, torch.float32, weight).dequantize(torch.float32, scale=scale.reshape(1), block_sizes={})
    shape = torch.Size((weight.shape[0], weight.shape[1] * 2))
    return NVFP4QTensor(shape, torch.float32, weight).dequantize(
        torch.float32, scale=scale, double_scale=tensors["weight_scale_2"], block_sizes={-1: 16})


print(f"modelopt {modelopt.__version__}")
with tempfile.TemporaryDirectory() as temp:
    sys.exit(check_formats(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(temp), FORMATS, dequantize, "dequantized"))
