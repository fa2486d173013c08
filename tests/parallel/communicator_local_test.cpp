#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Bytes = std::vector<std::byte>;
using Sizes = std::vector<int64_t>;

// `count` bytes that tell who sent them to whom.
Bytes marked_bytes(int64_t count, int from, int to = 0) {
  Bytes bytes(static_cast<size_t>(count));
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(from * 50 + to * 10 + static_cast<int>(i % 10));
  }
  return bytes;
}

void append(Bytes& bytes, const Bytes& more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
}

int64_t sum(const Sizes& sizes) { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }

/// Every collective on groups of several sizes, one and a prime that is no power of two among them.
class LocalCommunicatorTest : public testing::TestWithParam<int> {
 protected:
  const int num_ranks = GetParam();
};

TEST_P(LocalCommunicatorTest, EveryRankOccursOnce) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(num_ranks));
  run_local_ranks(num_ranks, [&](Communicator& world) {
    EXPECT_EQ(world.size(), num_ranks);
    ++seen.at(static_cast<size_t>(world.rank()));
  });
  for (const auto& count : seen)
    EXPECT_EQ(count, 1);
}

TEST_P(LocalCommunicatorTest, ABarrierWaitsForAll) {
  std::atomic<int> arrived = 0;
  run_local_ranks(num_ranks, [&](Communicator& world) {
    for (int round = 1; round <= 50; ++round) {
      ++arrived;
      world.barrier();
      EXPECT_EQ(arrived, round * num_ranks);
      world.barrier();
    }
  });
}

TEST_P(LocalCommunicatorTest, AllGatherConcatenatesInRankOrder) {
  // Rank r contributes r * 3 bytes: rank 0 none.
  Sizes sizes;
  Bytes expected;
  for (int rank = 0; rank < num_ranks; ++rank) {
    sizes.push_back(rank * 3);
    append(expected, marked_bytes(rank * 3, rank));
  }
  run_local_ranks(num_ranks, [&](Communicator& world) {
    Bytes received(expected.size());
    world.all_gather(marked_bytes(world.rank() * 3, world.rank()), received, sizes);
    EXPECT_EQ(received, expected);
  });
}

TEST_P(LocalCommunicatorTest, EveryCollectiveTakesZeroBytes) {
  const Sizes none(static_cast<size_t>(num_ranks), 0);
  run_local_ranks(num_ranks, [&](Communicator& world) {
    world.all_gather({}, {}, none);
    world.broadcast({}, 0);
    world.all_reduce_sum({});
    world.all_to_all({}, none, {}, none);
  });
}

TEST_P(LocalCommunicatorTest, BroadcastTakesAnyRoot) {
  run_local_ranks(num_ranks, [&](Communicator& world) {
    for (int root = 0; root < num_ranks; ++root) {
      Bytes data = marked_bytes(37, world.rank());
      world.broadcast(data, root);
      EXPECT_EQ(data, marked_bytes(37, root));
    }
  });
}

TEST_P(LocalCommunicatorTest, AllToAllSendsEachRankItsOwn) {
  // From rank f to rank t: (f + 2 t) % 4 bytes, so that some pairs exchange nothing.
  const auto count = [](int from, int to) { return (from + 2 * to) % 4; };
  run_local_ranks(num_ranks, [&](Communicator& world) {
    Bytes send;
    Bytes expected;
    Sizes send_bytes;
    Sizes receive_bytes;
    for (int other = 0; other < num_ranks; ++other) {
      send_bytes.push_back(count(world.rank(), other));
      receive_bytes.push_back(count(other, world.rank()));
      append(send, marked_bytes(send_bytes.back(), world.rank(), other));
      append(expected, marked_bytes(receive_bytes.back(), other, world.rank()));
    }
    Bytes received(static_cast<size_t>(sum(receive_bytes)));
    world.all_to_all(send, send_bytes, received, receive_bytes);
    EXPECT_EQ(received, expected);
  });
}

TEST_P(LocalCommunicatorTest, AllReduceAddsInRankOrderToTheSameBitsEverywhere) {
  constexpr size_t kCount = 1000;
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  std::vector<std::vector<float>> inputs;
  for (int rank = 0; rank < num_ranks; ++rank) {
    inputs.push_back(rng.normals(kCount, std::pow(10.0F, static_cast<float>(rank))));
    // In f32, 1e8 + 1 - 1e8 is 0 in this order and 1 in others.
    inputs.back()[0] = rank == 0 ? 1e8F : (rank == 1 ? 1.0F : -1e8F);
  }
  std::vector<float> expected = inputs[0];
  for (size_t rank = 1; rank < inputs.size(); ++rank) {
    for (size_t i = 0; i < kCount; ++i)
      expected[i] += inputs[rank][i];
  }
  run_local_ranks(num_ranks, [&](Communicator& world) {
    std::vector<float> data = inputs[static_cast<size_t>(world.rank())];
    world.all_reduce_sum(data);
    EXPECT_EQ(std::memcmp(data.data(), expected.data(), kCount * sizeof(float)), 0)
        << "rank " << world.rank();
  });
}

TEST_P(LocalCommunicatorTest, ManyCollectivesInARowDoNotMixUp) {
  const Sizes one_each(static_cast<size_t>(num_ranks), 4);
  run_local_ranks(num_ranks, [&](Communicator& world) {
    for (int round = 0; round < 300; ++round) {
      const int mine = round * 100 + world.rank();
      std::vector<int> all(static_cast<size_t>(num_ranks));
      world.all_gather(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)),
                       one_each);
      for (int rank = 0; rank < num_ranks; ++rank) {
        ASSERT_EQ(all[static_cast<size_t>(rank)], round * 100 + rank);
      }
      std::vector<float> ones = {1.0F};
      world.all_reduce_sum(ones);
      ASSERT_EQ(ones[0], static_cast<float>(num_ranks));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(GroupSizes, LocalCommunicatorTest, testing::Values(1, 2, 3, 5));

TEST(SelfCommunicatorTest, IsAGroupOfOne) {
  const auto self = make_self_communicator();
  EXPECT_EQ(self->rank(), 0);
  EXPECT_EQ(self->size(), 1);
  std::vector<float> data = {1.5F};
  self->all_reduce_sum(data);
  EXPECT_EQ(data[0], 1.5F);
  const Bytes sent = marked_bytes(5, 1);
  Bytes received(5);
  self->all_gather(sent, received, Sizes{5});
  EXPECT_EQ(received, sent);
}

}  // namespace
}  // namespace gantry::test
