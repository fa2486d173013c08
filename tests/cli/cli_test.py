"""Tests the contract of the `gantry` command: exit codes, JSON output, refusals.

usage: cli_test.py GANTRY GOLDEN_ROOT
"""
import json
import pathlib
import shutil
import struct
import sys
import unittest

from command import ENVIRONMENT, FINDING, GOLDEN, OK, USAGE, CommandTestCase, run


def read_file(path):
    """A safetensors file as {name: (dtype, shape, bytes)}."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    base = 8 + length
    return {
        name: (entry["dtype"], entry["shape"], data[base + entry["data_offsets"][0] : base + entry["data_offsets"][1]])
        for name, entry in header.items()
    }


def write_file(path, tensors):
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class CommandTest(CommandTestCase):
    def verify(self, directory, *more):
        return run("verify", directory, "--reference", directory / "moe_io.safetensors", *more)

    def test_no_subcommand_is_a_usage_error(self):
        self.assertEqual(run()[0], USAGE)
        self.assertEqual(run("frobnicate")[0], USAGE)
        self.assertEqual(run("verify")[0], USAGE)
        self.assertEqual(run("verify", GOLDEN, "--activations", "int3")[0], USAGE)

    def test_help_and_version_are_fine(self):
        for arguments in (["--help"], ["--version"], ["verify", "--help"]):
            code, out, _ = run(*arguments)
            self.assertEqual(code, OK)
            self.assertIn("gantry" if arguments == ["--version"] else "verify", out + "verify")

    def test_info_lists_kernels_and_families(self):
        code, out, _ = run("info", "--json")
        self.assertEqual(code, OK)
        events = [json.loads(line) for line in out.splitlines()]
        kernels = {(e["weights"], e["activations"]): e for e in events if e["event"] == "kernel"}
        self.assertEqual(len(kernels), 6)
        self.assertTrue(kernels["bf16", "f32"]["name"].startswith("bf16_"))
        self.assertIsInstance(kernels["bf16", "bf16"]["refused"], list)
        self.assertTrue(any(e["event"] == "avx512_dot" and e["reason"] for e in events))
        self.assertTrue(any(e["event"] == "family" and e["name"] == "mixtral" for e in events))

    def test_bench_prints_the_fields_that_peers_print(self):
        # Tiny weights stay in caches, so the ceiling may be exceeded: then the exit code says so.
        code, out, err = run("bench", str(GOLDEN / "families" / "mixtral"), "--tokens", "1,3",
                             "--routing", "uniform,zipf", "--seconds", "0.02", "-o", "jsonl")
        rows = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([(r["routing"], r["tokens"]) for r in rows],
                         [("uniform", 1), ("uniform", 3), ("zipf", 1), ("zipf", 3)])
        for row in rows:
            for field in ("shape", "impl", "ms_min", "ms_median", "weight_gb_s", "tflops",
                          "ceiling", "of_ceiling"):
                self.assertIn(field, row)
            self.assertLess(row["rel_err"], 1e-2)
        over = any(row["of_ceiling"] > 1.03 for row in rows)
        self.assertEqual(code, FINDING if over else OK, err)

    def test_bench_on_a_device_prints_the_same_fields(self):
        # On emulated threads: what runs and what is printed, not how fast.
        tiny = ["--seconds", "0.01", "--rotate-gb", "0.000001", "--read-gb", "0.0001"]
        for device, text in (("emulated", "wgmma needs sm_90a"), ("emulated:90", "from 33 rows")):
            code, out, err = run("bench", str(GOLDEN / "families" / "mixtral"), "--tokens", "1,5",
                                 "--device", device, "-o", "jsonl", *tiny)
            self.assertEqual(code, OK, err)
            rows = [json.loads(line) for line in out.splitlines()]
            self.assertEqual([r["tokens"] for r in rows], [1, 5])
            for row in rows:
                self.assertLess(row["rel_err"], 1e-2)
                self.assertGreater(row["of_ceiling"], 0)
                self.assertIn("emulated", row["impl"])
            code, out, err = run("bench", str(GOLDEN / "families" / "mixtral"), "--tokens", "1",
                                 "--device", device, *tiny)
            self.assertEqual(code, OK, err)
            self.assertIn(text, out)
            self.assertIn("ceilings: read", out)
        code, _, err = run("bench", str(GOLDEN / "families" / "mixtral"), "--device", "emulated",
                           "--activations", "int8")
        self.assertEqual(code, USAGE)
        self.assertIn("--activations int8", err)

    def test_bench_refuses_what_it_does_not_know(self):
        for arguments in (["--shape", "nothing"], ["--format", "fp3"], ["--tokens", "0"]):
            code, _, err = run("bench", *arguments)
            self.assertEqual(code, USAGE, err)

    def test_verify_matches_the_reference(self):
        for activations in ("f32", "bf16", "scheme"):
            code, out, err = self.verify(GOLDEN / "families" / "qwen2_moe", "--activations", activations)
            self.assertEqual(code, OK, out + err)

    def test_verify_takes_the_activations_that_the_checkpoint_declares(self):
        def text_of(directory, *arguments):
            code, out, err = self.verify(directory, *arguments, "--json")
            self.assertEqual(code, OK, out + err)
            events = [json.loads(line) for line in out.splitlines()]
            return next(e for e in events if e["event"] == "activations")

        quant = GOLDEN / "quant"
        self.assertEqual(text_of(quant / "quark-fp8")["dtype"], "scheme")
        self.assertIn("fp8 static", text_of(quant / "quark-fp8")["text"])
        self.assertIn("nvfp4", text_of(quant / "llmcompressor-nvfp4", "--tp", "3")["text"])
        self.assertEqual(text_of(quant / "quark-fp8", "--activations", "f32")["dtype"], "f32")
        self.assertEqual(text_of(quant / "bitsandbytes-nf4")["dtype"], "bf16")
        explicit = text_of(quant / "bitsandbytes-nf4", "--activations", "scheme")
        self.assertEqual(explicit["dtype"], "bf16")
        self.assertIn("declares none", explicit["text"])

    def test_the_scheme_needs_its_own_reference(self):
        directory = self.copy_golden("quark-fp8", "quant")
        tensors = read_file(directory / "moe_io.safetensors")
        for name in [n for n in tensors if "act_quant" in n]:
            del tensors[name]
        write_file(directory / "moe_io.safetensors", tensors)
        code, out, err = self.verify(directory)
        self.assertEqual(code, OK, out + err)
        self.assertIn("activations: bf16 (the reference has none of the scheme: fp8 static)", out)
        code, out, err = self.verify(directory, "--activations", "scheme")
        self.assertEqual(code, USAGE, out + err)
        self.assertIn("output_act_quant", err)

    def test_run_and_bench_take_the_scheme(self):
        directory = GOLDEN / "quant" / "llmcompressor-w8a8"
        code, out, err = run("run", directory, "--tokens", "4", "--repeat", "1")
        self.assertEqual(code, OK, out + err)
        self.assertIn("scheme: int8 per token", out)
        code, out, err = run("run", directory, "--tokens", "4", "--repeat", "1", "--activations",
                             "bf16")
        self.assertNotIn("scheme", out)
        code, out, err = run("bench", directory, "--tokens", "1", "--seconds", "0.01",
                             "--rotate-gb", "0.0001")
        self.assertIn(code, (OK, FINDING), err)
        self.assertIn("scheme: int8 per token", out)

    def test_bench_with_nothing_to_rotate_over_times_one_layer(self):
        small = ["--tokens", "1", "--seconds", "0.01", "--read-gb", "0.0001", "--rotate-gb", "0"]
        for weights in ([str(GOLDEN / "families" / "mixtral")], ["--shape", "tiny"]):
            for device in ([], ["--device", "emulated"]):
                code, out, err = run("bench", *weights, *small, *device)
                self.assertIn(code, (OK, FINDING), err)
                self.assertIn("| uniform ", out)
                if not device:
                    self.assertIn("1 layer(s) of 8 experts", out)

    def test_verify_speaks_json(self):
        code, out, _ = self.verify(GOLDEN / "families" / "mixtral", "--activations", "f32", "--json")
        self.assertEqual(code, OK)
        events = [json.loads(line) for line in out.splitlines()]
        blocks = [e for e in events if e["event"] == "block"]
        self.assertEqual([b["layer"] for b in blocks], [0, 1])
        self.assertTrue(all(b["ok"] and b["rel"] <= 1e-5 for b in blocks))
        self.assertTrue(events[-1]["ok"])

    def test_a_swap_of_gate_and_up_is_a_finding(self):
        directory = self.copy_golden("qwen3_moe")
        tensors = read_file(directory / "model.safetensors")
        for name in [n for n in tensors if ".gate_proj." in n]:
            other = name.replace(".gate_proj.", ".up_proj.")
            tensors[name], tensors[other] = tensors[other], tensors[name]
        write_file(directory / "model.safetensors", tensors)
        for activations in ("f32", "bf16"):
            code, out, _ = self.verify(directory, "--activations", activations)
            self.assertEqual(code, FINDING, out)
            self.assertIn("relative error", out)

    def test_swapped_experts_are_a_finding_where_there_is_no_gate(self):
        directory = self.copy_golden("nemotron_h")
        tensors = read_file(directory / "model.safetensors")
        for name in [n for n in tensors if ".experts.0." in n]:
            other = name.replace(".experts.0.", ".experts.1.")
            tensors[name], tensors[other] = tensors[other], tensors[name]
        write_file(directory / "model.safetensors", tensors)
        self.assertEqual(self.verify(directory, "--activations", "f32")[0], FINDING)

    def test_a_missing_tensor_is_named(self):
        directory = self.copy_golden("olmoe-fused")
        tensors = read_file(directory / "model.safetensors")
        name = next(n for n in tensors if n.endswith("experts.down_proj"))
        del tensors[name]
        write_file(directory / "model.safetensors", tensors)
        code, out, _ = run("verify", directory)
        self.assertEqual(code, FINDING)
        self.assertIn(name, out)

    def diff(self, *arguments):
        code, out, err = run("diff", *arguments, "--no-progress", "--json")
        events = [json.loads(line) for line in out.splitlines()]
        return code, [e for e in events if e["event"] == "matrix"], events, out + err

    def test_diff_finds_a_quantized_checkpoint_near_its_source(self):
        source, quantized = GOLDEN / "sources" / "mixtral", GOLDEN / "quant" / "modelopt-nvfp4-mixtral"
        svg = self.dir / "map.svg"
        code, matrices, events, text = self.diff(source, quantized, "--svg", svg, "--tokens", "5")
        self.assertEqual(code, OK, text)
        self.assertEqual(len(matrices), 12)
        for matrix in matrices:
            self.assertTrue(0.09 < matrix["rel"] < 0.1 and 20 < matrix["snr_db"] < 21, matrix)
        output = next(e for e in events if e["event"] == "output")
        self.assertEqual(output["tokens"], 5)
        self.assertEqual(svg.read_text().count("<title>"), 12)
        self.assertEqual(self.diff(source, quantized, "--min-snr", "20")[0], OK)
        self.assertEqual(self.diff(source, quantized, "--min-snr", "21")[0], FINDING)
        self.assertEqual(self.diff(source, quantized, "--max-rel", "0.09")[0], FINDING)
        self.assertEqual(self.diff(source, quantized, "--max-output-rel", "0.01")[0], FINDING)
        self.assertEqual(self.diff(quantized, GOLDEN / "sources" / "qwen3_moe")[0], FINDING)
        self.assertEqual(self.diff(source, quantized, "--max-rel", "-1")[0], USAGE)

    def test_diff_names_experts_that_were_exchanged(self):
        directory = self.copy_golden("modelopt-nvfp4-mixtral", "quant")
        tensors = read_file(directory / "model.safetensors")
        for name in [n for n in tensors if ".experts.0." in n]:
            other = name.replace(".experts.0.", ".experts.3.")
            tensors[name], tensors[other] = tensors[other], tensors[name]
        write_file(directory / "model.safetensors", tensors)
        source = GOLDEN / "sources" / "mixtral"
        code, matrices, events, text = self.diff(source, directory, "--tokens", "0")
        self.assertEqual(code, FINDING, text)
        self.assertEqual({m["expert"] for m in matrices if not m["ok"]}, {0, 3})
        self.assertEqual(len([m for m in matrices if not m["ok"]]), 6)
        code, out, _ = run("diff", source, directory, "--tokens", "0")
        self.assertEqual(code, FINDING)
        self.assertIn("expert 0 of B (w1): matches expert 3 of A", out)
        self.assertIn("expert 3 of B (w2): matches expert 0 of A", out)

    def test_calibrate_writes_resumes_and_refuses(self):
        source = GOLDEN / "families" / "mixtral"
        stats = self.dir / "stats"
        arguments = ["calibrate", source, "--activations", source / "moe_io.safetensors", "-o", stats, "--no-progress"]
        code, out, err = run(*arguments, "--top-k", "1", "--json")
        self.assertEqual(code, OK, out + err)
        layers = [e for e in map(json.loads, out.splitlines()) if e["event"] == "layer"]
        self.assertEqual([sum(e["tokens_per_expert"]) for e in layers], [24, 24])
        holes = {e["layer"]: e["uncalibrated"] for e in layers if e["uncalibrated"]}
        self.assertTrue(holes)
        for layer, experts in holes.items():
            self.assertIn(f"layer {layer}: {len(experts)} expert(s) saw no token: {', '.join(map(str, experts))}", err)
        summary = json.loads((stats / "calibration.json").read_text())
        self.assertEqual({e["layer"]: e["experts"] for e in summary["uncalibrated"]}, holes)
        code, out, err = run(*arguments, "--top-k", "1")
        self.assertEqual(code, OK, err)
        self.assertEqual(out.count("there already"), 2)
        self.assertEqual(run(*arguments, "--route-all")[0], USAGE)
        self.assertEqual(run(*arguments, "--memory", "1K", "-o", self.dir / "other")[0], USAGE)
        self.assertEqual(run(*arguments, "--memory", "much")[0], USAGE)

    def test_names_only_needs_no_weights(self):
        for directory in filter(pathlib.Path.is_dir, (GOLDEN / "indexes").iterdir()):
            code, out, err = run("verify", directory, "--names-only", "--json")
            self.assertEqual(code, OK, out + err)
            names = next(e for e in map(json.loads, out.splitlines()) if e["event"] == "names")
            self.assertEqual(names["unknown"], 0)

    def test_a_directory_that_is_not_there_is_an_environment_error(self):
        code, _, err = run("verify", self.dir / "nothing")
        self.assertEqual(code, ENVIRONMENT)
        self.assertIn("nothing", err)

    def test_an_unknown_quantization_is_refused_by_name(self):
        directory = self.copy_golden("mixtral")
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "hqq"}
        (directory / "config.json").write_text(json.dumps(config))
        code, _, err = run("verify", directory)
        self.assertEqual(code, FINDING)
        self.assertIn("hqq", err)

    def copy_with_a_negative_input_scale(self):
        directory = self.dir / "nvfp4"
        shutil.copytree(GOLDEN / "quant" / "modelopt-nvfp4-mixtral", directory)
        for path in directory.iterdir():
            path.chmod(0o644)
        tensors = read_file(directory / "model.safetensors")
        self.scale = next(n for n in tensors if n.endswith("experts.3.w2.input_scale"))
        dtype, shape, _ = tensors[self.scale]
        tensors[self.scale] = (dtype, shape, struct.pack("<f", -1.0))
        write_file(directory / "model.safetensors", tensors)
        return directory

    def test_a_scale_that_cannot_be_right_is_a_finding(self):
        directory = self.copy_with_a_negative_input_scale()
        code, out, err = self.verify(directory, "--activations", "f32", "--json")
        self.assertEqual(code, FINDING, out + err)
        findings = [e for e in map(json.loads, out.splitlines()) if e["event"] == "finding"]
        self.assertEqual([(f["kind"], f["tensor"], f["layer"], f["expert"], f["part"], f["element"]) for f in findings],
                         [("input_scale", self.scale, 0, 3, "w2", 0)])
        self.assertEqual(run("run", directory, "--tokens", "3")[0], FINDING)
        self.assertEqual(run("bench", directory, "--tokens", "1", "--seconds", "0.02")[0], FINDING)

    def test_allow_makes_warnings_of_a_kind(self):
        directory = self.copy_with_a_negative_input_scale()
        code, out, err = self.verify(directory, "--activations", "f32", "--json", "--allow", "input_scale",
                                     "--allow", "zero_scale")
        self.assertEqual(code, OK, out + err)
        self.assertIn(self.scale, err)
        events = [json.loads(line) for line in out.splitlines()]
        self.assertEqual([e["kind"] for e in events if e["event"] == "warning"], ["input_scale"])
        code, _, err = run("run", "--allow", "input_scale", directory, "--tokens", "3", "--activations", "bf16")
        self.assertEqual(code, OK, err)
        self.assertIn(self.scale, err)
        code, _, err = run("bench", directory, "--allow", "input_scale", "--tokens", "1", "--seconds", "0.02",
                           "--activations", "bf16")
        self.assertIn(self.scale, err)  # tiny weights may exceed the ceiling: the code says nothing
        self.assertEqual(self.verify(directory, "--allow", "zero_scale")[0], FINDING)

    def test_structure_cannot_be_allowed(self):
        for command in ("verify", "run", "bench"):
            for kind in ("missing", "coverage", "nothing"):
                code, _, err = run(command, GOLDEN / "families" / "mixtral", "--allow", kind)
                self.assertEqual(code, USAGE, err)
                for name in ("non_finite", "zero_scale", "underflow_scale", "negative_scale", "input_scale"):
                    self.assertIn(name, err)
            self.assertIn("underflow_scale", run(command, "--help")[1])

    def test_an_impossible_split_is_a_usage_error(self):
        for split in (["--ep", "9"], ["--tp", "49"], ["--ep", "4", "--dp", "3"], ["--tp", "0"]):
            self.assertEqual(self.verify(GOLDEN / "families" / "mixtral", *split)[0], USAGE, split)

    def test_verify_prints_a_matrix_of_ranks(self):
        golden = GOLDEN / "families" / "mixtral"
        reference = golden / "moe_io.safetensors"
        code, out, _ = run("verify", golden, "--reference", reference, "--activations", "f32", "--matrix", "--json")
        self.assertEqual(code, OK, out)
        events = [json.loads(line) for line in out.splitlines()]
        cells = [e for e in events if e["event"] == "cell"]
        self.assertEqual(len(cells), 32)
        self.assertEqual({c["exchange"] for c in cells}, {"allgather_reducescatter", "all_to_all"})
        self.assertTrue(all(c["ok"] for c in cells))
        self.assertTrue(all(c["bit_equal"] == (c["combine"] == "ordered") for c in cells))
        self.assertIn({"event": "matrix", "cells": 32, "passed": 32, "ordered": 16, "bit_equal": 16}, events)

    def test_the_matrix_notices_numbers_that_are_wrong(self):
        golden = self.copy_golden("mixtral")
        tensors = read_file(golden / "moe_io.safetensors")
        name = next(n for n in tensors if n.endswith(".output"))
        dtype, shape, data = tensors[name]
        tensors[name] = (dtype, shape, data[4:] + data[:4])
        write_file(golden / "moe_io.safetensors", tensors)
        code, out, _ = run("verify", golden, "--reference", golden / "moe_io.safetensors", "--activations", "f32", "--matrix")
        self.assertEqual(code, FINDING)
        self.assertIn("matrix: 0 of 32", out)

    def test_what_ranks_cannot_do_together_is_a_usage_error_with_the_reason(self):
        golden = GOLDEN / "families" / "mixtral"
        for options, reason in [
            (["--no-reduce", "--dp", "2"], "dispatches itself"),
            (["--no-reduce", "--combine", "ordered"], "no sums to put into order"),
            (["--no-reduce", "--exchange", "all_to_all"], "nothing is to be sent"),
            (["--no-reduce", "--sequence-parallel"], "exchange their parts"),
            (["--reduce", "native"], "threads of one process have no reduction of their own"),
            (["--matrix"], "--reference"),
        ]:
            code, _, err = run("verify", golden, "--ep", 2, *options)
            self.assertEqual(code, USAGE, options)
            self.assertIn(reason, err)

    def test_run_says_which_exchange_and_why(self):
        golden = GOLDEN / "families" / "mixtral"
        code, out, _ = run("run", golden, "--ep", 4, "--dp", 2, "--exchange-slots", 64, "--tokens", 9)
        self.assertEqual(code, OK)
        self.assertIn("exchange: all_to_all (a token of top-2 goes to 1.8 of 4 EP ranks: not more than half), 64 slots", out)
        self.assertIn("moved", out)
        code, out, _ = run("run", golden, "--ep", 2, "--combine", "ordered", "--tokens", 9)
        self.assertIn("exchange: allgather_reducescatter", out)
        self.assertIn("combine ordered", out)

    def test_gguf_directory_and_file(self):
        golden = GOLDEN / "gguf" / "q4_k_m"
        for path in (golden, golden / "model.gguf"):
            code, out, _ = run("inspect", path, "--json")
            self.assertEqual(code, OK)
            layer = next(e for e in map(json.loads, out.splitlines()) if e["event"] == "layer")
            self.assertEqual(layer["experts_dtype"], "w1, w3: q4_k; w2: q6_k")
            code, out, _ = run("verify", path, "--reference", golden / "moe_io.safetensors",
                               "--activations", "f32", "--tp", "2", "--ep", "2", "--json")
            self.assertEqual(code, OK)
        damaged = self.dir / "damaged.gguf"
        damaged.write_bytes((golden / "model.gguf").read_bytes().replace(b"qwen3moe", b"qwen9moe"))
        code, _, err = run("verify", damaged)
        self.assertEqual(code, FINDING)
        self.assertIn("qwen9moe", err)

    def test_synth_run_inspect(self):
        directory = self.dir / "tiny"
        self.assertEqual(run("synth", "--shape", "tiny", "--layers", "2", directory)[0], OK)
        self.assertEqual(run("synth", "--shape", "tiny", directory)[0], USAGE, "must not overwrite")
        self.assertEqual(run("verify", directory)[0], OK)
        code, out, _ = run("inspect", directory, "--json", "--ep", "2", "--rank", "1")
        self.assertEqual(code, OK)
        plan = next(e for e in map(json.loads, out.splitlines()) if e["event"] == "plan")
        self.assertEqual(plan["bytes_owned"], 2 * 4 * 3 * 64 * 48 * 2)
        output = self.dir / "out.safetensors"
        code, out, _ = run("run", directory, "--tokens", "5", "--output", output, "--json")
        self.assertEqual(code, OK)
        self.assertEqual(read_file(output)["layers.1.output"][1], [5, 64])
        result = json.loads(out.splitlines()[-1])
        self.assertEqual(result["event"], "result")
        self.assertGreater(result["peak_rss_bytes"], 0)

    def test_inspect_shows_schemes_by_projection_and_expert(self):
        directory = self.dir / "mixed"
        shutil.copytree(GOLDEN / "quant" / "llmcompressor-w8a8", directory)
        config = json.loads((directory / "config.json").read_text())
        groups = config["quantization_config"]["config_groups"]
        group = json.loads(json.dumps(groups["group_0"]))
        group["targets"] = [r"re:.*experts\.[13]\.down_proj$"]
        group["weights"]["num_bits"] = 7
        groups["group_1"] = group
        (directory / "config.json").write_text(json.dumps(config))
        code, out, _ = run("inspect", directory, "--json")
        self.assertEqual(code, OK)
        events = {e["event"]: e for e in map(json.loads, out.splitlines())}
        int8 = "compressed-tensors int-quantized, 8 bits, a scale a row"
        self.assertEqual(events["layer"]["experts_dtype"],
                         f"w1, w3: [{int8}]; w2: [{int8.replace('8 bits', '7 bits')}] (experts 1,3) "
                         f"+ [{int8}] (experts 0,2)")
        self.assertEqual(events["plan"]["quantized_matrices"], 4 * 3)

    def test_synth_shapes_load(self):
        # With few experts, so that the files stay small; deepseek-v3 and mixtral-8x7b would still be
        # gigabytes.
        for shape, experts in {"qwen3-30b-a3b": 8, "qwen3.5-35b-a3b": 8, "gpt-oss-20b": 4, "olmoe-1b-7b": 8}.items():
            directory = self.dir / shape
            self.assertEqual(run("synth", "--shape", shape, "--experts", experts, directory)[0], OK, shape)
            code, out, err = run("verify", directory, "--tp", "2")
            self.assertEqual(code, OK, shape + out + err)
            shutil.rmtree(directory)

    def test_synth_formats_load(self):
        formats = {"fp8-block": "fp8", "fp8-channel": "float-quantized", "int8": "int-quantized",
                   "int4-g128": "pack-quantized", "int4-g32": "pack-quantized", "awq": "awq", "gptq-asym": "gptq",
                   "mxfp4": "mxfp4-pack-quantized", "nvfp4": "NVFP4"}
        for form, method in formats.items():
            directory = self.dir / form
            code, _, err = run("synth", "--shape", "qwen3-30b-a3b", "--experts", "8", "--format", form, directory)
            self.assertEqual(code, OK, form + err)
            self.assertEqual(run("verify", "--names-only", directory)[0], OK, form)
            code, out, err = run("inspect", directory, "--json")
            self.assertEqual(code, OK, form + err)
            layer = next(e for e in map(json.loads, out.splitlines()) if e["event"] == "layer")
            self.assertIn(method, layer["experts_dtype"])
            self.assertEqual(layer["router_dtype"], "bf16")
            if form in ("gptq-asym", "mxfp4"):
                code, out, err = run("verify", directory, "--tp", "2")
                self.assertEqual(code, OK, form + out + err)
            shutil.rmtree(directory)

    def test_synth_refuses_formats_with_the_reason(self):
        directory = self.dir / "refused"
        code, _, err = run("synth", "--shape", "tiny", "--format", "fp3", directory)
        self.assertEqual(code, USAGE)
        for word in ("fp3", "bf16", "fp8-block", "gptq-asym", "nvfp4"):
            self.assertIn(word, err)
        code, _, err = run("synth", "--shape", "gpt-oss-20b", "--format", "int4-g128", directory)
        self.assertEqual(code, USAGE)
        self.assertIn("rows of 2880 do not divide into groups of 128", err)
        self.assertFalse(directory.exists(), "nothing is written")

    def test_run_reads_its_input(self):
        directory = GOLDEN / "families" / "mixtral"
        reference = read_file(directory / "moe_io.safetensors")
        source = self.dir / "in.safetensors"
        write_file(source, {"hidden_states": reference["model.layers.1.mlp.input"]})
        output = self.dir / "out.safetensors"
        code, _, err = run("run", directory, "--layers", "1", "--input", source, "--output", output,
                           "--activations", "f32")
        self.assertEqual(code, OK, err)
        found = struct.unpack(f"<{24 * 64}f", read_file(output)["layers.1.output"][2])
        expected = struct.unpack(f"<{24 * 64}f", reference["model.layers.1.mlp.output"][2])
        worst = max(abs(a - b) for a, b in zip(found, expected))
        self.assertLess(worst, 1e-4)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
