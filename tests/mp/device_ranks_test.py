"""The `gantry` command on ranks with devices (emulated): what carries their memory, what fails.

usage: device_ranks_test.py GANTRY GOLDEN_ROOT MPIRUN NCCL_DOUBLE
"""
import pathlib
import sys
import unittest

from launcher import lines_with, mpirun, run_tests

GANTRY, GOLDEN, MPIRUN, DOUBLE = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]
MIXTRAL = GOLDEN / "families" / "mixtral"
QWEN3_NEXT = GOLDEN / "families" / "qwen3_next"  # shared experts with a gate
OK, UNSUPPORTED, ENVIRONMENT = 0, 1, 3
NCCL = ["--device-transport", "nccl"]
# Longer than the test: who waits for it shows.
PATIENT = ["--collective-timeout", "3600"]


def verify(directory, *more):
    return [GANTRY, "verify", directory, "--reference", directory / "moe_io.safetensors", "--device", "emulated", *more]


def ranks(num_ranks, command, plan=""):
    variables = {"GANTRY_NCCL_LIBRARY": DOUBLE, "GANTRY_NCCL_DOUBLE": plan}
    return mpirun((num_ranks, command), variables=variables, executable=MPIRUN)


class DeviceRanksTest(unittest.TestCase):
    def check_all(self, result, num_ranks, code):
        self.assertEqual(result.exit_code, code, result)
        self.assertEqual(result.codes, {rank: code for rank in range(num_ranks)}, result)

    def check_failed(self, result, code):
        """mpirun may end the slower rank before it does so itself."""
        self.assertEqual(result.exit_code, code, result)
        self.assertEqual(set(result.codes.values()), {code}, result)

    def test_ranks_without_gpus_move_through_the_host(self):
        result = ranks(2, verify(MIXTRAL, "--ep", 2))
        self.check_all(result, 2, OK)
        self.assertTrue(lines_with(result.stderr, r"through the host's memory: rank 0 has no GPU"), result)
        self.assertTrue(lines_with(result.stdout, r"allgather_reducescatter.*in rank order"), result)
        self.assertEqual(len(lines_with(result.stdout, r"rel .* <= ")), 2, result)

    def test_nccl_carries_all_layouts(self):
        for num_ranks, sizes in ((2, ["--tp", 2]), (2, ["--ep", 2, "--dp", 2]), (4, ["--tp", 2, "--ep", 2, "--dp", 2])):
            with self.subTest(sizes=sizes):
                result = ranks(num_ranks, verify(QWEN3_NEXT, *sizes, *NCCL))
                self.check_all(result, num_ranks, OK)
                # Once for all layers.
                self.assertEqual(len(lines_with(result.stderr, r"memory moves over NCCL 2\.28\.9 \(.*double")), 1, result)

    def test_tokens_go_to_the_ranks_of_their_experts_only(self):
        asked = ["--ep", 2, "--dp", 2, "--exchange", "all_to_all"]
        for more in ([], ["--combine", "ordered"], ["--exchange-slots", 3]):
            with self.subTest(more=more):
                result = ranks(2, verify(MIXTRAL, *asked, *more, *NCCL))
                self.check_all(result, 2, OK)
                self.assertTrue(lines_with(result.stdout, r"exchange: all_to_all \(as asked\)"), result)
                self.assertEqual(len(lines_with(result.stdout, r"rel .* <= ")), 2, result)

    def test_native_sums_are_shown(self):
        result = ranks(2, verify(MIXTRAL, "--ep", 2, *NCCL, "--reduce", "native"))
        self.check_all(result, 2, OK)
        self.assertTrue(lines_with(result.stdout, r"in the transport's own order \(--reduce native\)"), result)

    def test_run_counts_what_moves(self):
        result = ranks(2, [GANTRY, "run", MIXTRAL, "--device", "emulated", "--ep", 2, "--tokens", 8, *NCCL])
        self.check_all(result, 2, OK)
        self.assertTrue(lines_with(result.stdout, r"moved .* between ranks: dispatch 0 B, combine [1-9]"), result)

    def test_an_error_of_nccl_on_one_rank_ends_all(self):
        result = ranks(2, verify(MIXTRAL, "--ep", 2, *NCCL, *PATIENT), plan="rank=1,op=2:error:6")
        self.check_failed(result, ENVIRONMENT)
        self.assertTrue(lines_with(result.stderr, r"rank 1: error: .*remote process exited"), result)

    def test_nccl_that_hangs_is_a_timeout(self):
        for plan in ("rank=1,op=2:hang", "rank=0,init=hang"):
            with self.subTest(plan=plan):
                result = ranks(2, verify(MIXTRAL, "--ep", 2, *NCCL, "--collective-timeout", 1), plan=plan)
                self.check_failed(result, ENVIRONMENT)
                self.assertTrue(lines_with(result.stderr, r"not every rank came within 1\.0 s"), result)

    def test_versions_that_differ_are_refused(self):
        command = verify(MIXTRAL, "--ep", 2, *NCCL, *PATIENT)
        other = ["env", "GANTRY_NCCL_DOUBLE=version=22005", *command]
        result = mpirun((1, command), (1, other), variables={"GANTRY_NCCL_LIBRARY": DOUBLE}, executable=MPIRUN)
        self.check_failed(result, UNSUPPORTED)
        self.assertTrue(lines_with(result.stderr, r"2\.20\.5 on rank\(s\) 1; 2\.28\.9 on rank\(s\) 0"), result)

    def test_what_gpus_do_not_do_is_refused_with_the_reason(self):
        for more, reason in (
            (["--exchange-slots", 4], r"slots belong to messages of all_to_all"),
            (["--sequence-parallel"], r"sequence parallel ranks have parts"),
        ):
            with self.subTest(more=more):
                result = ranks(2, verify(MIXTRAL, "--ep", 2, *more))
                self.check_failed(result, UNSUPPORTED)
                self.assertTrue(lines_with(result.stderr, reason), result)


if __name__ == "__main__":
    run_tests(at_once=2)
