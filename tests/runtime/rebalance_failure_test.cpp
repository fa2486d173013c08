// Rebalances that must not happen: every rank says why and goes on with what it had.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string_view>

#include "tests/runtime/rebalance_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

// Flips one bit of what a chosen call brings in.
class FlippingCommunicator final : public WrappedCommunicator {
 public:
  FlippingCommunicator(Communicator& inner, int rank) : WrappedCommunicator(inner), rank_(rank) {}

  int flip_exchange = -1;  // number of the all_to_all
  int flip_gather = -1;    // number of the all_gather
  size_t byte = 0;         // of what arrives, in the order of ranks, with the rank's own part

 protected:
  void exchange(const Operation& operation, std::span<const SendPart> sends,
                std::span<const ReceivePart> receives) override {
    WrappedCommunicator::exchange(operation, sends, receives);
    if (rank() != rank_) return;
    const std::string_view name = operation.name;
    if (name == "all_to_all" && exchanges_++ == flip_exchange) flip(receives, 0);
    if (name == "all_gather" && gathers_++ == flip_gather) {
      flip(receives, sends.empty() ? 0 : sends[0].data.size());
    }
  }

 private:
  void flip(std::span<const ReceivePart> receives, size_t own_bytes) const {
    size_t total = own_bytes;
    for (const ReceivePart& part : receives)
      total += part.data.size();
    if (total == 0) return;
    size_t begin = 0;
    bool own_passed = false;
    for (const ReceivePart& part : receives) {
      if (part.peer > rank_ && !own_passed) {
        begin += own_bytes;
        own_passed = true;
      }
      const size_t at = byte % total - begin;
      if (byte % total >= begin && at < part.data.size()) part.data[at] ^= std::byte{0x10};
      begin += part.data.size();
    }
  }

  int rank_;
  int exchanges_ = 0;
  int gathers_ = 0;
};

class RebalanceFailureTest : public testing::Test {
 protected:
  RebalanceFailureTest() : layer_case_(golden_root() / "quant" / "llmcompressor-w4a16_asym") {}

  // Runs `body(layer, world)` on four ranks that hold experts by linear placement, and checks that
  // it left the layer as it was and able to move.
  template <typename Body>
  void expect_old_state(Body body) {
    run_local_ranks(4, [&](Communicator& world) {
      ParallelConfig own{.ep_size = 4};
      own.rank = world.rank();
      const auto layer = layer_case_.make_layer(own, linear_, &world);
      const auto before = layer->weights();
      body(*layer, world);
      EXPECT_EQ(layer->weights(), before) << "rank " << world.rank();
      EXPECT_EQ(layer->experts(), linear_);
      EXPECT_EQ(differing_slot(*before, layer_case_.load(own, linear_)), "");
      rebalance(*layer, dealt_, world);
      EXPECT_EQ(differing_slot(*layer->weights(), layer_case_.load(own, dealt_)), "");
    });
  }

  RebalanceCase layer_case_;
  const int num_experts_ = layer_case_.spec().num_experts;
  const ExpertMap linear_ = ExpertMap::create(num_experts_, 4, Placement::kLinear);
  // Each rank needs two or three of the four experts from others.
  const ExpertMap dealt_ = ExpertMap::from_slots(num_experts_, {{1, 2}, {3, 0}, {0, 1, 3}, {2, 0}});
};

TEST_F(RebalanceFailureTest, ABitThatFlipsOnTheWayIsNoticedByAllRanks) {
  const MovePlan plan = plan_moves(linear_, dealt_);
  const int rounds = static_cast<int>(plan.rounds.size());
  ASSERT_GE(rounds, 3);
  for (int round = 0; round < rounds; ++round) {
    std::atomic<int> noticed = 0;
    // Rank 2 receives in some rounds only: flipping there must be noticed, elsewhere is nothing.
    const std::vector<SlotMove>& moves = plan.rounds[static_cast<size_t>(round)];
    const bool receives = std::any_of(moves.begin(), moves.end(),
                                      [](const SlotMove& move) { return move.to_rank == 2; });
    if (!receives) continue;
    expect_old_state([&](FusedMoeLayer& layer, Communicator& world) {
      FlippingCommunicator flipping(world, 2);
      flipping.flip_exchange = round;
      flipping.byte = 7919U * static_cast<size_t>(round) + 13;
      expect_error([&] { rebalance(layer, dealt_, flipping); }, ErrorCode::kIo,
                   {"rebalance of layer", "rank 2: expert", "digest"});
      ++noticed;
    });
    EXPECT_EQ(noticed, 4);
  }
}

TEST_F(RebalanceFailureTest, ADigestThatChangesOnTheWayIsNoticed) {
  expect_old_state([&](FusedMoeLayer& layer, Communicator& world) {
    FlippingCommunicator flipping(world, 2);
    // The agreement, the vote on it, then the digests.
    flipping.flip_gather = 2;
    const MovePlan plan = plan_moves(linear_, dealt_);
    // A digest of a slot that rank 2 receives, among those gathered in rank order.
    size_t position = 0;
    for (int from = 0; from < 4; ++from) {
      for (const auto& round : plan.rounds) {
        for (const SlotMove& move : round) {
          if (move.from_rank != from) continue;
          if (move.to_rank == 2) flipping.byte = position * 16;
          ++position;
        }
      }
    }
    expect_error([&] { rebalance(layer, dealt_, flipping); }, ErrorCode::kIo, {"digest"});
  });
}

TEST_F(RebalanceFailureTest, RanksThatDisagreeAreNamed) {
  const ExpertMap other = ExpertMap::from_slots(num_experts_, {{2, 1}, {3, 0}, {0, 1, 3}, {2, 0}});
  expect_old_state([&](FusedMoeLayer& layer, Communicator& world) {
    expect_error([&] { rebalance(layer, world.rank() == 3 ? other : dealt_, world); },
                 ErrorCode::kInvalidArgument, {"rank 0: rank 3 has another new map"});
  });
}

TEST_F(RebalanceFailureTest, MapsOfOtherExpertsOrRanksAreRefused) {
  const ExpertMap fewer_ranks = ExpertMap::create(num_experts_, 2, Placement::kLinear);
  const ExpertMap more_experts = ExpertMap::create(num_experts_ + 1, 4, Placement::kLinear);
  expect_old_state([&](FusedMoeLayer& layer, Communicator& world) {
    for (const ExpertMap& map : {fewer_ranks, more_experts}) {
      expect_error([&] { rebalance(layer, map, world); }, ErrorCode::kInvalidArgument,
                   {"cannot become"});
    }
  });
}

TEST_F(RebalanceFailureTest, WeightsAreNotReplacedDuringAMove) {
  expect_old_state([&](FusedMoeLayer& layer, Communicator& world) {
    ParallelConfig own{.ep_size = 4};
    own.rank = world.rank();
    StagedRebalance staged(layer, dealt_, world);
    expect_error([&] { layer.replace_weights(layer_case_.load(own, linear_)); },
                 ErrorCode::kInvalidArgument, {"while its experts move"});
    expect_error([&] { rebalance(layer, dealt_, world); }, ErrorCode::kInvalidArgument,
                 {"already being moved"});
  });
}

TEST_F(RebalanceFailureTest, WeightsAreReplacedAfterAMove) {
  run_local_ranks(4, [&](Communicator& world) {
    ParallelConfig own{.ep_size = 4};
    own.rank = world.rank();
    const auto layer = layer_case_.make_layer(own, linear_, &world);
    rebalance(*layer, dealt_, world);
    layer->replace_weights(layer_case_.load(own, dealt_));
    EXPECT_EQ(differing_slot(*layer->weights(), layer_case_.load(own, dealt_)), "");
  });
}

// A rank that never answers: it hangs until its group is aborted.
class StuckCommunicator final : public WrappedCommunicator {
 public:
  using WrappedCommunicator::WrappedCommunicator;

 protected:
  void exchange(const Operation& operation, std::span<const SendPart> sends,
                std::span<const ReceivePart> receives) override {
    if (rank() == 1 && std::string_view(operation.name) == "all_to_all") {
      std::unique_lock lock(mutex_);
      released_.wait(lock, [&] { return aborted_; });
    }
    WrappedCommunicator::exchange(operation, sends, receives);
  }
  void wake_all(const char* reason, ErrorCode code) noexcept override {
    WrappedCommunicator::wake_all(reason, code);
    const std::scoped_lock lock(mutex_);
    aborted_ = true;
    released_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable released_;
  bool aborted_ = false;
};

TEST_F(RebalanceFailureTest, AStalledRankEndsTheMoveOnAllRanks) {
  std::atomic<int> ended = 0;
  EXPECT_THROW(
      run_local_ranks(
          4,
          [&](Communicator& world) {
            ParallelConfig own{.ep_size = 4};
            own.rank = world.rank();
            const auto layer = layer_case_.make_layer(own, linear_, &world);
            const auto before = layer->weights();
            StuckCommunicator stuck(world);
            RebalanceOptions options;
            options.stall = {std::chrono::milliseconds(20), std::chrono::milliseconds(200)};
            try {
              rebalance(*layer, dealt_, stuck, options);
            } catch (const Error& error) {
              EXPECT_NE(std::string(error.what()).find("no progress at"), std::string::npos)
                  << error.what();
              EXPECT_EQ(layer->weights(), before);
              ++ended;
              throw;
            }
          }),
      Error);
  EXPECT_EQ(ended, 4);
}

}  // namespace
}  // namespace gantry::test
