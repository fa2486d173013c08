"""What the tests of ranks as processes share: how mpirun is called here."""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

# One machine, however small: more ranks than cores, no binding, as root (in containers), without
# the system calls that containers forbid.
ENVIRONMENT = os.environ | {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}


def each_rank_reports(command, folder):
    """The command, for a shell, so that every rank leaves its exit code in `folder`."""
    words = " ".join("'" + str(word).replace("'", "'\\''") + "'" for word in command)
    return f"{words}; code=$?; echo $code > {folder}/$OMPI_COMM_WORLD_RANK; exit $code"


class Result:
    def __init__(self, done, codes):
        self.exit_code = done.returncode
        self.codes = codes  # of each rank that ended by itself
        self.stdout = done.stdout
        self.stderr = done.stderr

    def __str__(self):
        return f"exit code {self.exit_code}, of ranks {self.codes}\n{self.stdout}\n{self.stderr}"


def mpirun(*apps, variables=None, timeout=120, executable="mpirun"):
    """Runs `mpirun -np N COMMAND : -np M COMMAND2 ...`; each app is (N, [word, ...])."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [executable]
        for number, (num_ranks, command) in enumerate(apps):
            arguments += [":"] if number else []
            arguments += ["-np", str(num_ranks), "sh", "-c", each_rank_reports(command, folder)]
        done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=timeout,
                              env=ENVIRONMENT | (variables or {}))
        texts = {int(path.name): path.read_text() for path in pathlib.Path(folder).iterdir()}
    # An empty one is of a rank that was ended between making the file and writing to it.
    codes = {rank: int(text) for rank, text in texts.items() if text}
    return Result(done, codes)


def lines_with(text, pattern):
    return [line for line in text.splitlines() if re.search(pattern, line)]


def run_tests(at_once):
    """unittest.main() for tests that mostly wait for mpirun: `at_once` of them at a time."""

    def flatten(suite):
        for test in suite:
            yield from flatten(test) if isinstance(test, unittest.TestSuite) else [test]

    def run(test):
        result = unittest.TestResult()
        start = time.monotonic()
        test.run(result)
        problems = [text for _, text in result.failures + result.errors]
        print(f"{test.id()} ... {'FAILED' if problems else 'ok'} ({time.monotonic() - start:.1f} s)", flush=True)
        return problems

    tests = list(flatten(unittest.defaultTestLoader.loadTestsFromModule(sys.modules["__main__"])))
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        problems = [text for texts in pool.map(run, tests) for text in texts]
    print(*problems, f"{len(tests)} tests, {len(problems)} problem(s)", sep="\n")
    sys.exit(1 if problems or not tests else 0)
