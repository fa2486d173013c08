"""AutoRound's and GPTQModel's PyTorch layers dequantize GPTQ and AWQ exports to the weights that Gantry computes with.

usage: quantize_gptq_awq.py GANTRY GOLDEN_ROOT
"""
import importlib
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).parent / "support"))
try:
    import auto_round
    import torch
    import transformers
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from moe_block import check_formats
    LAYER = importlib.import_module("auto_round_extension.torch.qlinear_torch_zp").QuantLinear
except ImportError as error:
    print(f"needs torch, transformers and auto-round: {error}")
    sys.exit(77)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FORMATS = {"gptq": 1e-5, "gptq-asym": 1e-5, "gptq-int8": 1e-5, "awq": 1e-5}


def dequantize(config, tensors):
    bits, group = config["bits"], config["group_size"]
    scales = tensors["scales"].float()
    if config["quant_method"] == "awq":
        return dequantize_gemm(tensors["qweight"], tensors["qzeros"], scales, bits, group).T.contiguous()
    rows, out = tensors["qweight"].shape
    inputs = rows * 32 // bits
    layer = LAYER(bits, group, inputs, out, bias=False)
    layer.qweight, layer.qzeros, layer.scales = tensors["qweight"], tensors["qzeros"], scales
    assert torch.equal(tensors["g_idx"], torch.arange(inputs, dtype=torch.int32) // group)
    if hasattr(layer, "post_init"):
        layer.post_init()
    with torch.no_grad():
        return layer(torch.eye(inputs)).T.contiguous()


print(f"auto-round {auto_round.__version__}")
with tempfile.TemporaryDirectory() as temp:
    sys.exit(check_formats(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(temp), FORMATS, dequantize, "dequantized"))
