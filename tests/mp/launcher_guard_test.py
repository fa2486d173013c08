"""A launcher that does not end after its ranks died in MPI_Init is ended, and no other one is.

usage: launcher_guard_test.py GANTRY CHECKPOINT

The launchers are shell scripts named mpirun that start one process as if it were a rank and then wait
for ever. (The real one locks itself up by chance only: fault_trials.py --startup-kills.)
"""
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import fault_trials
import launcher

GANTRY, CHECKPOINT = (pathlib.Path(word).resolve() for word in sys.argv[1:3])
PATIENCE = 5.0  # of the guard
SCRIPT = """#!/bin/sh
export OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2
{more}
{gantry} run {checkpoint} --ep 2 &
echo $! > {folder}/rank
exec 3<> {folder}/never
read word <&3
"""


def guards_of(pid):
    """Children of a process."""
    return [int(entry.name) for entry in pathlib.Path("/proc").iterdir()
            if entry.name.isdigit() and fault_trials.parent_of(int(entry.name)) == pid]


class Launcher:
    """Runs, with a rank that was killed in MPI_Init."""

    def __init__(self, folder, variables, more=""):
        self.errors = open(folder / "errors", "w+")
        os.mkfifo(folder / "never")
        script = folder / "mpirun"
        script.write_text(SCRIPT.format(gantry=GANTRY, checkpoint=CHECKPOINT, folder=folder, more=more))
        script.chmod(0o755)
        self.process = subprocess.Popen([script], env=launcher.ENVIRONMENT | variables, stdout=subprocess.DEVNULL,
                                        stderr=self.errors, start_new_session=True)
        self.guarded = self.kill_rank(folder / "rank")

    @staticmethod
    def kill_rank(file):
        """Whether there was a guard when it was killed."""
        while not file.exists() or not file.read_text().strip():
            time.sleep(0.001)
        rank = int(file.read_text())
        end = time.monotonic() + 10.0
        guards = []
        while time.monotonic() < end and fault_trials.still_there(rank) and not guards:
            guards = guards_of(rank)
        try:
            os.kill(rank, signal.SIGKILL)
        except ProcessLookupError:
            pass
        time.sleep(0.2)
        return any(fault_trials.still_there(guard) for guard in guards)

    def alive(self):
        return self.process.poll() is None

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        with self.errors:
            self.errors.seek(0)
            return self.errors.read()


class LauncherGuardTest(unittest.TestCase):
    def start(self, root, name, variables, more="", guarded=True):
        for number in range(10):  # MPI may have started before the kill
            folder = root / f"{name}{number}"
            folder.mkdir()
            job = Launcher(folder, variables, more)
            if job.guarded == guarded:
                return job
            job.end()
        self.fail(f"{name}: the rank could not be killed in MPI_Init")

    def test_only_a_launcher_without_children_is_ended(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            jobs = [self.start(root, "busy", {}, more="sleep 1000 &"),
                    self.start(root, "kept", {"GANTRY_KEEP_LAUNCHER": "1"}, guarded=False),
                    self.start(root, "stuck", {})]
            time.sleep(PATIENCE - 1.5)
            self.assertTrue(all(job.alive() for job in jobs), "ended too early")
            end = time.monotonic() + 10.0
            while jobs[2].alive() and time.monotonic() < end:
                time.sleep(0.1)
            alive = [job.alive() for job in jobs]
            errors = [job.end() for job in jobs]
        self.assertEqual(alive, [True, True, False], errors)
        self.assertEqual(jobs[2].process.returncode, -signal.SIGKILL)
        self.assertIn("locked itself up when a rank died in MPI_Init", errors[2])
        self.assertNotIn("locked itself up", errors[0] + errors[1])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
