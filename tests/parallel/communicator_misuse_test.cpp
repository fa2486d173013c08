// Ranks that do not do the same thing: one returns early, or is in another operation. Nobody waits
// for ever (the test would time out) and nobody takes one operation's data for another's.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using Bytes = std::vector<std::byte>;
using Sizes = std::vector<int64_t>;

TEST(EarlyReturnTest, WakesRanksThatWaitAlready) {
  std::atomic<bool> returns = false;
  const auto body = [&](Communicator& world) {
    if (world.rank() == 1) {
      returns.wait(false);
      return;
    }
    // The last thing that a rank does before it waits; often enough rank 1 is later.
    returns = true;
    returns.notify_all();
    world.barrier();
  };
  expect_error([&] { run_local_ranks(2, body); }, ErrorCode::kInternal, {"rank 1", "returned"});
}

TEST(EarlyReturnTest, StopsRanksThatWouldWaitLater) {
  std::atomic<bool> returned = false;
  const auto body = [&](Communicator& world) {
    if (world.rank() == 0) {
      returned = true;
      returned.notify_all();
      return;
    }
    returned.wait(false);
    std::vector<float> data(3);
    world.all_reduce_sum(data);
  };
  expect_error([&] { run_local_ranks(2, body); }, ErrorCode::kInternal, {"rank 0", "returned"});
}

TEST(EarlyReturnTest, DoesNotSpoilTheLastOperation) {
  for (int round = 0; round < 500; ++round) {
    EXPECT_NO_THROW(run_local_ranks(3, [](Communicator& world) { world.barrier(); }));
  }
}

struct Misuse {
  const char* name;
  std::function<void(Communicator& world)> body;  ///< on three ranks, of which rank 1 errs
};

void PrintTo(const Misuse& tested, std::ostream* out) { *out << tested.name; }

class MisuseTest : public testing::TestWithParam<Misuse> {};

TEST_P(MisuseTest, IsAnErrorOnEveryRank) {
  std::atomic<int> errors = 0;
  const auto body = [&](Communicator& world) {
    try {
      GetParam().body(world);
    } catch (const Error&) {
      ++errors;
      throw;
    }
  };
  expect_error([&] { run_local_ranks(3, body); }, ErrorCode::kInvalidArgument, {});
  EXPECT_EQ(errors, 3);
}

void reduce(Communicator& world) {
  std::vector<float> data(3);
  world.all_reduce_sum(data);
}

// As many bytes as in reduce(), so that only the names of the operations differ.
void broadcast(Communicator& world, int root) {
  Bytes data(12);
  world.broadcast(data, root);
}

void exchange_all(Communicator& world) {
  Bytes received(12);
  world.all_to_all(Bytes(12), Sizes{4, 4, 4}, received, Sizes{4, 4, 4});
}

void gather_huge_sizes(Communicator& world) {
  Bytes received(12);
  const Sizes huge = {INT64_MAX, INT64_MAX, 14};  // 12 modulo 2^64
  world.all_gather(Bytes(4), received, world.rank() == 1 ? huge : Sizes{4, 4, 4});
}

INSTANTIATE_TEST_SUITE_P(
    Collectives, MisuseTest,
    testing::Values(Misuse{"ReduceAndBroadcast",
                           [](Communicator& w) { w.rank() == 1 ? broadcast(w, 0) : reduce(w); }},
                    Misuse{"AllToAllAndReduce",
                           [](Communicator& w) { w.rank() == 1 ? reduce(w) : exchange_all(w); }},
                    Misuse{"AllToAllAndBarrier",
                           [](Communicator& w) { w.rank() == 1 ? w.barrier() : exchange_all(w); }},
                    Misuse{"BroadcastFromTwoRoots",
                           [](Communicator& w) { broadcast(w, w.rank() == 1 ? 1 : 0); }},
                    Misuse{"GatherSizesThatOverflow", gather_huge_sizes}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace gantry::test
