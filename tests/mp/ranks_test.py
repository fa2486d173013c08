"""The `gantry` command on ranks that are processes: who prints, which exit code, who must agree.

usage: ranks_test.py GANTRY GOLDEN_ROOT MPIRUN
"""
import pathlib
import shutil
import sys
import tempfile
import unittest

from launcher import lines_with, mpirun

GANTRY, GOLDEN, MPIRUN = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
MIXTRAL = GOLDEN / "families" / "mixtral"
OK, FINDING, USAGE, ENVIRONMENT = 0, 1, 2, 3


def ranks(num_ranks, *arguments, variables=None):
    return mpirun((num_ranks, [GANTRY, *arguments]), variables=variables, executable=MPIRUN)


def verify(directory, *more):
    return ["verify", directory, "--reference", directory / "moe_io.safetensors", "--activations", "f32", *more]


class RanksTest(unittest.TestCase):
    def check_all(self, result, num_ranks, code):
        self.assertEqual(result.exit_code, code, result)
        self.assertEqual(result.codes, {rank: code for rank in range(num_ranks)}, result)

    def test_rank_0_prints_once_and_all_end_alike(self):
        result = ranks(3, *verify(MIXTRAL, "--ep", 3, "--placement", "round_robin"))
        self.check_all(result, 3, OK)
        self.assertEqual(len(lines_with(result.stdout, r"^ok: ")), 1, result)
        self.assertEqual(len(lines_with(result.stdout, r"rel .* <= ")), 2, result)
        self.assertEqual(len(lines_with(result.stdout, r"^  rank \d+ +read")), 3, result)
        self.assertFalse(lines_with(result.stderr, r"rank [12]:"), result)

    def test_without_sizes_every_rank_takes_a_part_of_the_experts(self):
        result = ranks(2, *verify(MIXTRAL))
        self.check_all(result, 2, OK)
        self.assertTrue(lines_with(result.stderr, r"neither --tp nor --ep given: --ep 2"), result)

    def test_token_groups_and_tensor_parallel_ranks(self):
        self.check_all(ranks(4, *verify(MIXTRAL, "--tp", 2, "--ep", 2, "--dp", 2)), 4, OK)

    def test_a_world_of_another_size_is_refused(self):
        result = ranks(2, *verify(MIXTRAL, "--tp", 2, "--ep", 2))
        self.assertEqual(result.exit_code, USAGE, result)
        self.assertTrue(lines_with(result.stderr, r"--tp 2 x --ep 2 are 4 ranks, but 2 were started"), result)

    def test_threads_can_be_asked_for(self):
        self.check_all(ranks(1, *verify(MIXTRAL, "--ep", 4, "--ranks", "threads")), 1, OK)

    def test_a_finding_of_one_rank_is_everybodys(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "mixtral"
            shutil.copytree(MIXTRAL, copy)
            self.write_nan_into_the_last_expert(copy)
            result = ranks(2, *verify(copy, "--ep", 2))
        self.check_all(result, 2, FINDING)
        self.assertTrue(lines_with(result.stdout, r"non_finite.*expert 7"), result)
        self.assertEqual(len(lines_with(result.stdout, r"^FAILED")), 1, result)

    def write_nan_into_the_last_expert(self, directory):
        import json
        import struct

        path = next(directory.glob("model*.safetensors"))
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        name = next(n for n in header if n.endswith("layers.1.block_sparse_moe.experts.7.w2.weight"))
        begin = 8 + length + header[name]["data_offsets"][0]
        width = {"F32": 4, "BF16": 2, "F16": 2}[header[name]["dtype"]]
        data[begin : begin + width] = b"\xff" * width  # NaN in each of these
        path.write_bytes(data)

    def test_an_error_of_one_rank_ends_all_with_its_code(self):
        result = mpirun((1, [GANTRY, *verify(MIXTRAL, "--ep", 2)]),
                        (1, [GANTRY, "verify", "/nowhere", "--ep", 2]), executable=MPIRUN)
        self.assertEqual(result.exit_code, ENVIRONMENT, result)
        self.assertTrue(lines_with(result.stderr, r"rank 1: error: .*/nowhere"), result)
        self.assertTrue(lines_with(result.stderr, r"rank 0: error: .*rank 1 failed.*/nowhere"), result)

    def disagree(self, first, second, *expected, variables=None):
        result = mpirun((1, [GANTRY, *first]), (2, [GANTRY, *second]), variables=variables, executable=MPIRUN)
        self.assertEqual(result.exit_code, USAGE, result)
        self.assertTrue(lines_with(result.stderr, r"the ranks do not agree"), result)
        for text in expected:
            self.assertTrue(lines_with(result.stderr, text), result)

    def test_ranks_with_other_options_are_named(self):
        self.disagree(verify(MIXTRAL, "--ep", 3), verify(MIXTRAL, "--tp", 3, "--placement", "round_robin"),
                      r"placement: rank\(s\) 0: linear; rank\(s\) 1, 2: round_robin",
                      r"  tp: rank\(s\) 0: 1; rank\(s\) 1, 2: 3", r"  ep: ")

    def test_ranks_with_another_checkpoint_are_named(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "mixtral"
            shutil.copytree(MIXTRAL, copy)
            config = copy / "config.json"
            config.chmod(0o644)
            config.write_text(config.read_text() + "\n")
            self.disagree(verify(MIXTRAL, "--ep", 3), verify(copy, "--ep", 3), r"checkpoint config: rank\(s\) 0: ")

    def test_ranks_with_other_kernels_are_named(self):
        self.disagree(verify(MIXTRAL, "--ep", 3), ["run", MIXTRAL, "--ep", 3],
                      r"command: rank\(s\) 0: verify; rank\(s\) 1, 2: run")
        scalar = ["env", "GANTRY_MAX_ISA=scalar", GANTRY]
        result = mpirun((1, [GANTRY, *verify(MIXTRAL, "--ep", 2)]), (1, [*scalar, *verify(MIXTRAL, "--ep", 2)]),
                        executable=MPIRUN)
        self.assertEqual(result.exit_code, USAGE, result)
        self.assertTrue(lines_with(result.stderr, r"instruction sets: "), result)

    def test_torchruns_variables_must_say_what_mpirun_says(self):
        agreeing = ["sh", "-c", 'RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=2 exec "$0" "$@"', GANTRY]
        self.check_all(mpirun((2, [*agreeing, *verify(MIXTRAL)]), executable=MPIRUN), 2, OK)
        result = ranks(2, *verify(MIXTRAL), variables={"RANK": "0", "WORLD_SIZE": "2"})
        self.assertEqual(result.exit_code, USAGE, result)
        self.assertTrue(lines_with(result.stderr, r"launchers disagree about the rank"), result)

    def test_flags_must_say_what_mpirun_says(self):
        result = ranks(2, *verify(MIXTRAL, "--world-size", 3))
        self.assertEqual(result.exit_code, USAGE, result)
        self.assertTrue(lines_with(result.stderr, r"disagree about the number of ranks"), result)

    def test_run_gives_the_outputs_of_one_process(self):
        with tempfile.TemporaryDirectory() as folder:
            outputs = [pathlib.Path(folder) / name for name in ("threads", "processes")]
            arguments = ["run", MIXTRAL, "--tokens", 9, "--repeat", 1, "--tp", 2, "--dp", 1, "--output"]
            self.check_all(ranks(1, *arguments, outputs[0], "--ranks", "threads"), 1, OK)
            result = ranks(2, *arguments, outputs[1])
            self.check_all(result, 2, OK)
            self.assertEqual(outputs[0].read_bytes(), outputs[1].read_bytes(), "bits depend on the transport")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
