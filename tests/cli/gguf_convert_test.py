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
    width = {0: (4, 1), 1: (2, 1), 30: (2, 1), 39: (17, 32)}  # bytes of so many elements
    result = {}
    for name, kind, ne, offset in found:
        size, elements = width[kind]
        for n in ne:
            size *= n
        size //= elements
        result[name] = (kind, ne, data[base + offset:base + offset + size])
    return result


def write_tensors(path, contents):
    """A safetensors file of {name: (dtype, shape, bytes)}."""
    header, data = {}, b""
    for name, (dtype, shape, content) in contents.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


E2M1 = [0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6]


def ggml_mxfp4(data):
    """Values of ggml's blocks: a scale, then element i below element i + 16."""
    values = []
    for at in range(0, len(data), 17):
        scale = 2.0 ** (data[at] - 127)
        codes = data[at + 1:at + 17]
        values += [E2M1[c & 15] * scale for c in codes] + [E2M1[c >> 4] * scale for c in codes]
    return values


def packed_mxfp4(codes, scales):
    """Values of a row-major matrix whose neighbours share a byte."""
    return [E2M1[c >> shift & 15] * 2.0 ** (scales[i // 16] - 127) for i, c in enumerate(codes) for shift in (0, 4)]


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

    def config_of_golden(self):
        """The config.json of the model that the GGUF goldens are made from."""
        config = json.loads((GOLDEN / "sources/qwen3_moe/config.json").read_text())
        config["moe_intermediate_size"] = 256
        path = self.dir / "config.json"
        path.write_text(json.dumps(config))
        return path

    def reference_of_golden(self, name):
        """Its reference under the names of the model's own family."""
        contents = tensors(GOLDEN / "gguf" / name / "moe_io.safetensors")
        path = self.dir / f"{name}-reference.safetensors"
        write_tensors(path, {f"model.layers.0.mlp.{io}": contents[f"blk.0.{io}"] for io in ("input", "output")})
        return path

    def test_mxfp4_goes_there_and_back_bit_for_bit(self):
        source = GOLDEN / "quant/gpt_oss-mxfp4"
        gguf, back, split = self.dir / "gguf", self.dir / "back", self.dir / "split"
        self.assertEqual(run("convert", source, gguf, "--to", "gguf")[0], OK)
        blocks = tensors(source / "model.safetensors")
        stem = "model.layers.0.mlp.experts."
        experts, rows, row = 4, 128, 256
        codes = blocks[stem + "gate_up_proj_blocks"][2]
        scales = blocks[stem + "gate_up_proj_scales"][2]
        kind, ne, data = gguf_tensors(gguf / "model.gguf")["blk.0.ffn_up_exps.weight"]
        self.assertEqual((kind, ne), (39, (row, rows, experts)))
        values = ggml_mxfp4(data)
        for expert, i in ((0, 0), (1, 5), (3, 127)):  # up is every second row
            at = expert * 2 * rows + 2 * i + 1
            expected = packed_mxfp4(codes[at * row // 2:(at + 1) * row // 2], scales[at * row // 32:(at + 1) * row // 32])
            self.assertEqual(values[(expert * rows + i) * row:(expert * rows + i + 1) * row], expected)
        self.assertEqual(run("convert", gguf, back, "--to", "original")[0], OK)
        for name in ("model.safetensors", "config.json"):
            self.assertEqual((back / name).read_bytes(), (source / name).read_bytes())
        self.assertEqual(run("unfuse", source, split)[0], OK)
        self.assertEqual(run("convert", gguf, self.dir / "single", "--to", "per-expert")[0], OK)
        self.assertEqual(run("convert", split, self.dir / "again", "--to", "gguf")[0], OK)
        self.assertEqual((self.dir / "again/model.gguf").read_bytes(), (gguf / "model.gguf").read_bytes())
        for name in ("model.safetensors", "config.json"):
            self.assertEqual((self.dir / "single" / name).read_bytes(), (split / name).read_bytes())

    def test_a_gguf_file_of_mxfp4_becomes_packed_matrices(self):
        out = self.dir / "out"
        golden = GOLDEN / "gguf/mxfp4"
        code, text, err = run("convert", golden / "model.gguf", out, "--to", "per-expert", "--config", self.config_of_golden())
        self.assertEqual(code, OK, text + err)
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        self.assertEqual(config["format"], "mxfp4-pack-quantized")
        code, text, err = run("verify", out, "--reference", self.reference_of_golden("mxfp4"), "--activations", "f32",
                              "--tolerance", "1e-5")
        self.assertEqual(code, OK, text + err)
        # Its other spellings have no place for MXFP4.
        code, text, err = run("convert", golden / "model.gguf", self.dir / "fused", "--to", "fused", "--config",
                              self.config_of_golden())
        self.assertNotEqual(code, OK)
        self.assertIn("mxfp4 blocks of GGUF have no other spelling", err)

    def test_gguf_is_quantized_like_what_it_was_made_from(self):
        source = GOLDEN / "families/qwen3_moe"
        gguf = self.dir / "gguf"
        self.assertEqual(run("convert", source, gguf, "--to", "gguf")[0], OK)
        for number, (name, *options) in enumerate((("int8-g128", "--group-size", "16"), ("nvfp4",))):
            results = [self.dir / f"{kind}{number}" for kind in ("own", "gguf_")]
            for checkpoint, result in zip((source, gguf), results):
                code, text, err = run("quantize", checkpoint, result, "--format", name, *options)
                self.assertEqual(code, OK, text + err)
            self.assertEqual(tensors(results[0] / "model.safetensors"), tensors(results[1] / "model.safetensors"))
            configs = [json.loads((result / "config.json").read_text()) for result in results]
            for config in configs:  # named in the order of the files' tensors
                config["quantization_config"]["ignore"].sort()
            self.assertEqual(*configs)

    def test_blocks_of_gguf_are_dequantized_and_quantized(self):
        config = self.config_of_golden()
        for name in ("q4_k_m", "q2_k", "mxfp4"):
            with self.subTest(name=name):
                out = self.dir / name
                code, text, err = run("quantize", GOLDEN / "gguf" / name / "model.gguf", out, "--format", "int8-g128",
                                      "--config", config)
                self.assertEqual(code, OK, text + err)
                self.assertEqual({p.name for p in out.iterdir()}, {"config.json", "model.safetensors"})
                # A group of 128 with rms r has |w| <= sqrt(128) r, in steps of 1 / 127.5 of that: an error of at
                # most sqrt(128) / 255 a weight; bf16 scales add 1/256 of w.
                code, text, err = run("diff", GOLDEN / "gguf" / name, out, "--max-rel", "0.0484")
                self.assertEqual(code, OK, text + err)
                code, text, err = run("verify", out, "--reference", self.reference_of_golden(name), "--tolerance", "0.1")
                self.assertEqual(code, OK, text + err)

    def test_quantizing_gguf_needs_the_models_config(self):
        golden = GOLDEN / "gguf/q2_k/model.gguf"
        code, _, err = run("quantize", golden, self.dir / "out", "--format", "int8-g128")
        self.assertEqual(code, USAGE)
        self.assertIn("--config", err)
        code, _, err = run("quantize", golden, self.dir / "out", "--format", "int8-g128", "--config",
                           GOLDEN / "families/qwen3_moe/config.json")
        self.assertEqual(code, FINDING)
        self.assertIn("not of one model", err)
        code, _, err = run("quantize", GOLDEN / "families/qwen3_moe", self.dir / "out", "--format", "int8-g128", "--config",
                           GOLDEN / "families/qwen3_moe/config.json")
        self.assertEqual(code, USAGE)
        self.assertIn("--config", err)

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
