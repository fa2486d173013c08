"""The `gantry` command on ranks that are processes: who prints, which exit code, who must agree.

usage: ranks_test.py GANTRY GOLDEN_ROOT MPIRUN
"""
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

import launcher
from launcher import lines_with, mpirun

GANTRY, GOLDEN, MPIRUN = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve(), sys.argv[3]
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

    def check_refused(self, result, pattern):
        # Which ranks come to write their codes before the first one ends all is a matter of chance.
        self.assertEqual(result.exit_code, USAGE, result)
        self.assertTrue(set(result.codes.values()) <= {USAGE}, result)
        self.assertTrue(lines_with(result.stderr, pattern), result)

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

    # Experts 0 to 7 on two ranks, in the shape of vLLM.
    PLACEMENT = [5, 1, 2, 3, 4, 0, 6, 7]

    def write_placement(self, folder, ids, text="{}"):
        folder.mkdir()
        path = folder / "placement.json"
        path.write_text(text.format(json.dumps(ids)))
        return path

    def test_placements_are_compared_by_what_they_say_and_not_by_their_paths(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            here = self.write_placement(root / "here", self.PLACEMENT)
            same = self.write_placement(root / "same", self.PLACEMENT, text=" {}\n")
            other = self.write_placement(root / "other", list(reversed(self.PLACEMENT)))
            place = lambda path: [GANTRY, *verify(MIXTRAL, "--ep", 2, "--placement", path)]
            self.check_all(mpirun((1, place(here)), (1, place(same)), executable=MPIRUN), 2, OK)
            result = mpirun((1, place(here)), (1, place(other)), executable=MPIRUN)
            self.check_refused(result, r"placement: rank\(s\) 0: 2 layer\(s\) of a file, [0-9a-f]{32}; "
                                       r"rank\(s\) 1: 2 layer\(s\) of a file, ")
            # One path, behind which each rank finds a file of its own, as on two hosts.
            for rank, path in enumerate([here, other]):
                (root / str(rank)).mkdir()
                shutil.copy(path, root / str(rank) / "placement.json")
            there = ["sh", "-c", f'cd {root}/$OMPI_COMM_WORLD_RANK && exec "$0" "$@"', *place("placement.json")]
            result = mpirun((2, there), executable=MPIRUN)
            self.check_refused(result, r"  placement: rank\(s\) 0: .*rank\(s\) 1: ")

    def test_native_reduction_is_shown_and_gives_the_same_numbers(self):
        for layout in (["--tp", 2, "--ep", 2], ["--ep", 4, "--dp", 2], ["--ep", 4, "--sequence-parallel"]):
            result = ranks(4, *verify(MIXTRAL, *layout, "--reduce", "native"))
            self.check_all(result, 4, OK)
            self.assertTrue(lines_with(result.stdout, r"allgather_reducescatter \(the transport's own reduction needs"),
                            result)
            self.assertTrue(lines_with(result.stdout, r"sums of ranks by MPI's own reduction: bits may differ"), result)

    def test_native_reduction_is_refused_where_it_cannot_hold_what_is_asked(self):
        for options, reason in [(["--batch-invariant"], r"bits could depend on its batch"),
                                (["--combine", "ordered"], r"ascending expert id"),
                                (["--exchange", "all_to_all"], r"needs one of every rank"),
                                (["--no-reduce"], r"no sums to add"),
                                (["--ranks", "threads"], r"no reduction of their own")]:
            result = ranks(2, *verify(MIXTRAL, "--ep", 2, "--reduce", "native", *options))
            self.check_refused(result, r"--reduce native.*" + reason)

    def bench(self, *more):
        return ["bench", MIXTRAL, "--tokens", "3,8", "--seconds", "0.01", "--json", "--activations", "f32", *more]

    def bench_rows(self, result, num_ranks, num_processes=None):
        self.check_all(result, num_processes or num_ranks, OK)
        events = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([event["event"] for event in events], ["bench_head", "bench_ranks", "bench_ranks"])
        for event in events[1:]:
            self.assertEqual(len(event["ranks"]), num_ranks)
            self.assertTrue(0.0 < event["balancedness"] <= 1.0, event)
        return events[0], events[1:]

    def test_bench_takes_the_options_of_the_exchange_and_a_placement_file(self):
        with tempfile.TemporaryDirectory() as folder:
            # Rank 0 holds experts 0 to 5 and copies of them, rank 1 the other two.
            path = self.write_placement(pathlib.Path(folder) / "p", {"expert_to_ep_rank": [0] * 6 + [1] * 2})
            head, rows = self.bench_rows(ranks(2, *self.bench("--ep", 2, "--dp", 2, "--placement", path, "--exchange",
                                                              "all_to_all", "--exchange-slots", 8)), 2)
            self.assertIn("all_to_all (as asked), 8 slots", head["exchange"])
            self.assertEqual(head["placement"], str(path))
            self.assertEqual(sum(rank["bytes_sent"] for rank in rows[0]["ranks"]),
                             sum(rank["bytes_received"] for rank in rows[0]["ranks"]))
            self.assertGreater(rows[0]["ranks"][0]["bytes_sent"], 0)
        skewed = rows[1]["balancedness"]
        _, rows = self.bench_rows(ranks(2, *self.bench("--ep", 2, "--dp", 2)), 2)
        self.assertLess(skewed, rows[1]["balancedness"])
        head, rows = self.bench_rows(ranks(4, *self.bench("--tp", 2, "--ep", 2, "--combine", "ordered",
                                                          "--sequence-parallel")), 4)
        self.assertIn("sequence parallel; combine ordered", head["exchange"])
        head, rows = self.bench_rows(ranks(2, *self.bench("--ep", 2, "--reduce", "native")), 2)
        self.assertIn("by MPI's own reduction", head["exchange"])
        head, rows = self.bench_rows(ranks(2, *self.bench("--ep", 2, "--no-reduce")), 2)
        self.assertEqual([rank["bytes_sent"] for rank in rows[0]["ranks"]], [0, 0])
        self.bench_rows(ranks(1, *self.bench("--ep", 4, "--dp", 4, "--ranks", "threads")), 4, num_processes=1)

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

    def start_like(self, variables, num_ranks=2):
        """What a launcher of another kind does: processes that have these variables and no MPI."""
        clean = {name: value for name, value in launcher.ENVIRONMENT.items() if not name.startswith(("OMPI_COMM", "PMI", "SLURM"))}
        words = [str(word) for word in [GANTRY, *verify(MIXTRAL, "--ep", num_ranks)]]
        processes = []
        for rank in range(num_ranks):
            own = {name: value.format(rank=rank, size=num_ranks) for name, value in variables.items()}
            processes.append(subprocess.Popen(words, env=clean | own, text=True, stdout=subprocess.PIPE,
                                              stderr=subprocess.PIPE))
        return [(process.communicate(timeout=60), process.returncode) for process in processes]

    def test_launchers_that_set_up_no_mpi_are_refused_by_name(self):
        torchrun = {"RANK": "{rank}", "WORLD_SIZE": "{size}", "LOCAL_RANK": "{rank}", "LOCAL_WORLD_SIZE": "{size}"}
        slurm = {"SLURM_PROCID": "{rank}", "SLURM_STEP_NUM_TASKS": "{size}", "SLURM_LOCALID": "{rank}"}
        for variables, name in [(torchrun, r"torchrun \(RANK, WORLD_SIZE\)"), (slurm, r"Slurm \(SLURM_\*\)"),
                                (torchrun | slurm, r"Slurm .*torchrun")]:
            for rank, ((out, err), code) in enumerate(self.start_like(variables)):
                self.assertEqual((out, code), ("", USAGE), err)
                self.assertTrue(lines_with(err, rf"rank {rank} of 2, .*{name}.*each of the 2 processes would be a world of "
                                                r"its own: start with mpirun -np 2"), err)

    def test_another_mpis_launcher_ends_in_an_error_and_not_in_many_worlds(self):
        for (out, err), code in self.start_like({"PMI_RANK": "{rank}", "PMI_SIZE": "{size}"}):
            self.assertNotEqual(code, OK, out)
            self.assertEqual(out, "", err)
            self.assertTrue(lines_with(err, r"the launcher says rank . of 2, .*PMI \(PMI_RANK, PMI_SIZE\)\), but MPI started "
                                            r"as rank 0 of 1"), err)

    def stats(self, *more):
        return ["stats", MIXTRAL, "--tokens", 24, "--steps", 4, "--eplb-interval", 2, "--redundant", 4, "--json", *more]

    def test_stats_of_processes_are_those_of_threads(self):
        layers = []
        with tempfile.TemporaryDirectory() as folder:
            for num, more in [(4, []), (1, ["--ranks", "threads"])]:
                text = pathlib.Path(folder) / f"metrics{num}.prom"
                result = ranks(num, *self.stats("--tp", 2, "--ep", 2, "--prometheus", text, *more))
                self.check_all(result, num, OK)
                layers.append([json.loads(line) for line in result.stdout.splitlines()])
                self.assertIn("rebalances", text.read_text())
        self.assertEqual(layers[0], layers[1])
        self.assertGreater(sum(event["rebalances"] for event in layers[0] if event["event"] == "layer"), 0)

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
    launcher.run_tests(at_once=3)
