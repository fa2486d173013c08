// What every communicator must do, whatever carries its bytes.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "tests/parallel/rank_groups.h"
#include "tests/support/same_bits.h"
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

class CommunicatorTest : public testing::TestWithParam<int> {
 protected:
  const int num_ranks = GetParam();
};

template <typename T>
std::vector<T> gather_one_each(Communicator& world, const T& own) {
  std::vector<T> all(static_cast<size_t>(world.size()));
  world.all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(all)),
                   Sizes(all.size(), sizeof(T)));
  return all;
}

TEST_P(CommunicatorTest, EveryRankOccursOnce) {
  run_ranks(num_ranks, [&](Communicator& world) {
    EXPECT_EQ(world.size(), num_ranks);
    const std::vector<int> ranks = gather_one_each(world, world.rank());
    for (int rank = 0; rank < num_ranks; ++rank)
      EXPECT_EQ(ranks.at(static_cast<size_t>(rank)), rank);
  });
}

TEST_P(CommunicatorTest, ABarrierWaitsForAll) {
  // The clock is the machine's, so ranks of all kinds can compare what they read off it.
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  run_ranks(num_ranks, [&](Communicator& world) {
    for (int round = 0; round < 20; ++round) {
      if (round % num_ranks == world.rank()) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
      const auto arrived = now();
      world.barrier();
      const auto left = now();
      const auto arrivals = gather_one_each(world, arrived);
      EXPECT_GE(left, *std::max_element(arrivals.begin(), arrivals.end()));
    }
  });
}

TEST_P(CommunicatorTest, AllGatherConcatenatesInRankOrder) {
  // Rank r contributes r * 3 bytes: rank 0 none.
  Sizes sizes;
  Bytes expected;
  for (int rank = 0; rank < num_ranks; ++rank) {
    sizes.push_back(rank * 3);
    append(expected, marked_bytes(rank * 3, rank));
  }
  run_ranks(num_ranks, [&](Communicator& world) {
    Bytes received(expected.size());
    world.all_gather(marked_bytes(world.rank() * 3, world.rank()), received, sizes);
    EXPECT_EQ(received, expected);
  });
}

TEST_P(CommunicatorTest, EveryCollectiveTakesZeroBytes) {
  const Sizes none(static_cast<size_t>(num_ranks), 0);
  run_ranks(num_ranks, [&](Communicator& world) {
    world.all_gather({}, {}, none);
    world.broadcast({}, 0);
    world.all_reduce_sum({});
    world.reduce_scatter_sum({}, {}, none);
    world.all_to_all({}, none, {}, none);
    world.send_receive({}, {});
  });
}

TEST_P(CommunicatorTest, BroadcastTakesAnyRoot) {
  run_ranks(num_ranks, [&](Communicator& world) {
    for (int root = 0; root < num_ranks; ++root) {
      Bytes data = marked_bytes(37, world.rank());
      world.broadcast(data, root);
      EXPECT_EQ(data, marked_bytes(37, root));
    }
  });
}

TEST_P(CommunicatorTest, AllToAllSendsEachRankItsOwn) {
  // From rank f to rank t: (f + 2 t) % 4 bytes, so that some pairs exchange nothing.
  const auto count = [](int from, int to) { return (from + 2 * to) % 4; };
  run_ranks(num_ranks, [&](Communicator& world) {
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

// Rank r's addends. All ranks draw the same.
std::vector<std::vector<float>> make_addends(int num_ranks, size_t count, SeededRng& rng) {
  std::vector<std::vector<float>> inputs;
  for (int rank = 0; rank < num_ranks; ++rank) {
    inputs.push_back(rng.normals(count, std::pow(10.0F, static_cast<float>(rank))));
    // In f32, 1e8 + 1 - 1e8 is 0 in this order and 1 in others.
    inputs.back()[0] = rank == 0 ? 1e8F : (rank == 1 ? 1.0F : -1e8F);
    inputs.back()[count - 1] = inputs.back()[0];
  }
  return inputs;
}

std::vector<float> sum_in_rank_order(const std::vector<std::vector<float>>& inputs) {
  std::vector<float> total = inputs[0];
  for (size_t rank = 1; rank < inputs.size(); ++rank) {
    for (size_t i = 0; i < total.size(); ++i)
      total[i] += inputs[rank][i];
  }
  return total;
}

// 1000 elements are summed everywhere, 100003 in parts.
constexpr std::array<size_t, 4> kCounts = {1, 3, 1000, 100003};

TEST_P(CommunicatorTest, AllReduceAddsInRankOrderToTheSameBitsEverywhere) {
  SeededRng rng(20261);
  for (const size_t count : kCounts) {
    const auto inputs = make_addends(num_ranks, count, rng);
    const std::vector<float> expected = sum_in_rank_order(inputs);
    run_ranks(num_ranks, [&](Communicator& world) {
      std::vector<float> data = inputs[static_cast<size_t>(world.rank())];
      world.all_reduce_sum(data);
      EXPECT_TRUE(same_bits(data, expected))
          << "rank " << world.rank() << ", " << count << " elements";
    });
  }
}

TEST_P(CommunicatorTest, ReduceScatterGivesEachRankItsPartOfTheSameBits) {
  SeededRng rng(20262);
  for (const size_t count : kCounts) {
    const auto inputs = make_addends(num_ranks, count, rng);
    const std::vector<float> expected = sum_in_rank_order(inputs);
    // Rank r gets r parts of the whole in turn, the last rank the rest: rank 0 nothing.
    Sizes counts;
    auto rest = static_cast<int64_t>(count);
    for (int rank = 0; rank < num_ranks; ++rank) {
      const int64_t part = static_cast<int64_t>(count) * rank / (num_ranks * num_ranks);
      counts.push_back(rank + 1 == num_ranks ? rest : part);
      rest -= part;
    }
    run_ranks(num_ranks, [&](Communicator& world) {
      const auto rank = static_cast<size_t>(world.rank());
      const auto begin = std::accumulate(counts.begin(), counts.begin() + world.rank(), int64_t{0});
      std::vector<float> part(static_cast<size_t>(counts[rank]), -1.0F);
      world.reduce_scatter_sum(inputs[rank], part, counts);
      EXPECT_TRUE(
          same_bits(part, std::span(expected).subspan(static_cast<size_t>(begin), part.size())))
          << "rank " << rank << ", " << count << " elements";
    });
  }
}

TEST_P(CommunicatorTest, NativeAllReduceIsTheSumWithinItsBound) {
  SeededRng rng(20263);
  const auto inputs = make_addends(num_ranks, 5000, rng);
  run_ranks(num_ranks, [&](Communicator& world) {
    std::vector<float> data = inputs[static_cast<size_t>(world.rank())];
    world.all_reduce_sum_native(data);
    for (size_t i = 0; i < data.size(); ++i) {
      double sum = 0.0;
      double magnitude = 0.0;
      for (const auto& input : inputs) {
        sum += input[i];
        magnitude += std::fabs(input[i]);
      }
      // n - 1 additions in any order, each rounded by at most 2^-24 of what is there.
      ASSERT_NEAR(data[i], sum, (num_ranks - 1) * std::ldexp(magnitude, -24)) << i;
    }
  });
}

// Parts of different sizes, nothing among them.
TEST_P(CommunicatorTest, NativeReduceScatterIsTheSumWithinItsBoundOrRefused) {
  SeededRng rng(20264);
  for (const int64_t most : {int64_t{1}, int64_t{7}, int64_t{3000}}) {
    Sizes counts;
    for (int rank = 0; rank < num_ranks; ++rank)
      counts.push_back(rank % 2 == 0 ? most : most / 3);
    const auto total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    const auto inputs = make_addends(num_ranks, static_cast<size_t>(total), rng);
    run_ranks(num_ranks, [&](Communicator& world) {
      const auto rank = static_cast<size_t>(world.rank());
      std::vector<float> part(static_cast<size_t>(counts[rank]), -1.0F);
      if (!world.has_native_reduction()) {
        EXPECT_THROW(world.reduce_scatter_sum_native(inputs[rank], part, counts), Error);
        return;
      }
      world.reduce_scatter_sum_native(inputs[rank], part, counts);
      const auto begin = static_cast<size_t>(
          std::accumulate(counts.begin(), counts.begin() + world.rank(), int64_t{0}));
      for (size_t i = 0; i < part.size(); ++i) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (const auto& input : inputs) {
          sum += input[begin + i];
          magnitude += std::fabs(input[begin + i]);
        }
        ASSERT_NEAR(part[i], sum, (num_ranks - 1) * std::ldexp(magnitude, -24)) << i;
      }
    });
  }
}

TEST_P(CommunicatorTest, GroupedSendsArriveInOrderAtAnyRank) {
  // Every rank draws the same list of messages (sender, receiver, size), some of no bytes, some to
  // oneself, some larger than what travels with a header.
  const uint32_t seed = 77;
  std::mt19937 engine(seed);
  struct Message {
    int from, to;
    Bytes data;
  };
  std::vector<Message> messages;
  for (int i = 0; i < 40; ++i) {
    const int from = static_cast<int>(engine() % static_cast<unsigned>(num_ranks));
    const int to = static_cast<int>(engine() % static_cast<unsigned>(num_ranks));
    const auto bytes = static_cast<int64_t>(i % 8 == 0 ? 50000 + engine() % 50000 : engine() % 500);
    messages.push_back({from, to, marked_bytes(i % 9 == 0 ? 0 : bytes, i % 5, i % 7)});
  }
  run_ranks(num_ranks, [&](Communicator& world) {
    std::vector<SendPart> sends;
    std::vector<ReceivePart> receives;
    std::vector<Bytes> received;
    for (const Message& message : messages) {
      if (message.from == world.rank()) sends.push_back({message.to, message.data});
      if (message.to == world.rank()) received.emplace_back(message.data.size());
    }
    size_t next = 0;
    for (const Message& message : messages) {
      if (message.to == world.rank()) receives.push_back({message.from, received[next++]});
    }
    world.send_receive(sends, receives);
    next = 0;
    for (const Message& message : messages) {
      if (message.to != world.rank()) continue;
      EXPECT_EQ(received[next++], message.data) << "seed " << seed;
    }
  });
}

TEST_P(CommunicatorTest, MovesPartsLargerThanOnePiece) {
  // Two pieces of 64 MiB and a rest, from rank 0 to the last rank.
  constexpr size_t kBytes = (size_t{2} << 26) + 5;
  constexpr uint64_t kFirst = uint64_t{1} << 40;
  run_ranks(num_ranks, [&](Communicator& world) {
    const int last = world.size() - 1;
    std::vector<uint64_t> sent(world.rank() == 0 ? kBytes / 8 + 1 : 0);
    std::vector<uint64_t> received(world.rank() == last ? kBytes / 8 + 1 : 0);
    std::iota(sent.begin(), sent.end(), kFirst);
    std::vector<SendPart> sends;
    std::vector<ReceivePart> receives;
    if (!sent.empty()) sends.push_back({last, std::as_bytes(std::span(sent)).first(kBytes)});
    if (!received.empty()) {
      receives.push_back({0, std::as_writable_bytes(std::span(received)).first(kBytes)});
    }
    world.send_receive(sends, receives);
    for (size_t i = 0; i + 1 < received.size(); ++i)
      ASSERT_EQ(received[i], kFirst + i);
  });
}

TEST_P(CommunicatorTest, CountsTheBytesThatLeaveAndReachARank) {
  run_ranks(num_ranks, [&](Communicator& world) {
    const int64_t others = num_ranks - 1;
    const Sizes sizes(static_cast<size_t>(num_ranks), 10);
    Bytes all(static_cast<size_t>(10 * num_ranks));
    world.all_gather(Bytes(10), all, sizes);
    EXPECT_EQ(world.traffic().bytes_sent, 10 * others);
    EXPECT_EQ(world.traffic().bytes_received, 10 * others);
    world.broadcast(all, 0);
    const auto bytes = static_cast<int64_t>(all.size());
    EXPECT_EQ(world.traffic().bytes_sent, 10 * others + (world.rank() == 0 ? bytes * others : 0));
    EXPECT_EQ(world.traffic().bytes_received, 10 * others + (world.rank() == 0 ? 0 : bytes));
    EXPECT_EQ(world.traffic().operations, 2);
    EXPECT_EQ(world.current_operation(), nullptr);
  });
}

TEST_P(CommunicatorTest, ManyCollectivesInARowDoNotMixUp) {
  run_ranks(num_ranks, [&](Communicator& world) {
    for (int round = 0; round < 300; ++round) {
      const std::vector<int> all = gather_one_each(world, round * 100 + world.rank());
      for (int rank = 0; rank < num_ranks; ++rank) {
        ASSERT_EQ(all[static_cast<size_t>(rank)], round * 100 + rank);
      }
      std::vector<float> ones = {1.0F};
      world.all_reduce_sum(ones);
      ASSERT_EQ(ones[0], static_cast<float>(num_ranks));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(GroupSizes, CommunicatorTest, testing::ValuesIn(group_sizes()));

}  // namespace
}  // namespace gantry::test
