#!/usr/bin/env python3
"""gantry place, gantry stats and --placement FILE as scripts see them.

  place_test.py GANTRY GOLDEN_DIR
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

GANTRY, GOLDEN = sys.argv[1], sys.argv[2]
MODEL = os.path.join(GOLDEN, "families", "qwen3_moe")


def run(*args):
    return subprocess.run([GANTRY, *args], capture_output=True, text=True, timeout=120)


def read(path):
    with open(path) as file:
        return file.read()


def events(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


class PlaceTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = directory.name

    def path(self, name, text=None):
        path = os.path.join(self.dir, name)
        if text is not None:
            with open(path, "w") as file:
                file.write(text)
        return path

    def check(self, *args, code=0):
        result = run(*args)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        return result

    # DeepSeek's README example: the first layer, whose placement its code printed.
    README_LOAD = "[[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86]]"
    README_MAP = [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]

    def test_compares_and_writes_the_readme_example(self):
        load = self.path("load.json", self.README_LOAD)
        out = self.path("sglang.json")
        result = self.check("place", load, "--ep", "8", "--redundant", "4", "--groups", "4",
                            "--nodes", "2", "--output", out, "--json")
        layer, final = events(result)
        self.assertEqual(layer["policy"], "hierarchical")
        ranks = [self.README_MAP[i:i + 2] for i in range(0, 16, 2)]
        written = json.loads(read(out))["physical_to_logical_map"][0]
        # Within a rank, experts that stay keep their slots.
        self.assertEqual([sorted(written[i:i + 2]) for i in range(0, 16, 2)],
                         [sorted(rank) for rank in ranks])
        weights = json.loads(self.README_LOAD)[0]
        count = {e: self.README_MAP.count(e) for e in range(12)}
        loads = [sum(weights[e] / count[e] for e in rank) for rank in ranks]
        self.assertAlmostEqual(layer["balancedness"]["eplb"], sum(loads) / 8 / max(loads), places=9)
        linear = [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9], [10], [11]]
        loads = [sum(weights[e] for e in rank) for rank in linear]
        self.assertAlmostEqual(layer["balancedness"]["linear"], sum(loads) / 8 / max(loads),
                               places=9)
        self.assertGreater(final["balancedness"]["eplb"], final["balancedness"]["linear"])

    def test_a_written_placement_is_compared_loaded_and_run(self):
        lines = self.path("run.jsonl", self.check("run", MODEL, "--tokens", "64", "--repeat", "1",
                                                  "--json", "--no-progress").stdout)
        for name, kind in (("a.json", "sglang"), ("b.json", "vllm"), ("c.json", "tensorrt_llm")):
            out = self.path(name)
            self.check("place", lines, "--ep", "3", "--redundant", "2", "--output", out,
                       "--format", kind)
            again = self.check("place", lines, "--ep", "3", "--redundant", "2", "--placement", out,
                               "--json")
            final = events(again)[-1]
            self.assertEqual(final["experts_moved"], 0, kind)
            self.assertAlmostEqual(final["balancedness"][out], final["balancedness"]["eplb"])
            self.check("verify", MODEL, "--ep", "3", "--placement", out, "--no-progress",
                       "--reference", os.path.join(MODEL, "moe_io.safetensors"))
        self.check("run", MODEL, "--ep", "3", "--placement", self.path("a.json"), "--tokens", "4",
                   "--repeat", "1", "--no-progress")
        shown = self.check("inspect", MODEL, "--ep", "3", "--placement", self.path("b.json"))
        self.assertIn("rank 2:", shown.stdout)

    def test_yaml_is_what_tensorrt_llm_reads(self):
        try:
            import yaml
        except ImportError:
            self.skipTest("no yaml module")
        out = self.path("t.yaml")
        self.check("place", self.path("load.json", "[[3, 2], [1, 1]]"), "--ep", "2", "--output", out,
                   "--format", "tensorrt_llm")
        self.assertEqual(yaml.safe_load(read(out)), {
            "num_slots": 2, "initial_global_assignments": {0: [0, 1], 1: [0, 1]},
            "layer_updates_per_iter": 0})

    def test_refusals(self):
        load = self.path("load.json", self.README_LOAD)
        self.check("place", load, code=2)
        self.check("place", self.path("bad.json", "[[1, -1]]"), "--ep", "2", code=1)
        self.check("place", self.path("absent.json"), "--ep", "2", code=3)
        result = self.check("place", load, "--ep", "2", "--placement", "nowhere", code=2)
        self.assertIn("linear, round_robin or a file", result.stderr)
        bad = self.path("place.json", "[0, 1, 2]")
        result = self.check("verify", MODEL, "--ep", "2", "--placement", bad, code=1)
        self.assertIn("place.json: layer 0: expected at least", result.stderr)

    def test_stats_of_a_run_on_ranks(self):
        svg, metrics = self.path("s.svg"), self.path("m.prom")
        result = self.check("stats", MODEL, "--ep", "2", "--steps", "4", "--tokens", "32",
                            "--redundant", "2", "--eplb-interval", "2", "--svg", svg,
                            "--prometheus", metrics, "--json")
        *layers, final = events(result)
        self.assertEqual(len(layers), final["layers"])
        config = json.loads(read(os.path.join(MODEL, "config.json")))
        pairs = 4 * 32 * config["num_experts_per_tok"]
        for layer in layers:
            self.assertEqual(sum(layer["tokens_per_expert"]), pairs)
            self.assertEqual(sum(layer["tokens_per_rank"]), pairs)
        self.assertGreaterEqual(final["rebalances"], 1)
        self.assertGreater(final["bytes_moved"], 0)
        root = xml.etree.ElementTree.parse(svg).getroot()
        titles = [t for t in root.iter() if t.tag.endswith("title")]
        self.assertEqual(len(titles), sum(len(layer["tokens_per_expert"]) for layer in layers))
        text = read(metrics)
        for name in ("gantry_expert_tokens_total", "gantry_rank_tokens_total",
                     "gantry_balancedness_ratio", "gantry_rebalances_total",
                     "gantry_rebalance_bytes_total"):
            self.assertIn("# TYPE " + name, text)
        sample = re.compile(r'^[a-z_]+\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\} [0-9.e+-]+$')
        for line in text.splitlines():
            self.assertTrue(line.startswith("# ") or sample.match(line), line)
        tokens = re.findall(r'^gantry_expert_tokens_total\{.*\} (\d+)$', text, re.M)
        self.assertEqual(sum(map(int, tokens)), pairs * len(layers))
        # Its lines are read back, and mean the same.
        again = events(self.check("stats", self.path("again.jsonl", result.stdout), "--json"))
        self.assertEqual(again[-1]["balancedness"], final["balancedness"])
        self.assertEqual(again[-1]["bytes_moved"], final["bytes_moved"])

    def test_stats_of_lines_without_ranks_are_expected(self):
        lines = self.path("l.jsonl", '{"layer": 3, "tokens_per_expert": [6, 2, 0, 0]}\n')
        layer, final = events(self.check("stats", lines, "--ep", "2", "--json"))
        self.assertEqual(layer["expected_tokens_per_rank"], [8, 0])
        self.assertEqual(final["balancedness"], 0.5)
        dealt = events(self.check("stats", lines, "--ep", "2", "--placement", "round_robin",
                                  "--json"))
        self.assertEqual(dealt[0]["expected_tokens_per_rank"], [6, 2])
        table = self.check("stats", lines).stdout
        self.assertIn("0 (6 tokens)", table)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
