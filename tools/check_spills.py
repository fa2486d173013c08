#!/usr/bin/env python3
"""Fails if a GPU kernel keeps registers in memory, if ptxas serialised a wgmma kernel, or if one that
moves registers between its warps starts with others than it moves (it would wait for ever): compiles
kernels/cuda/gemm_*.cu and layer_kernels.cu for every --arch and *_sm90a.cu for 90a, with ptxas -v.

    tools/check_spills.py [--nvcc NVCC] [--arch 80 --arch 90a ...] [--kernels REGEX] [--jobs N]
                          [--list] [--ptxas-log F]

--ptxas-log reads what a compiler already said (- for stdin) instead of compiling; without a -v log
only what ptxas says unasked is checked (--unasked). --list prints registers of all kernels.
"""
import argparse
import concurrent.futures
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
IGNORED = re.compile(r".*setmaxnreg.*ignored.*", re.IGNORECASE)
SERIAL = re.compile(r"wgmma\.mma_async instructions are serialized.*?function '(\S+)'")


def parse(log):
    """Yields (kernel, arch, registers, stack, spill stores, spill loads) of a ptxas -v log."""
    kernel = arch = spills = None
    for line in log.splitlines():
        if match := ENTRY.search(line):
            kernel, arch, spills = match[1], match[2], None
        elif (match := SPILLS.search(line)) and kernel:
            spills = tuple(int(v) for v in match.groups())
        elif (match := REGISTERS.search(line)) and kernel and spills:
            yield (kernel, arch, int(match[1])) + spills
            kernel = None


def compile_log(nvcc, source, archs):
    command = [nvcc, "-std=c++20", "-O3", "-DNDEBUG", f"-I{ROOT}", "-Xptxas", "-v", "-c", "-o",
               "/dev/null", str(source)]
    for arch in archs:
        command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"check_spills: {' '.join(command)}:\n{result.stderr}")
    return result.stderr


def compile_all(options):
    folder = ROOT / "kernels/cuda"
    archs = options.arch or ["80", "90a"]
    work = [(s, [a]) for a in archs for s in sorted(folder.glob("gemm_*.cu")) + [folder / "layer_kernels.cu"]]
    if "90a" in archs:
        work += [(s, ["90a"]) for s in sorted(folder.glob("*_sm90a.cu"))]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        return "".join(pool.map(lambda w: compile_log(options.nvcc, *w), work))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvcc", default="/usr/local/cuda/bin/nvcc")
    parser.add_argument("--arch", action="append")
    parser.add_argument("--kernels", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--unasked", action="store_true")
    parser.add_argument("--ptxas-log")
    options = parser.parse_args()
    if options.ptxas_log:
        log = sys.stdin.read() if options.ptxas_log == "-" else Path(options.ptxas_log).read_text()
    else:
        log = compile_all(options)
    seen = failed = 0
    for kernel, arch, registers, stack, stores, loads in parse(log):
        if not re.search(options.kernels, kernel):
            continue
        seen += 1
        bad = stores + loads > 0
        failed += bad
        if bad or options.list:
            print(f"{arch} {kernel}: {registers} registers, stack {stack}, spills {stores} + {loads} bytes")
        # 65536 registers over 384 threads: 40 * 128 + 232 * 256 of WgmmaGemm's setmaxnreg.
        if "WgmmaGemm" in kernel and registers != 168:
            print(f"check_spills: {kernel}: {registers} registers, expected 168")
            failed += 1
    ignored = IGNORED.findall(log)
    for line in ignored:
        print(f"check_spills: {line}")
    serial = sorted(set(SERIAL.findall(log)))
    for kernel in serial:
        print(f"check_spills: ptxas serialised the products of {kernel}")
    if seen == 0 and not options.unasked:
        sys.exit("check_spills: no kernel found in what ptxas said")
    found = "registers not in this log" if seen == 0 else f"{seen} kernels, {failed} with spills"
    print(f"check_spills: {found}, {len(serial)} serialised")
    return 1 if failed or serial or ignored else 0


if __name__ == "__main__":
    sys.exit(main())
