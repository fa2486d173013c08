// What only a communicator over MPI has: the caller's MPI_Comm, deadlines, aborts from any thread.

#include <gtest/gtest.h>

#include <thread>

#include "parallel/communicator_mpi.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

int rank_of_world() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

int size_of_world() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

std::vector<int> gather_ranks(Communicator& group) {
  std::vector<int> all(static_cast<size_t>(group.size()));
  const int own = rank_of_world();
  group.all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(all)),
                   std::vector<int64_t>(all.size(), sizeof(int)));
  return all;
}

TEST(MpiCommunicatorTest, TakesTheCallersGroupAndItsOrder) {
  MPI_Comm reversed = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, 0, -rank_of_world(), &reversed);
  {
    const auto group = make_mpi_communicator(reversed, {});
    EXPECT_EQ(group->rank(), size_of_world() - 1 - rank_of_world());
    const std::vector<int> ranks = gather_ranks(*group);
    for (int i = 0; i < group->size(); ++i)
      EXPECT_EQ(ranks[static_cast<size_t>(i)], group->size() - 1 - i);
  }
  // It was duplicated: the caller's is as it was.
  int sum = 1;
  MPI_Allreduce(MPI_IN_PLACE, &sum, 1, MPI_INT, MPI_SUM, reversed);
  EXPECT_EQ(sum, size_of_world());
  MPI_Comm_free(&reversed);
}

TEST(MpiCommunicatorTest, GroupsOfOneProcessDoNotMixUp) {
  const auto first = make_mpi_communicator(MPI_COMM_WORLD, {});
  const auto second = make_mpi_communicator(MPI_COMM_WORLD, {});
  for (int round = 0; round < 20; ++round) {
    std::vector<float> one = {1.0F};
    std::vector<float> two = {2.0F};
    first->all_reduce_sum(one);
    second->all_reduce_sum(two);
    EXPECT_EQ(one[0], static_cast<float>(size_of_world()));
    EXPECT_EQ(two[0], static_cast<float>(2 * size_of_world()));
  }
}

TEST(MpiCommunicatorTest, ARankThatDoesNotComeIsNamedWhenTimeIsUp) {
  const auto group = make_mpi_communicator(MPI_COMM_WORLD, {.timeout = std::chrono::seconds(1)});
  if (group->rank() == 0) {
    MPI_Barrier(MPI_COMM_WORLD);  // not in the group's operation until the others have given up
    expect_error([&] { group->barrier(); }, ErrorCode::kTimeout, {"aborted"});
  } else {
    expect_error([&] { group->barrier(); }, ErrorCode::kTimeout,
                 {"nothing came from rank(s)", "0"});
    MPI_Barrier(MPI_COMM_WORLD);
  }
}

TEST(MpiCommunicatorTest, AnAbortFromAnotherThreadReachesAllRanks) {
  const auto group = make_mpi_communicator(MPI_COMM_WORLD, {});
  std::thread watchdog;
  if (group->rank() == 0) {
    watchdog = std::thread([&] { group->abort("no progress", ErrorCode::kTimeout); });
  }
  const auto meet_for_ever = [&] {
    for (;;)
      group->barrier();
  };
  expect_error(meet_for_ever, ErrorCode::kTimeout, {"rank 0 failed", "no progress"});
  if (watchdog.joinable()) watchdog.join();
}

TEST(MpiCommunicatorTest, RefusesAnIntercommunicator) {
  const int half = rank_of_world() % 2;
  MPI_Comm own = MPI_COMM_NULL;
  MPI_Comm both = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, half, 0, &own);
  MPI_Intercomm_create(own, 0, MPI_COMM_WORLD, 1 - half, 0, &both);
  expect_error([&] { make_mpi_communicator(both, {}); }, ErrorCode::kInvalidArgument,
               {"intercommunicator"});
  MPI_Comm_free(&both);
  MPI_Comm_free(&own);
}

}  // namespace
}  // namespace gantry::test
