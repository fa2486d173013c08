"""What is left when a command that writes a checkpoint is killed, or the disk is full.

usage: crash_test.py GANTRY        GANTRY_TRIALS: kills (10)
"""
import hashlib
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

GANTRY = pathlib.Path(sys.argv[1])
TRIALS = int(os.environ.get("GANTRY_TRIALS", "10"))
SEED = int(os.environ.get("GANTRY_SEED", "1"))


def digests(directory):
    """{relative name: digest} of a directory, or None if it is not there."""
    if not directory.exists():
        return None
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class CrashTest(unittest.TestCase):
    def setUp(self):
        self.temp = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.temp.name)
        self.source = self.dir / "in"
        self.out = self.dir / "out"
        subprocess.run([GANTRY, "synth", self.source, "--shape", "tiny", "--layers", "6", "-q"], check=True)
        (self.source / "tokenizer.json").write_text('{"version": "1.0"}')
        self.run_fuse(self.dir / "whole")
        self.whole = digests(self.dir / "whole")

    def tearDown(self):
        self.temp.cleanup()

    def command(self, out, *more):
        return [GANTRY, "fuse", self.source, out, "--shard-size", "50KB", "--no-progress", *more]

    def run_fuse(self, out, *more, **options):
        return subprocess.run(self.command(out, *more), capture_output=True, text=True, timeout=120, **options)

    def test_a_kill_leaves_nothing_or_everything_and_a_later_run_finishes(self):
        started = time.monotonic()
        self.run_fuse(self.dir / "timed")
        duration = time.monotonic() - started
        self.assertEqual(digests(self.dir / "timed"), self.whole)
        rng = random.Random(SEED)
        seen = {"nothing": 0, "everything": 0, "resumed": 0}
        for trial in range(TRIALS):
            process = subprocess.Popen(self.command(self.out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0, duration * 1.5))
            process.send_signal(signal.SIGKILL)
            process.wait()
            left = digests(self.out)
            self.assertIn(left, (None, self.whole), f"seed {SEED}, trial {trial}")
            seen["everything" if left else "nothing"] += 1
            if left is None:
                flags = ["--resume"] if trial % 2 == 0 else []
                done = self.run_fuse(self.out, *flags)
                self.assertEqual(done.returncode, 0, done.stderr)
                seen["resumed"] += " kept" in done.stdout
                self.assertEqual(digests(self.out), self.whole, f"seed {SEED}, trial {trial}")
                # Nothing else lies about: the hidden directory is gone too.
                self.assertEqual([p.name for p in self.dir.iterdir() if p.name.startswith(".")], [])
            shutil.rmtree(self.out)
        print(f"{TRIALS} kills: {seen}", file=sys.stderr)
        self.assertGreater(seen["nothing"], 0)

    def limited(self, limit):
        """Runs with files of at most `limit` bytes: writing further fails as on a full disk."""

        def limit_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        # Else Python gives the signal its deadly default back.
        return self.run_fuse(self.out, preexec_fn=limit_files, restore_signals=False)

    def test_a_failed_write_is_an_error_and_leaves_nothing_visible(self):
        for limit in (0, 100, 20_000, 40_000):
            done = self.limited(limit)
            self.assertEqual(done.returncode, 3, done.stdout + done.stderr)
            self.assertIn("out", done.stderr)
            self.assertIsNone(digests(self.out))
        done = self.run_fuse(self.out, "--resume")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(digests(self.out), self.whole)

    @unittest.skipUnless(os.geteuid() == 0, "only root can mount a small disk")
    def test_a_full_disk_is_an_error_and_leaves_nothing_visible(self):
        disk = self.dir / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True).returncode:
            self.skipTest("cannot mount here")
        try:
            done = self.run_fuse(disk / "out")  # noticed before anything is written
            self.assertEqual(done.returncode, 3, done.stdout)
            self.assertIn("file system has", done.stderr)
            self.assertEqual(list(disk.iterdir()), [])
            # A disk that fills up meanwhile: the tensors fit, the tokenizer does not.
            (self.source / "tokenizer.json").write_bytes(b"x" * (1 << 20))
            subprocess.run(["mount", "-o", "remount,size=1200k", disk], check=True)
            done = self.run_fuse(disk / "out")
            self.assertEqual(done.returncode, 3, done.stdout)
            self.assertIn("tokenizer.json", done.stderr)
            self.assertIsNone(digests(disk / "out"))
            subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
            done = self.run_fuse(disk / "out", "--resume")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn(" kept", done.stdout)
            self.assertEqual(set(digests(disk / "out")), set(self.whole))
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_directory_without_permission_is_an_error(self):
        locked = self.dir / "file"
        locked.write_text("")
        self.assertEqual(self.run_fuse(locked / "out").returncode, 3)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
