"""llama.cpp's gguf package reads what `gantry convert --to gguf` writes: names, types, bytes, metadata.

usage: gguf_read.py GANTRY GOLDEN_ROOT
"""
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

try:
    import gguf
    import numpy
except ImportError as error:
    print(f"needs gguf and numpy: {error}")
    sys.exit(77)

GANTRY, GOLDEN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
# Whether every tensor has llama.cpp's name, or only those of the MoE blocks.
FAMILIES = {"qwen3_moe": True, "qwen2_moe": True, "olmoe": True, "mixtral": False, "gpt_oss": False}
TYPES = {"BF16": gguf.GGMLQuantizationType.BF16, "F32": gguf.GGMLQuantizationType.F32}
PROJECTIONS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def read_safetensors(directory):
    """{name: (dtype, shape, bytes)}"""
    result = {}
    for path in sorted(directory.glob("model*.safetensors")):
        data = path.read_bytes()
        base = 8 + struct.unpack("<Q", data[:8])[0]
        for name, info in json.loads(data[8:base]).items():
            if name != "__metadata__":
                begin, end = info["data_offsets"]
                result[name] = (info["dtype"], info["shape"], data[base + begin:base + end])
    return result


def stacked_experts(source):
    """{blk.L.ffn_X_exps.weight: (dtype, ne, bytes)}, from experts that stand alone."""
    layers = {}
    for name, tensor in source.items():
        found = re.search(r"layers\.(\d+)\..*experts\.(\d+)\.(\w+)\.weight$", name)
        if found:
            key = f"blk.{found[1]}.ffn_{PROJECTIONS[found[3]]}_exps.weight"
            layers.setdefault(key, {})[int(found[2])] = tensor
    return {
        key: (experts[0][0], [*reversed(experts[0][1]), len(experts)], b"".join(experts[e][2] for e in sorted(experts)))
        for key, experts in layers.items()
    }


def gpt_oss_experts(source):
    """The same of gpt-oss, whose gate and up are interleaved columns of [E, in, 2 * out]."""
    result = {}
    for name, (dtype, shape, data) in source.items():
        found = re.search(r"layers\.(\d+)\..*experts\.(gate_up|down)_proj$", name)
        if not found:
            continue
        matrix = numpy.frombuffer(data, numpy.uint16).reshape(shape).transpose(0, 2, 1)
        parts = {"gate": matrix[:, 0::2], "up": matrix[:, 1::2]} if found[2] == "gate_up" else {"down": matrix}
        for part, experts in parts.items():
            result[f"blk.{found[1]}.ffn_{part}_exps.weight"] = (dtype, [*reversed(experts.shape)], experts.tobytes())
    return result


def check(family, all_names, temp):
    source_directory = GOLDEN / "families" / family
    out = temp / family
    subprocess.run([GANTRY, "convert", source_directory, out, "--to", "gguf", "-q", "--no-progress"], check=True, stdout=subprocess.DEVNULL)
    reader = gguf.GGUFReader(out / "model.gguf")
    config = json.loads((source_directory / "config.json").read_text())
    arch = reader.get_field("general.architecture").contents()
    field = lambda key: reader.get_field(key.format(arch=arch)).contents()
    assert field(gguf.Keys.LLM.BLOCK_COUNT) == config["num_hidden_layers"]
    assert field(gguf.Keys.LLM.EMBEDDING_LENGTH) == config["hidden_size"]
    experts = config.get("num_experts") or config["num_local_experts"]
    assert field(gguf.Keys.LLM.EXPERT_COUNT) == experts
    assert field(gguf.Keys.LLM.EXPERT_USED_COUNT) == config["num_experts_per_tok"]

    written = {t.name: t for t in reader.tensors}
    source = read_safetensors(source_directory)
    expected = gpt_oss_experts(source) if family == "gpt_oss" else stacked_experts(source)
    assert expected, f"{family}: no experts found"
    if all_names:
        architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
        names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
        for name, (dtype, shape, data) in source.items():
            if ".experts." in name:
                continue
            mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert mapped is not None, f"{family}: llama.cpp has no name for {name}"
            expected[mapped] = (dtype, [*reversed(shape)], data)
        assert set(written) == set(expected), f"{family}: {set(written) ^ set(expected)}"
    for name, (dtype, ne, data) in expected.items():
        tensor = written[name]
        assert tensor.tensor_type == TYPES[dtype], f"{family} {name}: {tensor.tensor_type}"
        assert [int(n) for n in tensor.shape] == ne, f"{family} {name}: {tensor.shape} for {ne}"
        assert tensor.data.tobytes() == data, f"{family} {name}: other bytes"
    print(f"{family} ({arch}): {len(expected)} of {len(written)} tensors compared, all equal")


def main():
    with tempfile.TemporaryDirectory() as temp:
        for family, all_names in FAMILIES.items():
            check(family, all_names, pathlib.Path(temp))


if __name__ == "__main__":
    main()
