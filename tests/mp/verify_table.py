"""Verifies every golden checkpoint on ranks that mpirun starts, over layouts of ranks, and prints the
table: rows are checkpoints, columns layouts.

usage: verify_table.py GANTRY GOLDEN_ROOT [--only REGEX] [--layouts NAME,...] [-- OPTION ...]

Options after -- go to every `gantry verify`. A cell is the worst relative error, "-" where the layout
is impossible for the model (gantry says why), or FAILED. The exit code is 1 if a cell failed.
"""
import argparse
import json
import pathlib
import re
import sys

from launcher import mpirun

LAYOUTS = {
    "tp2": (2, ["--tp", 2]),
    "ep2": (2, ["--ep", 2]),
    "ep3rr": (3, ["--ep", 3, "--placement", "round_robin"]),
    "ep4": (4, ["--ep", 4]),
    "tp2ep2": (4, ["--tp", 2, "--ep", 2]),
    "dp2ep2": (2, ["--ep", 2, "--dp", 2]),
}


def goldens(root):
    """Directories with a checkpoint and a reference."""
    return sorted(path.parent for path in root.rglob("moe_io.safetensors"))


def cell(options, directory, layout, more):
    num_ranks, sizes = LAYOUTS[layout]
    command = [options.gantry, "verify", directory, "--reference", directory / "moe_io.safetensors",
               "--activations", "f32", "--json", "--no-progress", *sizes, *more]
    result = mpirun((num_ranks, command), executable=options.mpirun)
    events = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    errors = [event["rel"] for event in events if event["event"] == "block"]
    alike = result.codes == {rank: result.exit_code for rank in range(num_ranks)}
    if result.exit_code == 0 and alike and errors:
        return f"{max(errors):.1e}", True
    if re.search(r"> intermediate size|> \d+ experts|infeasible", result.stderr):
        return "-", True
    print(f"{directory} {layout}: {result}", file=sys.stderr)
    return "FAILED", False


def main():
    arguments = sys.argv[1:]
    more = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("gantry")
    parser.add_argument("golden", type=pathlib.Path)
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--only", default="", help="regular expression on the directory")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    options = parser.parse_args(arguments[: len(arguments) - len(more) - 1] if more else arguments)
    layouts = options.layouts.split(",")
    directories = [path for path in goldens(options.golden) if re.search(options.only, str(path))]
    if not directories:
        sys.exit(f"{options.golden}: no checkpoint with a moe_io.safetensors matches '{options.only}'")
    width = max(len(str(path.relative_to(options.golden))) for path in directories)
    print(" " * width + "".join(f"{name:>10}" for name in layouts), flush=True)
    failed = 0
    for directory in directories:
        row = f"{str(directory.relative_to(options.golden)):{width}}"
        for layout in layouts:
            text, good = cell(options, directory, layout, more)
            failed += not good
            row += f"{text:>10}"
        print(row, flush=True)
    print(f"{len(directories)} checkpoints x {len(layouts)} layouts: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
