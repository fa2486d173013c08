"""Tests `gantry calibrate`, `quantize`, `verify` and `diff` one after the other.

usage: calibrate_quantize_test.py GANTRY GOLDEN_ROOT
"""
import json
import sys
import unittest

from command import OK, CommandTestCase, run


class CalibrateQuantizeTest(CommandTestCase):
    def test_calibrated_checkpoints_are_quantized_verified_and_close_to_their_source(self):
        source = self.copy_golden("mixtral")
        (source / "tokenizer.json").write_text("{}")
        stats = self.dir / "stats"
        code, out, err = run("calibrate", source, "--activations", source / "moe_io.safetensors", "-o", stats,
                             "--hessians", "--top-k", "1", "--json", "--no-progress")
        self.assertEqual(code, OK, err)
        holes = {e["layer"]: e["uncalibrated"] for e in map(json.loads, out.splitlines()) if e["event"] == "layer"}
        self.assertTrue(any(holes.values()))
        for number, (name, *method) in enumerate([("nvfp4",), ("fp8-static",), ("int4-g32", "--group-size", "16", "--method", "gptq")]):
            quantized = self.dir / f"quantized{number}"
            code, out, err = run("quantize", source, quantized, "--format", name, "--stats", stats, *method,
                                 "--no-progress")
            self.assertEqual(code, OK, out + err)
            for layer, experts in holes.items():  # exactly those experts are named
                named = [line for line in err.splitlines() if f"layer {layer}" in line and "expert" in line]
                self.assertEqual(any(", ".join(map(str, experts)) in line for line in named), bool(experts), err)
            self.assertEqual((quantized / "tokenizer.json").read_text(), "{}")
            code, out, err = run("verify", quantized)
            self.assertEqual(code, OK, out + err)
            code, out, err = run("diff", source, quantized, "--max-rel", "0.3")  # unrelated weights differ by 1.4
            self.assertEqual(code, OK, out + err)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
