"""fuse, unfuse, convert and reshard as scripts see them.

usage: respell_test.py GANTRY GOLDEN_ROOT
"""
import json
import shutil
import sys
import unittest

import command
from command import ENVIRONMENT, FINDING, OK, USAGE

GOLDEN = command.GOLDEN / "families"


def run(*arguments):
    return command.run(*arguments, "--no-progress")


class RespellTest(command.CommandTestCase):
    def setUp(self):
        super().setUp()
        self.out = self.dir / "out"

    def test_the_files_are_those_of_transformers(self):
        self.assertEqual(run("unfuse", GOLDEN / "mixtral-fused", self.out)[0], OK)
        for name in ("model.safetensors", "config.json"):
            self.assertEqual((self.out / name).read_bytes(), (GOLDEN / "mixtral" / name).read_bytes())
        self.assertEqual(run("fuse", self.out, self.dir / "again")[0], OK)
        fused = (GOLDEN / "mixtral-fused/model.safetensors").read_bytes()
        self.assertEqual((self.dir / "again/model.safetensors").read_bytes(), fused)

    def test_the_result_computes_what_the_source_did(self):
        for command in ("unfuse", "fuse"):
            out = self.dir / command
            self.assertEqual(run(command, GOLDEN / "gpt_oss", out)[0], OK)
            code, text, _ = run("verify", out, "--reference", out / "moe_io.safetensors")
            self.assertEqual(code, OK, text)

    def test_mxfp4_of_gpt_oss_is_taken_apart_and_joined_bit_for_bit(self):
        source = GOLDEN.parent / "quant/gpt_oss-mxfp4"
        self.assertEqual(run("unfuse", source, self.out)[0], OK)
        code, text, _ = run("verify", self.out, "--reference", self.out / "moe_io.safetensors", "--activations", "f32",
                            "--tolerance", "1e-5")
        self.assertEqual(code, OK, text)
        code, text, _ = run("diff", source, self.out, "--max-rel", "1e-30", "--max-output-rel", "1e-30")
        self.assertEqual(code, OK, text)
        config = json.loads((self.out / "config.json").read_text())["quantization_config"]
        self.assertEqual((config["quant_method"], config["format"]), ("compressed-tensors", "mxfp4-pack-quantized"))
        self.assertIn("model.layers.0.mlp.router", config["ignore"])
        self.assertEqual(run("fuse", self.out, self.dir / "again")[0], OK)
        self.assertEqual((self.dir / "again/model.safetensors").read_bytes(), (source / "model.safetensors").read_bytes())
        self.assertEqual(json.loads((self.dir / "again/config.json").read_text()),
                         json.loads((source / "config.json").read_text()))

    def test_the_last_line_tells_sizes_rate_and_memory(self):
        code, out, _ = run("unfuse", GOLDEN / "qwen3_moe-fused", self.out, "--json")
        self.assertEqual(code, OK)
        result = [json.loads(line) for line in out.splitlines()][-1]
        self.assertEqual(result["tensors"], 69)
        self.assertGreater(result["peak_rss_bytes"], 0)
        self.assertLess(result["peak_buffer_bytes"], 512 << 20)

    def test_other_files_are_carried_and_foreign_weights_are_named(self):
        source = self.copy_golden("qwen3_moe")
        (source / "tokenizer.json").write_text("{}")
        (source / "code").mkdir()
        (source / "code/modeling.py").write_text("pass")
        (source / "pytorch_model.bin").write_bytes(b"x")
        (source / ".git").mkdir()
        (source / ".git/config").write_text("")
        code, out, _ = run("fuse", source, self.out)
        self.assertEqual(code, OK)
        self.assertIn("pytorch_model.bin is not carried", out)
        names = {str(p.relative_to(self.out)) for p in self.out.rglob("*") if p.is_file()}
        expected = {"config.json", "model.safetensors", "moe_io.safetensors", "tokenizer.json", "code/modeling.py"}
        self.assertEqual(names, expected)

    def test_its_input_and_directories_with_files_are_not_overwritten(self):
        source = self.copy_golden("qwen3_moe")
        before = (source / "model.safetensors").read_bytes()
        self.assertEqual(run("fuse", source, source)[0], USAGE)
        self.assertEqual(run("fuse", source, source / "out")[0], USAGE)
        self.out.mkdir()
        (self.out / "notes").write_text("mine")
        code, _, err = run("fuse", source, self.out)
        self.assertEqual(code, USAGE)
        self.assertIn("not empty", err)
        self.assertEqual((source / "model.safetensors").read_bytes(), before)
        self.assertEqual([p.name for p in self.out.iterdir()], ["notes"])

    def test_damaged_inputs_are_refused_and_nothing_is_written(self):
        def truncate(path):
            path.write_bytes(path.read_bytes()[:-1])

        def rename(path):
            old = b"experts.3.up_proj.weight"
            self.assertIn(old, path.read_bytes())
            path.write_bytes(path.read_bytes().replace(old, b"experts.3.ux_proj.weight"))

        def reshape(path):
            path.write_bytes(path.read_bytes().replace(b"[48,64]", b"[64,48]", 1))

        def retype(path):
            old = b'experts.3.up_proj.weight":{"dtype":"BF16"'
            self.assertIn(old, path.read_bytes())
            path.write_bytes(path.read_bytes().replace(old, old[:-5] + b'F16" '))

        for number, damage in enumerate((truncate, rename, reshape, retype)):
            source = self.copy_golden("qwen3_moe")
            damage(source / "model.safetensors")
            code, out, err = run("fuse", source, self.out)
            self.assertEqual(code, FINDING, f"{number}: {out}{err}")
            self.assertFalse(self.out.exists())
            shutil.rmtree(source)

    def test_too_little_memory_is_an_error(self):
        code, _, err = run("unfuse", GOLDEN / "gpt_oss", self.out, "--memory", "200")
        self.assertEqual(code, ENVIRONMENT)
        self.assertIn("memory limit", err)
        self.assertFalse(self.out.exists())

    def test_spellings_are_checked(self):
        self.assertEqual(run("convert", GOLDEN / "mixtral", self.out)[0], USAGE)
        self.assertEqual(run("convert", GOLDEN / "mixtral", self.out, "--to", "klingon")[0], USAGE)
        self.assertEqual(run("convert", GOLDEN / "granitemoe", self.out, "--to", "transformers")[0], OK)
        code, out, _ = run("convert", self.out, self.dir / "back", "--to", "original")
        self.assertEqual(code, OK, out)
        original = (GOLDEN / "granitemoe/model.safetensors").read_bytes()
        self.assertEqual((self.dir / "back/model.safetensors").read_bytes(), original)

    def test_reshard_cuts_by_size_and_back(self):
        self.assertEqual(run("reshard", GOLDEN / "qwen3_moe", self.out, "--shard-size", "50KB")[0], OK)
        index = json.loads((self.out / "model.safetensors.index.json").read_text())
        self.assertEqual(len(index["weight_map"]), 69)
        self.assertEqual(set(index["weight_map"].values()), {p.name for p in self.out.glob("model-*")})
        code, out, _ = run("verify", self.out, "--reference", self.out / "moe_io.safetensors")
        self.assertEqual(code, OK, out)
        self.assertEqual(run("reshard", self.out, self.dir / "one", "--shard-size", "0")[0], OK)
        whole = (GOLDEN / "qwen3_moe/model.safetensors").read_bytes()
        self.assertEqual((self.dir / "one/model.safetensors").read_bytes(), whole)

    def test_reshard_by_rank(self):
        self.assertEqual(run("reshard", GOLDEN / "qwen3_moe", self.out, "--ep", "4")[0], OK)
        self.assertTrue((self.out / "model-ep-00003-of-00004.safetensors").exists())
        self.assertEqual(run("verify", self.out)[0], OK)
        code, _, err = run("reshard", GOLDEN / "qwen3_moe", self.dir / "tp", "--tp", "2")
        self.assertEqual(code, USAGE)
        self.assertIn("--rank", err)
        arguments = ("--tp", "2", "--ep", "2", "--rank", "3")
        self.assertEqual(run("reshard", GOLDEN / "qwen3_moe", self.dir / "tp", *arguments)[0], OK)
        self.assertIn(b'"tp_rank":"1"', (self.dir / "tp/model.safetensors").read_bytes()[:500])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
