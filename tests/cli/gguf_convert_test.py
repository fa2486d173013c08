"""gantry convert between safetensors and GGUF, as scripts see it.

usage: gguf_convert_test.py GANTRY GOLDEN_ROOT
"""
import json
import struct
import sys
import unittest

import command
from command import FINDING, OK, USAGE

GOLDEN = command.GOLDEN


def run(*arguments):
    return command.run(*arguments, "--no-progress")


def tensors(path):
    """{name: (dtype, shape, bytes)} of a safetensors file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    base = 8 + size
    return {name: (t["dtype"], t["shape"], data[base + t["data_offsets"][0]:base + t["data_offsets"][1]])
            for name, t in header.items()}


def gguf_tensors(path):
    """{name: (type, ne, bytes)} of a GGUF file, by the specification alone."""
    data = path.read_bytes()
    magic, version, count, keys = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3)
    at = 24
    sizes = {4: 4, 6: 4, 7: 1}
    for _ in range(keys):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
        kind = struct.unpack_from("<I", data, at)[0]
        at += 4
        at += 8 + struct.unpack_from("<Q", data, at)[0] if kind == 8 else sizes[kind]
    found = []
    for _ in range(count):
        size = struct.unpack_from("<Q", data, at)[0]
        name = data[at + 8:at + 8 + size].decode()
        at += 8 + size
        axes = struct.unpack_from("<I", data, at)[0]
        ne = struct.unpack_from(f"<{axes}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * axes)
        at += 4 + 8 * axes + 12
        found.append((name, kind, ne, offset))
    base = (at + 31) // 32 * 32
    width = {0: 4, 1: 2, 30: 2}
    result = {}
    for name, kind, ne, offset in found:
        size = width[kind]
        for n in ne:
            size *= n
        result[name] = (kind, ne, data[base + offset:base + offset + size])
    return result


class GgufConvertTest(command.CommandTestCase):
    def round_trip(self, family):
        source = GOLDEN / "families" / family
        gguf = self.dir / f"{family}.gguf.d"
        code, out, err = run("convert", source, gguf, "--to", "gguf")
        self.assertEqual(code, OK, out + err)
        code, out, err = run("verify", gguf)
        self.assertEqual(code, OK, out + err)
        back = self.dir / f"{family}.back"
        code, out, err = run("convert", gguf, back, "--to", "original", "--shard-size", "0")
        self.assertEqual(code, OK, out + err)
        expected = {}
        for file in source.glob("model*.safetensors"):
            expected.update(tensors(file))
        self.assertEqual(tensors(back / "model.safetensors"), expected)
        self.assertEqual((back / "config.json").read_bytes(), (source / "config.json").read_bytes())
        return gguf

    def test_there_and_back_is_the_same_bytes(self):
        for family in ("qwen3_moe", "qwen2_moe", "qwen3_5_moe", "mixtral", "olmoe", "dbrx", "gpt_oss", "deepseek_v3"):
            with self.subTest(family=family):
                self.round_trip(family)

    def test_experts_are_stacked_under_the_names_of_llama_cpp(self):
        gguf = self.round_trip("qwen3_moe")
        found = gguf_tensors(gguf / "model.gguf")
        source = tensors(GOLDEN / "families/qwen3_moe/model.safetensors")
        for part, name in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
            experts = [source[f"model.layers.1.mlp.experts.{e}.{name}.weight"] for e in range(8)]
            kind, ne, data = found[f"blk.1.ffn_{part}_exps.weight"]
            self.assertEqual(kind, 30)
            self.assertEqual(ne, (experts[0][1][1], experts[0][1][0], 8))
            self.assertEqual(data, b"".join(e[2] for e in experts))
        self.assertEqual(found["blk.0.attn_q.weight"][2], source["model.layers.0.self_attn.q_proj.weight"][2])
        self.assertIn("token_embd.weight", found)

    def test_the_model_computes_the_same(self):
        gguf = self.round_trip("qwen3_moe")
        source = GOLDEN / "families/qwen3_moe"
        code, out, err = run("diff", source, gguf, "--max-rel", "1e-30", "--max-output-rel", "1e-30")
        self.assertEqual(code, OK, out + err)

    def test_a_file_alone_needs_a_config(self):
        gguf = self.round_trip("mixtral")
        (gguf / "model.gguf").rename(self.dir / "alone.gguf")
        (self.dir / "notes").write_text("not part of it")
        code, out, err = run("convert", self.dir / "alone.gguf", self.dir / "out", "--to", "fused")
        self.assertEqual(code, USAGE, out + err)
        self.assertIn("--config", err)
        code, out, err = run("convert", self.dir / "alone.gguf", self.dir / "out", "--to", "fused",
                             "--config", gguf / "config.json")
        self.assertEqual(code, OK, out + err)
        fused = GOLDEN / "families/mixtral-fused/model.safetensors"
        self.assertEqual(tensors(self.dir / "out/model.safetensors"), tensors(fused))
        self.assertEqual({p.name for p in (self.dir / "out").iterdir()}, {"config.json", "model.safetensors"})

    def test_blocks_are_refused_by_name(self):
        config = GOLDEN / "families/qwen3_moe/config.json"
        code, out, err = run("convert", GOLDEN / "gguf/q2_k", self.dir / "out", "--to", "per-expert")
        self.assertEqual(code, USAGE, out + err)
        self.assertIn("--config", err)
        code, out, err = run("convert", GOLDEN / "gguf/q2_k", self.dir / "out", "--to", "per-expert", "--config", config)
        self.assertEqual(code, FINDING, out + err)
        self.assertIn("not of one model", err)
        self.assertFalse((self.dir / "out").exists())

    def test_quantized_tensors_are_refused_by_name(self):
        code, out, err = run("convert", GOLDEN / "quant/hf_fp8-block-fused", self.dir / "out", "--to", "gguf")
        self.assertNotEqual(code, OK, out)
        self.assertIn("proj_scale_inv", err)
        self.assertFalse((self.dir / "out").exists())

    def test_what_metadata_cannot_say_is_refused(self):
        code, out, err = run("convert", GOLDEN / "families/phimoe", self.dir / "out", "--to", "gguf")
        self.assertNotEqual(code, OK, out)
        self.assertIn("phimoe", err)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
