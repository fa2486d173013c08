"""Verifies every golden checkpoint on ranks that mpirun starts, over layouts of ranks with both
exchanges, and prints the table: rows are checkpoints, columns layouts and, below each other, exchanges.

usage: verify_table.py GANTRY GOLDEN_ROOT... [--only REGEX] [--part K/N] [--layouts NAME,...]
                       [--exchanges NAME,...] [-- OPTION ...]

Options after -- go to every `gantry verify`. A cell is the worst relative error, "-" where the layout
is impossible for the model (gantry says why), or FAILED. A checkpoint that one process cannot read is
listed with the reason and is no failure of ranks. --part 2/3 takes the second third of the checkpoints.
The last lines give the worst error, where it was, and how many cells failed; the exit code is 1 if one
did, or if no cell was compared at all.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys

from launcher import ENVIRONMENT, mpirun

LAYOUTS = {
    "tp2": (2, ["--tp", 2]),
    "ep2": (2, ["--ep", 2]),
    "ep3rr": (3, ["--ep", 3, "--placement", "round_robin"]),
    "ep4": (4, ["--ep", 4]),
    "tp2ep2": (4, ["--tp", 2, "--ep", 2]),
    "dp2ep2": (2, ["--ep", 2, "--dp", 2]),
}
EXCHANGES = {"allgather_reducescatter": "ag", "all_to_all": "a2a"}
OPTIONS_END = "--"


def goldens(root):
    """Directories with a checkpoint and a reference."""
    return sorted(path.parent for path in root.rglob("moe_io.safetensors"))


def verify_command(options, directory, more):
    return [options.gantry, "verify", directory, "--reference", directory / "moe_io.safetensors",
            "--activations", "f32", "--json", "--no-progress", *more]


def events_of(stdout):
    return [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]


def unreadable(options, directory):
    """Why one process cannot read the checkpoint; empty if it can."""
    words = [str(word) for word in verify_command(options, directory, [])]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=ENVIRONMENT)
    if done.returncode == 0:
        return ""
    findings = [event["message"] for event in events_of(done.stdout) if event["event"] == "finding"]
    return " | ".join(findings or done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])


class Table:
    def __init__(self, options, more):
        self.options = options
        self.more = more
        self.columns = [(layout, exchange) for layout in options.layouts.split(",")
                        for exchange in options.exchanges.split(",")]
        self.compared = self.impossible = self.failed = 0
        self.unread = []
        self.worst = (0.0, "")

    def cell(self, directory, layout, exchange):
        num_ranks, sizes = LAYOUTS[layout]
        command = verify_command(self.options, directory, [*sizes, "--exchange", exchange, *self.more])
        result = mpirun((num_ranks, command), executable=self.options.mpirun)
        errors = [event["rel"] for event in events_of(result.stdout) if event["event"] == "block"]
        alike = result.codes == {rank: result.exit_code for rank in range(num_ranks)}
        if result.exit_code == 0 and alike and errors:
            self.compared += 1
            self.worst = max(self.worst, (max(errors), f"{directory.name}, {layout}, {exchange}"))
            return f"{max(errors):.1e}"
        if re.search(r"> intermediate size|> \d+ experts|infeasible", result.stderr):
            self.impossible += 1
            return "-"
        self.failed += 1
        print(f"{directory} {layout} {exchange}: {result}", file=sys.stderr)
        return "FAILED"

    def print(self, directories):
        width = max(len(f"{path.parent.name}/{path.name}") for path in directories)
        for names in ([layout for layout, _ in self.columns], [EXCHANGES[exchange] for _, exchange in self.columns]):
            print(" " * width + "".join(f"{name:>9}" for name in names))
        for directory in directories:
            row = f"{directory.parent.name + '/' + directory.name:{width}}"
            cells = [self.cell(directory, *column) for column in self.columns]
            if set(cells) == {"FAILED"} and (reason := unreadable(self.options, directory)):
                self.failed -= len(cells)
                self.unread.append(directory)
                print(f"{row} not read by one process either: {reason}", flush=True)
                continue
            print(row + "".join(f"{text:>9}" for text in cells), flush=True)
        print(f"{len(directories)} checkpoints x {len(self.columns)}: {self.compared} compared, {self.impossible} "
              f"impossible, {len(self.unread)} checkpoints not read, {self.failed} failed")
        print(f"worst relative error {self.worst[0]:.1e} ({self.worst[1]})")
        return 0 if self.compared > 0 and self.failed == 0 else 1


def part_of(directories, text):
    number, count = (int(word) for word in text.split("/"))
    if not 1 <= number <= count:
        sys.exit(f"--part: expected 1/N to N/N, found '{text}'")
    return directories[len(directories) * (number - 1) // count : len(directories) * number // count]


def main():
    arguments = sys.argv[1:]
    more = []
    if OPTIONS_END in arguments:
        end = arguments.index(OPTIONS_END)
        arguments, more = arguments[:end], arguments[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("gantry")
    parser.add_argument("golden", type=pathlib.Path, nargs="+")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--only", default="", help="regular expression on the directory")
    parser.add_argument("--part", default="1/1", help="K/N: the K-th of N parts of the checkpoints")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--exchanges", default=",".join(EXCHANGES))
    options = parser.parse_args(arguments)
    unknown = [name for name in options.layouts.split(",") if name not in LAYOUTS]
    unknown += [name for name in options.exchanges.split(",") if name not in EXCHANGES]
    if unknown:
        parser.error(f"expected layouts of {list(LAYOUTS)} and exchanges of {list(EXCHANGES)}, found {unknown}")
    directories = [path for root in options.golden for path in goldens(root) if re.search(options.only, str(path))]
    directories = part_of(directories, options.part)
    if not directories:
        sys.exit(f"{options.golden}: no checkpoint with a moe_io.safetensors matches '{options.only}'")
    return Table(options, more).print(directories)


if __name__ == "__main__":
    sys.exit(main())
