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
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor
    from moe_block import check_formats
except ImportError as error:
    print(f"needs torch, transformers and nvidia-modelopt: {error}")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FORMATS = {"fp8-tensor": 1e-5, "nvfp4": 1e-5, "nvfp4-a16": 1e-5, "nvfp4-awq": 1e-5, "int4-awq": 1e-5}


def unpacked_int4(weight, scale):
    """ModelOpt has no way back from its INT4: the codes are those that it packs to the same bytes."""
    codes = torch.stack((weight & 15, weight >> 4), 1).reshape(-1, weight.shape[1]).to(torch.int32)
    values = torch.where(codes > 7, codes - 16, codes) * scale.repeat_interleave(128, 1)
    assert torch.equal(pack_int4_in_uint8(values, scale, 128), weight), "packed otherwise by ModelOpt"
    return values


def dequantize(config, tensors):
    weight, scale = tensors["weight"], tensors["weight_scale"]
    if config["quant_algo"] == "FP8":
        return FP8QTensor(weight.shape, torch.float32, weight).dequantize(torch.float32, scale=scale.reshape(1), block_sizes={})
    factors = tensors.get("pre_quant_scale", torch.ones(1)).float()  # of the inputs
    if config["quant_algo"] == "W4A16_AWQ":
        return unpacked_int4(weight, scale) * factors
    shape = torch.Size((weight.shape[0], weight.shape[1] * 2))
    return factors * NVFP4QTensor(shape, torch.float32, weight).dequantize(
        torch.float32, scale=scale, double_scale=tensors["weight_scale_2"], block_sizes={-1: 16})


print(f"modelopt {modelopt.__version__}")
with tempfile.TemporaryDirectory() as temp:
    sys.exit(check_formats(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(temp), FORMATS, dequantize, "dequantized"))
