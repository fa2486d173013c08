"""What the tests of the `gantry` command share. Their arguments are GANTRY GOLDEN_ROOT."""
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

GANTRY = pathlib.Path(sys.argv[1])
GOLDEN = pathlib.Path(sys.argv[2])
OK, FINDING, USAGE, ENVIRONMENT = 0, 1, 2, 3


def run(*arguments):
    """Runs the command; returns (exit code, stdout, stderr)."""
    done = subprocess.run([GANTRY, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


class CommandTestCase(unittest.TestCase):
    """A test with a folder of its own."""

    def setUp(self):
        self.temp = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.temp.name)

    def tearDown(self):
        self.temp.cleanup()

    def copy_golden(self, name, folder="families"):
        """A copy that may be written to."""
        target = self.dir / name
        shutil.copytree(GOLDEN / folder / name, target)
        for path in target.iterdir():
            path.chmod(0o644)
        return target
