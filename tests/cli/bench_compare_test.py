#!/usr/bin/env python3
"""tools/bench_compare.py with a stand-in for gantry, whose figures are given: nothing is timed."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "bench_compare.py"

STAND_IN = """#!{python} -SE
import json, os, sys
arguments = sys.argv[1:]
option = lambda name, default: arguments[arguments.index(name) + 1] if name in arguments else default
case = option("--format", "") + "/" + option("--activations", "declared")
change = json.loads(os.environ.get("CHANGE", "{{}}")).get(case, {{}})
if "exit" in change:
    sys.exit(change["exit"])
for tokens in option("--tokens", "").split(","):
    bf16 = option("--format", "") == "bf16"
    row = dict(shape=option("--shape", ""), impl="gantry x", routing="uniform", tokens=int(tokens),
               ms_median=8.0 if bf16 else 4.0, of_ceiling=0.8, rel_err=2e-3)
    row.update(change)
    print(json.dumps(row))
"""


class BenchCompareTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.gantry = pathlib.Path(self.folder.name) / "gantry"
        self.gantry.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
        self.gantry.chmod(0o755)
        self.baselines = pathlib.Path(self.folder.name) / "baselines"

    def run_tool(self, command, *options, change=None):
        return subprocess.run(
            [sys.executable, str(TOOL), command, str(self.gantry), "--turns", "1", "--tokens",
             "1,16", "--baselines", str(self.baselines), "--only", "gpt-oss-20b",
             *(options or ("--only", "mxfp4"))], capture_output=True, text=True,
            check=False, env={**os.environ, "CHANGE": json.dumps(change or {})})

    def record(self):
        done = self.run_tool("record")
        self.assertEqual(done.returncode, 0, done.stderr)
        (file,) = self.baselines.iterdir()
        return file

    def test_rows_are_ratios_of_every_case(self):
        rows = [json.loads(line) for line in self.record().read_text().splitlines()]
        self.assertEqual(len(rows), 3 * 2)  # bf16 and twice mxfp4
        for row in rows:
            self.assertEqual(row["vs_bf16"], 1.0 if row["format"] == "bf16" else 2.0)
            self.assertFalse([name for name in row if name.startswith("ms")])

    def test_the_same_figures_are_fine(self):
        self.record()
        done = self.run_tool("check")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_slower_case_is_found_and_named(self):
        self.record()
        done = self.run_tool("check", change={"mxfp4/int8": {"of_ceiling": 0.6}})
        self.assertEqual(done.returncode, 1)
        slower = [line for line in done.stdout.splitlines() if "SLOWER" in line]
        self.assertEqual(len(slower), 2)
        self.assertTrue(all("mxfp4 int8 uniform" in line for line in slower))

    def test_what_is_within_the_tolerance_is_fine(self):
        self.record()
        change = {"mxfp4/declared": {"of_ceiling": 0.7}}
        self.assertEqual(self.run_tool("check", change=change).returncode, 0)
        self.assertEqual(
            self.run_tool("check", "--only", "mxfp4", "--tolerance", "0.1",
                          change=change).returncode, 1)

    def test_a_larger_error_and_nan_are_found(self):
        self.record()
        for error in (4e-3, float("nan")):
            done = self.run_tool("check", change={"mxfp4/int8": {"rel_err": error}})
            self.assertEqual(done.returncode, 1)
            self.assertIn("LESS EXACT", done.stdout)

    def test_only_what_was_asked_for_is_compared(self):
        self.record()
        change = {"mxfp4/declared": {"of_ceiling": 0.1}}
        self.assertEqual(self.run_tool("check", "--only", "bf16", change=change).returncode, 0)
        self.assertEqual(self.run_tool("check", "--only", "mxfp4", change=change).returncode, 1)

    def test_a_case_that_is_missing_is_found(self):
        file = self.record()
        lines = file.read_text().splitlines()
        other = pathlib.Path(self.folder.name) / "new.jsonl"
        other.write_text("\n".join(lines[1:]), encoding="utf-8")
        done = subprocess.run([sys.executable, str(TOOL), "compare", str(file), str(other)],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn("missing", done.stdout)

    def test_an_unknown_case_is_refused(self):
        self.assertEqual(self.run_tool("record", "--only", "int3").returncode, 2)

    def test_no_baseline_a_failed_run_and_damaged_rows_are_refused(self):
        self.assertEqual(self.run_tool("check").returncode, 2)
        file = self.record()
        done = self.run_tool("check", change={"mxfp4/int8": {"exit": 3}})
        self.assertEqual(done.returncode, 2)
        self.assertIn("exit code 3", done.stderr)
        file.write_text('{"shape": "x"}\n', encoding="utf-8")
        done = self.run_tool("check")
        self.assertEqual(done.returncode, 2)
        self.assertIn(f"{file}:1", done.stderr)


if __name__ == "__main__":
    unittest.main()
