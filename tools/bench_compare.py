#!/usr/bin/env python3
"""Compares the speed of this build with the baseline of this kind of CPU, by ratios only.

    tools/bench_compare.py record build/cpu/tools/gantry     # writes bench/baselines/<cpu kind>.jsonl
    tools/bench_compare.py check build/cpu/tools/gantry      # runs the same cases and compares
    tools/bench_compare.py compare OLD.jsonl NEW.jsonl       # two files of rows

A row is one case (shape, format, activations, routing, tokens) with
    of_ceiling  the machine's least time (bandwidth and peak of that run) over the median time
    vs_bf16     the time of bf16 weights over the time of this format, same run and tokens
    rel_err     error against a reference
Times are not kept: they say nothing on another machine, or on the same one when it is shared.
Noise only slows down, so of several turns the best one counts.

Exit code: 0 fine; 1 a case fell by more than the tolerance, its error grew, or a case of the
baseline is missing; 2 usage, a failed run, or no baseline for this kind of CPU.
"""

import argparse
import json
import pathlib
import subprocess
import sys

BASELINES = pathlib.Path(__file__).resolve().parent.parent / "bench" / "baselines"
# Shape, format and activations ("" for what the format declares). bf16 comes first in its shape:
# the others are compared with it.
CASES = [(shape, *format)
         for shape in ("qwen3-30b-a3b", "gpt-oss-20b")
         for format in (("bf16", ""), ("int8", ""), ("fp8-block", ""), ("int4-g64", ""),
                        ("int4-g64", "int8"), ("mxfp4", ""), ("mxfp4", "int8"), ("nvfp4", ""))]
TOKENS = "1,16,256,1024"
KEY = ("shape", "format", "activations", "routing", "tokens")
# Errors follow from the same seed; another order of sums moves the largest one a little.
ERROR_GROWTH = 1.5


def cpu_kind(cpuinfo="/proc/cpuinfo"):
    """Vendor, family, model and what kernels are chosen by: amd-25-17-vnni-bf16."""
    fields = {}
    for line in open(cpuinfo, encoding="utf-8"):
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    vendor = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(fields.get("vendor_id"), "other")
    flags = fields.get("flags", "").split()
    known = (("avx512f", "avx512"), ("avx512_vnni", "vnni"), ("avx512_bf16", "bf16"),
             ("amx_tile", "amx"))
    isa = [name for flag, name in known if flag in flags] or ["avx2" if "avx2" in flags else "none"]
    return "-".join([vendor, fields.get("cpu family", "x"), fields.get("model", "x"), *isa])


def run_case(gantry, shape, format, activations, tokens, threads):
    command = [gantry, "bench", "--shape", shape, "--format", format, "--tokens", tokens, "-o",
               "jsonl", "--quiet"]
    if activations:
        command += ["--activations", activations]
    if threads:
        command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    # Exit code 1 with rows: a ceiling was passed, because the machine's bandwidth moved.
    if not rows or done.returncode > 1:
        print(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr}", file=sys.stderr)
        sys.exit(2)
    return rows


def measure(gantry, tokens, threads, turns, cases):
    """All cases, `turns` times; of each row the turn with the best of_ceiling."""
    best = {}
    for _ in range(turns):
        bf16 = {}
        for shape, format, activations in cases:
            for row in run_case(gantry, shape, format, activations, tokens, threads):
                of_bf16 = (shape, row["routing"], row["tokens"])
                if format == "bf16":
                    bf16[of_bf16] = row["ms_median"]
                entry = {"cpu": cpu_kind(), "shape": shape, "format": format,
                         "activations": activations or "declared", "routing": row["routing"],
                         "tokens": row["tokens"], "of_ceiling": round(row["of_ceiling"], 3),
                         "vs_bf16": round(bf16.get(of_bf16, 0.0) / row["ms_median"], 3),
                         "rel_err": float(f"{row['rel_err']:.3g}")}
                key = tuple(entry[name] for name in KEY)
                if key not in best or best[key]["of_ceiling"] < entry["of_ceiling"]:
                    best[key] = entry
    return list(best.values())


def read_rows(path):
    rows = {}
    for number, line in enumerate(open(path, encoding="utf-8"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[tuple(row[name] for name in KEY)] = row
            float(row["of_ceiling"]), float(row["rel_err"])
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path}:{number}: expected a row with {', '.join(KEY)}, of_ceiling and rel_err: "
                  f"{error!r}", file=sys.stderr)
            sys.exit(2)
    return rows


def compare(old, new, tolerance):
    """Prints one line a case and returns how many are worse."""
    worse = 0
    print(f"{'case':56} {'of ceiling':>16} {'vs bf16':>16} {'error':>20}")
    for key, before in old.items():
        name = " ".join(str(part) for part in key)
        after = new.get(key)
        if after is None:
            print(f"{name:56} missing")
            worse += 1
            continue
        verdicts = []
        if after["of_ceiling"] < before["of_ceiling"] * (1.0 - tolerance):
            verdicts.append("SLOWER")
        # Written so that NaN is worse than anything.
        if not after["rel_err"] <= before["rel_err"] * ERROR_GROWTH:
            verdicts.append("LESS EXACT")
        worse += bool(verdicts)
        print(f"{name:56} {before['of_ceiling']:7.3f} {after['of_ceiling']:8.3f} "
              f"{before.get('vs_bf16', 0):7.2f} {after.get('vs_bf16', 0):8.2f} "
              f"{before['rel_err']:9.1e} {after['rel_err']:10.1e} {' '.join(verdicts)}".rstrip())
    for key in new.keys() - old.keys():
        print(f"{' '.join(str(part) for part in key):56} new")
    return worse


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "check"):
        command = commands.add_parser(name)
        command.add_argument("gantry")
        command.add_argument("--tokens", default=TOKENS)
        command.add_argument("--threads", type=int, default=0)
        command.add_argument("--turns", type=int, default=2)
        command.add_argument("--only", action="append", default=[],
                             help="a shape or a format; repeatable")
        command.add_argument("--baselines", type=pathlib.Path, default=BASELINES)
        if name == "check":
            command.add_argument("--tolerance", type=float, default=0.15)
    command = commands.add_parser("compare")
    command.add_argument("old")
    command.add_argument("new")
    command.add_argument("--tolerance", type=float, default=0.15)
    options = parser.parse_args()
    if options.command == "compare":
        return 1 if compare(read_rows(options.old), read_rows(options.new),
                            options.tolerance) else 0

    path = options.baselines / f"{cpu_kind()}.jsonl"
    shapes = {case[0] for case in CASES}
    formats = {case[1] for case in CASES}
    only = set(options.only)
    if only - shapes - formats:
        parser.error(f"--only: expected one of {', '.join(sorted(shapes | formats))}")
    cases = [case for case in CASES
             if (case[0] in only or only.isdisjoint(shapes))
             and (case[1] in only | {"bf16"} or only.isdisjoint(formats))]
    if options.command == "check" and not path.exists():
        print(f"no baseline for this kind of CPU: {path}; record one", file=sys.stderr)
        return 2
    rows = measure(options.gantry, options.tokens, options.threads, options.turns, cases)
    if options.command == "record":
        options.baselines.mkdir(parents=True, exist_ok=True)
        kept = read_rows(path) if path.exists() else {}
        kept.update({tuple(row[name] for name in KEY): row for row in rows})
        path.write_text("".join(json.dumps(row) + "\n" for row in kept.values()), encoding="utf-8")
        print(f"{len(rows)} rows recorded in {path}")
        return 0
    measured = {tuple(row[name] for name in KEY): row for row in rows}
    wanted = set(cases)
    tokens = {int(count) for count in options.tokens.split(",")}
    old = {key: row for key, row in read_rows(path).items()
           if (key[0], key[1], "" if key[2] == "declared" else key[2]) in wanted
           and key[4] in tokens}
    return 1 if compare(old, measured, options.tolerance) else 0


if __name__ == "__main__":
    sys.exit(main())
