// Ranks that fail or disagree: every rank gets an error, none waits for ever (the test would time
// out), and nobody reads memory that a failed rank took along.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using Bytes = std::vector<std::byte>;
using Sizes = std::vector<int64_t>;

struct Disagreement {
  const char* name;
  std::function<void(Communicator& world)> collective;  ///< on three ranks, of which rank 1 errs
  std::string reason;
};

void PrintTo(const Disagreement& tested, std::ostream* out) { *out << tested.name; }

class DisagreementTest : public testing::TestWithParam<Disagreement> {};

TEST_P(DisagreementTest, IsAnErrorOnEveryRank) {
  std::atomic<int> errors = 0;
  const auto body = [&](Communicator& world) {
    try {
      GetParam().collective(world);
    } catch (const Error&) {
      ++errors;
      throw;
    }
  };
  expect_error([&] { run_local_ranks(3, body); }, ErrorCode::kInvalidArgument, {GetParam().reason});
  EXPECT_EQ(errors, 3);
}

// Rank 1 works with `wrong`, the others with `right`.
int64_t pick(const Communicator& world, int64_t right, int64_t wrong) {
  return world.rank() == 1 ? wrong : right;
}

void gather_with_another_own_size(Communicator& world) {
  Bytes received(12);
  world.all_gather(Bytes(static_cast<size_t>(pick(world, 4, 5))), received, Sizes{4, 4, 4});
}

void gather_expecting_other_sizes(Communicator& world) {
  Bytes received(12);
  const Sizes sizes = world.rank() == 1 ? Sizes{3, 4, 5} : Sizes{4, 4, 4};
  world.all_gather(Bytes(4), received, sizes);
}

void gather_into_a_small_buffer(Communicator& world) {
  Bytes received(static_cast<size_t>(pick(world, 12, 11)));
  world.all_gather(Bytes(4), received, Sizes{4, 4, 4});
}

void gather_with_two_sizes(Communicator& world) {
  Bytes received(12);
  const Sizes sizes = world.rank() == 1 ? Sizes{4, 8} : Sizes{4, 4, 4};
  world.all_gather(Bytes(4), received, sizes);
}

void gather_with_negative_sizes(Communicator& world) {
  Bytes received(12);
  const Sizes sizes = world.rank() == 1 ? Sizes{-4, 4, 12} : Sizes{4, 4, 4};
  world.all_gather(Bytes(4), received, sizes);
}

void broadcast_into_another_size(Communicator& world) {
  Bytes data(static_cast<size_t>(pick(world, 8, 9)));
  world.broadcast(data, 0);
}

void broadcast_from_nowhere(Communicator& world) {
  Bytes data(8);
  world.broadcast(data, static_cast<int>(pick(world, 0, 3)));
}

void reduce_another_size(Communicator& world) {
  std::vector<float> data(static_cast<size_t>(pick(world, 8, 7)));
  world.all_reduce_sum(data);
}

void all_to_all_expecting_more(Communicator& world) {
  Bytes received(static_cast<size_t>(pick(world, 6, 7)));
  const Sizes receive_bytes = world.rank() == 1 ? Sizes{2, 2, 3} : Sizes{2, 2, 2};
  world.all_to_all(Bytes(6), Sizes{2, 2, 2}, received, receive_bytes);
}

void all_to_all_sending_past_the_end(Communicator& world) {
  Bytes received(6);
  world.all_to_all(Bytes(static_cast<size_t>(pick(world, 6, 5))), Sizes{2, 2, 2}, received,
                   Sizes{2, 2, 2});
}

INSTANTIATE_TEST_SUITE_P(
    Collectives, DisagreementTest,
    testing::Values(
        Disagreement{"GatherOwnSize", gather_with_another_own_size, "rank 1 sends 5 bytes"},
        Disagreement{"GatherOtherSizes", gather_expecting_other_sizes, "all_gather"},
        Disagreement{"GatherBuffer", gather_into_a_small_buffer, "the buffer has 11"},
        Disagreement{"GatherTooFewSizes", gather_with_two_sizes, "expected 3 sizes, found 2"},
        Disagreement{"GatherNegative", gather_with_negative_sizes, "all_gather"},
        Disagreement{"Broadcast", broadcast_into_another_size, "which expects 9"},
        Disagreement{"BroadcastRoot", broadcast_from_nowhere, "root 3 of 3"},
        Disagreement{"Reduce", reduce_another_size, "all_reduce_sum"},
        Disagreement{"AllToAll", all_to_all_expecting_more, "all_to_all"},
        Disagreement{"AllToAllSend", all_to_all_sending_past_the_end, "the buffer has 5"}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(DisagreementMemoryTest, ARankThatFailsKeepsItsMemoryUntilAllHaveReadIt) {
  // Only the last rank sees the mistake, at once; the others still copy megabytes out of its
  // buffer, which the exception would free. AddressSanitizer sees a copy that comes too late.
  constexpr int64_t kSize = 4 << 20;
  for (int round = 0; round < 20; ++round) {
    const auto body = [&](Communicator& world) {
      const bool errs = world.rank() == 2;
      const Bytes send(static_cast<size_t>(kSize), std::byte{1});
      Bytes received(static_cast<size_t>(3 * kSize));
      const Sizes wrong = {kSize - 1, kSize + 1, kSize};
      world.all_gather(send, received, errs ? wrong : Sizes{kSize, kSize, kSize});
    };
    expect_error([&] { run_local_ranks(3, body); }, ErrorCode::kInvalidArgument, {"all_gather"});
  }
}

class AbortTest : public testing::TestWithParam<int> {};

TEST_P(AbortTest, WakesEveryRankThatWaitsWithTheReason) {
  const int num_ranks = GetParam();
  std::atomic<int> woken = 0;
  run_local_ranks(num_ranks, [&](Communicator& world) {
    if (world.rank() == 0) {
      // The others are in the barrier by now, or find the group aborted when they get there.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      world.abort("the pump is dry");
      return;
    }
    expect_error([&] { world.barrier(); }, ErrorCode::kInternal, {"aborted", "the pump is dry"});
    ++woken;
  });
  EXPECT_EQ(woken, num_ranks - 1);
}

TEST_P(AbortTest, LaterCollectivesFailAtOnce) {
  run_local_ranks(GetParam(), [](Communicator& world) {
    world.abort("over");
    std::vector<float> data(3);
    expect_error([&] { world.all_reduce_sum(data); }, ErrorCode::kInternal, {"over"});
    expect_error([&] { world.broadcast({}, 0); }, ErrorCode::kInternal, {"over"});
  });
}

TEST_P(AbortTest, MayComeFromAThreadThatIsNoRank) {
  std::atomic<Communicator*> any = nullptr;
  std::thread watchdog([&] {
    while (any == nullptr)
      std::this_thread::yield();
    any.load()->abort("timeout");
  });
  // Every rank goes on until it is woken: nobody leaves while the watchdog holds the pointer.
  run_local_ranks(GetParam(), [&](Communicator& world) {
    if (world.rank() == 0) any = &world;
    const auto meet_for_ever = [&] {
      for (;;)
        world.barrier();
    };
    expect_error(meet_for_ever, ErrorCode::kInternal, {"timeout"});
    if (world.rank() == 0) watchdog.join();
  });
}

INSTANTIATE_TEST_SUITE_P(GroupSizes, AbortTest, testing::Values(1, 2, 3, 5));

TEST(RunLocalRanksTest, RethrowsTheCauseAndNotItsConsequences) {
  // Rank 0 waits in the barrier and gets a consequence; the cause is on rank 2.
  const auto body = [](Communicator& world) {
    if (world.rank() == 2) throw std::out_of_range("the cause");
    world.barrier();
  };
  try {
    run_local_ranks(3, body);
    FAIL() << "nothing was thrown";
  } catch (const std::out_of_range& error) {
    EXPECT_STREQ(error.what(), "the cause");
  }
}

TEST(RunLocalRanksTest, ToldPeersNameTheRankThatFailed) {
  std::atomic<int> told = 0;
  const auto body = [&](Communicator& world) {
    if (world.rank() == 1) throw std::runtime_error("disk full");
    expect_error([&] { world.barrier(); }, ErrorCode::kInternal, {"rank 1 failed", "disk full"});
    ++told;
  };
  EXPECT_THROW(run_local_ranks(3, body), std::runtime_error);
  EXPECT_EQ(told, 2);
}

TEST(RunLocalRanksTest, TakesExceptionsOfAnyType) {
  EXPECT_THROW(run_local_ranks(2,
                               [](Communicator& world) {
                                 if (world.rank() == 1) throw 7;
                                 world.barrier();
                               }),
               int);
}

TEST(RunLocalRanksTest, RefusesAGroupOfNone) {
  expect_error([] { run_local_ranks(0, [](Communicator&) {}); }, ErrorCode::kInvalidArgument,
               {"found 0"});
}

}  // namespace
}  // namespace gantry::test
