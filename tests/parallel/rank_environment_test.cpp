#include "parallel/rank_environment.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using Variables = std::map<std::string, std::string>;

RankEnvironment environment_of(const Variables& variables) {
  return combine_rank_claims(read_rank_claims([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  }));
}

const Variables kMpirun = {{"OMPI_COMM_WORLD_RANK", "5"},
                           {"OMPI_COMM_WORLD_SIZE", "8"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                           {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                           {"PMIX_RANK", "5"}};

TEST(RankEnvironmentTest, NothingMeansNoLauncher) {
  const RankEnvironment world = environment_of({});
  EXPECT_FALSE(world.launched());
  EXPECT_EQ(world.size, 1);
}

TEST(RankEnvironmentTest, ReadsOpenMpi) {
  const RankEnvironment world = environment_of(kMpirun);
  EXPECT_TRUE(world.launched());
  EXPECT_EQ(world.rank, 5);
  EXPECT_EQ(world.size, 8);
  EXPECT_EQ(world.local_rank, 1);
  EXPECT_EQ(world.local_size, 4);
}

TEST(RankEnvironmentTest, ReadsSlurmWithPmix) {
  const RankEnvironment world = environment_of({{"SLURM_PROCID", "3"},
                                                {"SLURM_STEP_NUM_TASKS", "4"},
                                                {"SLURM_LOCALID", "0"},
                                                {"PMIX_RANK", "3"}});
  EXPECT_EQ(world.rank, 3);
  EXPECT_EQ(world.size, 4);
}

TEST(RankEnvironmentTest, ABatchScriptIsNoLauncher) {
  // What sbatch sets in the script itself, before any srun.
  EXPECT_FALSE(environment_of({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}}).launched());
}

TEST(RankEnvironmentTest, UnderMpirunSlurmSpeaksOfDaemons) {
  Variables variables = kMpirun;
  variables["SLURM_PROCID"] = "1";
  variables["SLURM_STEP_NUM_TASKS"] = "2";
  EXPECT_EQ(environment_of(variables).rank, 5);
}

TEST(RankEnvironmentTest, ReadsTorchrun) {
  const RankEnvironment world = environment_of(
      {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}});
  EXPECT_EQ(world.rank, 1);
  EXPECT_EQ(world.local_rank, 1);
}

TEST(RankEnvironmentTest, ReadsPmi) {
  const RankEnvironment world = environment_of({{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}});
  EXPECT_EQ(world.rank, 2);
  EXPECT_EQ(world.size, 3);
  EXPECT_EQ(world.reason_not_joined(), "");
  // mpirun's daemons may have been started by a PMI server.
  Variables variables = kMpirun;
  variables["PMI_RANK"] = "0";
  variables["PMI_SIZE"] = "2";
  EXPECT_EQ(environment_of(variables).rank, 5);
}

TEST(RankEnvironmentTest, LaunchersWithoutMpiCannotJoinRanks) {
  const Variables torchrun = {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}};
  const Variables slurm = {{"SLURM_PROCID", "1"}, {"SLURM_STEP_NUM_TASKS", "2"}};
  for (Variables variables : {torchrun, slurm}) {
    const std::string reason = environment_of(variables).reason_not_joined();
    for (const char* text : {"rank 1 of 2", "each of the 2 processes", "mpirun -np 2"})
      EXPECT_NE(reason.find(text), std::string::npos) << reason;
    variables["PMIX_RANK"] = "1";
    EXPECT_EQ(environment_of(variables).reason_not_joined(), "");
  }
  EXPECT_EQ(environment_of({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).reason_not_joined(), "");
  EXPECT_EQ(environment_of(kMpirun).reason_not_joined(), "");
  EXPECT_EQ(environment_of({}).reason_not_joined(), "");
}

TEST(RankEnvironmentTest, AVariableNamedRankAloneIsNoLauncher) {
  EXPECT_FALSE(environment_of({{"RANK", "general"}}).launched());
}

struct Refused {
  Variables more;
  std::string reason;
};

class RefusedEnvironmentTest : public testing::TestWithParam<Refused> {};

TEST_P(RefusedEnvironmentTest, NamesWhatIsWrong) {
  Variables variables = kMpirun;
  for (const auto& [name, value] : GetParam().more)
    variables[name] = value;
  expect_error([&] { environment_of(variables); }, ErrorCode::kInvalidArgument,
               {GetParam().reason});
}

INSTANTIATE_TEST_SUITE_P(
    Values, RefusedEnvironmentTest,
    testing::Values(
        Refused{{{"PMIX_RANK", "4"}}, "disagree about the rank: Open MPI"},
        Refused{{{"RANK", "5"}, {"WORLD_SIZE", "4"}}, "disagree about the number of ranks"},
        Refused{{{"RANK", "1"}, {"WORLD_SIZE", "8"}}, "torchrun (RANK, WORLD_SIZE) says 1"},
        Refused{{{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "0"}}, "the local rank"},
        Refused{{{"OMPI_COMM_WORLD_SIZE", "5"}}, "rank 5 of 5"},
        Refused{{{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}}, "found 1 of 1"},
        Refused{{{"OMPI_COMM_WORLD_RANK", "5x"}}, "OMPI_COMM_WORLD_RANK: expected a number"},
        Refused{{{"OMPI_COMM_WORLD_RANK", "-1"}}, "found '-1'"},
        Refused{{{"PMIX_RANK", "99999999999999999999"}}, "PMIX_RANK"},
        Refused{{{"PMIX_RANK", ""}}, "found ''"}));

TEST(RankEnvironmentTest, ARankOfUnknownManyIsRefused) {
  expect_error(
      [] {
        environment_of({{"PMIX_RANK", "0"}});
      },
      ErrorCode::kInvalidArgument, {"PMIX_RANK", "nothing says of how many"});
}

}  // namespace
}  // namespace gantry::test
