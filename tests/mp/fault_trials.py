"""Kills and stops ranks of a running `mpirun gantry run` at random points, and sees to it that the
whole job is gone in time, with an exit code other than 0 and the cause in its output.

usage: fault_trials.py GANTRY CHECKPOINT [--kills N] [--startup-kills N] [--stops N] [--ranks N]
                       [--repeat N] [--seed S]

After a kill all ranks must be gone within 10 s, after a stop (SIGSTOP) within the time-out + 10 s.
The seed is printed; each trial prints what was done to which rank when, how long it took, and the
cause as the job told it.

--startup-kills strike in the first 120 ms, in MPI_Init: the PMIx server inside mpirun 4.1 can lock
itself up when a rank dies while it connects. All ranks are gone then, mpirun is not; gantry's guard
must end it within 10 s more. A rank that is stopped in the last milliseconds, after its last message,
leaves nobody who waits for it: the others have ended well; such a fault came too late and is drawn
again.
"""
import argparse
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

from launcher import ENVIRONMENT

GONE_WITHIN = 10.0
STARTUP = 0.12  # seconds after all ranks are there

# What tells the cause, best first.
CAUSES = [
    re.compile(r"gantry: rank \d+: error: .*(nothing came from rank.*|timeout: .*)"),
    re.compile(r"gantry: (rank \d+: error: .*)"),
    re.compile(r"gantry: (rank \d+: terminated \(SIGTERM\).*)"),
    re.compile(r"(mpirun noticed that process rank \d+ .*)"),
    re.compile(r"(.*exited on signal \d+.*)"),
]


def start(options, output):
    command = [options.mpirun, "-np", str(options.ranks), options.gantry, "run", options.checkpoint,
               "--tokens", "64", "--repeat", str(options.repeat), "--no-progress"]
    return subprocess.Popen(command, env=ENVIRONMENT | {"GANTRY_COLLECTIVE_TIMEOUT": str(options.timeout)}, stdout=output,
                            stderr=subprocess.STDOUT)


# Rank 0's last line.
DONE = re.compile(r"layer\(s\), .* loaded and packed")


def parent_of(pid):
    """-1 if there is no such process."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return -1


def children(pid):
    """Processes whose parent is `pid`, by rank."""
    ranks = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if parent_of(int(entry.name)) != pid:
                continue
            variables = (entry / "environ").read_bytes()
        except OSError:
            continue
        found = re.search(rb"(?:^|\0)OMPI_COMM_WORLD_RANK=(\d+)\0", variables)
        if found:
            ranks[int(found[1])] = int(entry.name)
    return ranks


def wait_for_ranks(job, count):
    while job.poll() is None:
        ranks = children(job.pid)
        if len(ranks) == count:
            return ranks
        time.sleep(0.005)
    return {}


def state_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def still_there(pid):
    """Neither gone nor a zombie that nobody has collected yet."""
    return state_of(pid) not in ("gone", "Z", "X")


def describe(launcher, ranks):
    """Who is still there, and in which state: T is stopped, R runs, S sleeps."""
    states = {"mpirun": launcher} | {f"rank {rank}": pid for rank, pid in sorted(ranks.items())}
    return ", ".join(f"{name}: {state_of(pid)}" for name, pid in states.items())


def cause_of(text):
    for pattern in CAUSES:
        found = pattern.search(text)
        if found:
            return found[1].strip()
    return ""


def time_of_a_clean_run(options):
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        job = start(options, output)
        ranks = wait_for_ranks(job, options.ranks)
        begin = time.monotonic()
        job.wait(timeout=300)
        seconds = time.monotonic() - begin
        output.seek(0)
        text = output.read()
    if job.returncode != 0 or not ranks or not DONE.search(text):
        sys.exit(f"without a fault the job ends with {job.returncode}:\n{text}")
    return seconds


class Trial:
    """One fault. `problem` stays empty if all went as it must."""

    def __init__(self, options, kind, victim, delay):
        self.limit = GONE_WITHIN + (options.timeout if kind == "stop" else 0.0)
        self.launcher_ended = False  # by the guard
        self.problem = ""
        self.launcher_stuck = False
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            job = start(options, output)
            ranks = wait_for_ranks(job, options.ranks)
            begin = time.monotonic()
            try:
                job.wait(timeout=delay)
            except subprocess.TimeoutExpired:
                pass
            self.ran = time.monotonic() - begin
            begin = time.monotonic()
            struck = self.strike(job, ranks.get(victim), signal.SIGSTOP if kind == "stop" else signal.SIGKILL)
            self.wait(job, ranks, begin)
            self.seconds = time.monotonic() - begin
            states = describe(job.pid, ranks)
            left = [rank for rank, pid in ranks.items() if still_there(pid)]
            self.end(job, ranks)
            output.seek(0)
            text = output.read()
        self.exit_code = job.returncode
        self.cause = cause_of(text)
        done = DONE.search(text) is not None
        # Too late: the job ended well, or would have but for the victim, which had nothing left to say.
        self.in_time = struck and self.exit_code != 0 and not (kind == "stop" and done and left == [victim])
        if not self.in_time:
            return
        self.launcher_ended = "locked itself up when a rank died in MPI_Init" in text
        if self.launcher_stuck:
            self.problem = f"HANG: the ranks are gone, mpirun is not: {states}\n{text}"
        elif left:
            self.problem = f"HANG: rank(s) {left} are still there: {states}\n{text}"
        elif not self.cause:
            self.problem = f"no cause in the output:\n{text}"

    @staticmethod
    def strike(job, pid, what):
        try:
            if job.poll() is None and pid is not None:
                os.kill(pid, what)
                return True
        except ProcessLookupError:
            pass
        return False

    def wait(self, job, ranks, begin):
        """Until the job is gone, or until its ranks are and mpirun has had time to follow them."""
        while time.monotonic() - begin < self.limit:
            if job.poll() is not None and not any(still_there(pid) for pid in ranks.values()):
                return
            if not any(still_there(pid) for pid in ranks.values()):
                try:
                    job.wait(timeout=GONE_WITHIN)
                except subprocess.TimeoutExpired:
                    self.launcher_stuck = True
                return
            time.sleep(0.01)

    @staticmethod
    def end(job, ranks):
        for pid in [*ranks.values(), job.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        job.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("gantry")
    parser.add_argument("checkpoint")
    parser.add_argument("--mpirun", default="mpirun")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--startup-kills", type=int, default=0)
    parser.add_argument("--stops", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=2.0, help="of collectives, seconds")
    parser.add_argument("--repeat", type=int, default=1000, help="forward calls a layer")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("GANTRY_SEED", "1")))
    options = parser.parse_args()
    rng = random.Random(options.seed)
    clean = time_of_a_clean_run(options)
    print(f"seed {options.seed}; {options.ranks} ranks, collective time-out {options.timeout} s; "
          f"a run without a fault takes {clean:.2f} s after its start", flush=True)
    failed = ended = 0
    for kind, count in (("kill", options.kills), ("startup kill", options.startup_kills), ("stop", options.stops)):
        times = []
        for number in range(count):
            for _ in range(10):  # a fault after the end is none: again
                victim, delay = rng.randrange(options.ranks), rng.uniform(0.0, STARTUP if kind == "startup kill" else clean)
                trial = Trial(options, kind, victim, delay)
                if trial.in_time:
                    break
                clean = min(clean, trial.ran)  # the machine is less busy than it was
            else:
                trial.problem = "ten runs ended before the fault"
            times.append(trial.seconds)
            failed += bool(trial.problem)
            ended += trial.launcher_ended
            print(f"{kind} {number + 1:3}: rank {victim} after {delay:5.2f} s: gone in {trial.seconds:5.2f} s, "
                  f"exit code {trial.exit_code}: {trial.problem or trial.cause}"
                  f"{' (mpirun locked itself up and was ended)' if trial.launcher_ended else ''}", flush=True)
        if times:
            times.sort()
            print(f"{count} {kind}s: median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s", flush=True)
    if ended:
        print(f"mpirun locked itself up and was ended by the guard: {ended} time(s)")
    print(f"FAILED: {failed} trial(s)" if failed else "all ranks gone in time", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
