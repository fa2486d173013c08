// What every communicator of device memory must do, whatever carries its bytes.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "tests/parallel/device_groups.h"
#include "tests/parallel/rank_groups.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"
#include "tests/support/nccl_double_control.h"
#include "tests/support/same_bits.h"

namespace gantry::test {
namespace {

using Bytes = std::vector<unsigned char>;
using Sizes = std::vector<int64_t>;

size_t at(int rank) { return static_cast<size_t>(rank); }

// `count` bytes that tell who sent them to whom.
Bytes marked_bytes(int64_t count, int from, int to = 0) {
  Bytes bytes(static_cast<size_t>(count));
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<unsigned char>(from * 50 + to * 10 + static_cast<int>(i % 10));
  return bytes;
}

void append(Bytes& bytes, const Bytes& more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
}

int64_t sum(const Sizes& sizes) { return std::accumulate(sizes.begin(), sizes.end(), int64_t{0}); }

std::span<std::byte> span_of(const DeviceArray<unsigned char>& array, size_t count) {
  return {reinterpret_cast<std::byte*>(array.data()), count};
}

class DeviceCommunicatorTest : public testing::TestWithParam<std::tuple<Transport, int>> {
 protected:
  void SetUp() override {
    if (test_device() == nullptr) GTEST_SKIP() << no_device_reason();
  }
  void run(const std::function<void(DeviceCommunicator& world, StreamHandle stream)>& body) {
    run_device_ranks(std::get<0>(GetParam()), num_ranks, [&](DeviceCommunicator& world) {
      const OwnedStream stream(world.device());
      body(world, stream.handle());
    });
  }
  const int num_ranks = std::get<1>(GetParam());
};

TEST_P(DeviceCommunicatorTest, AllGatherConcatenatesInRankOrder) {
  // Equal parts, and r * 3 bytes of rank r: rank 0 none. In place, and not.
  for (const bool even : {true, false}) {
    Sizes sizes;
    Bytes expected;
    for (int rank = 0; rank < num_ranks; ++rank) {
      sizes.push_back(even ? 100 : rank * 3);
      append(expected, marked_bytes(sizes.back(), rank));
    }
    run([&](DeviceCommunicator& world, StreamHandle stream) {
      const int64_t own = sizes[at(world.rank())];
      const DeviceArray<unsigned char> send(world.device(), marked_bytes(own, world.rank()));
      const DeviceArray<unsigned char> receive(world.device(), expected.size());
      world.all_gather(span_of(send, at(static_cast<int>(own))), span_of(receive, expected.size()),
                       sizes, stream);
      world.wait(stream);
      EXPECT_EQ(receive.read(), expected);

      const auto begin = static_cast<size_t>(
          std::accumulate(sizes.begin(), sizes.begin() + world.rank(), int64_t{0}));
      Bytes start(expected.size(), 0);
      std::copy_n(expected.begin() + static_cast<ptrdiff_t>(begin), own,
                  start.begin() + static_cast<ptrdiff_t>(begin));
      const DeviceArray<unsigned char> both(world.device(), start);
      const std::span<std::byte> all = span_of(both, expected.size());
      world.all_gather(all.subspan(begin, static_cast<size_t>(own)), all, sizes, stream);
      world.wait(stream);
      EXPECT_EQ(both.read(), expected);
    });
  }
}

TEST_P(DeviceCommunicatorTest, EveryCollectiveTakesZeroBytes) {
  const Sizes none(at(num_ranks), 0);
  run([&](DeviceCommunicator& world, StreamHandle stream) {
    world.all_gather({}, {}, none, stream);
    world.broadcast({}, 0, stream);
    for (const SumOrder order : {SumOrder::kRank, SumOrder::kNative}) {
      world.all_reduce_sum({}, order, stream);
      world.reduce_scatter_sum({}, {}, none, order, stream);
    }
    world.all_to_all({}, none, {}, none, stream);
    world.send_receive({}, {}, stream);
    world.barrier(stream);
  });
}

TEST_P(DeviceCommunicatorTest, BroadcastTakesAnyRoot) {
  run([&](DeviceCommunicator& world, StreamHandle stream) {
    for (int root = 0; root < num_ranks; ++root) {
      const DeviceArray<unsigned char> data(world.device(), marked_bytes(37, world.rank()));
      world.broadcast(span_of(data, 37), root, stream);
      world.wait(stream);
      EXPECT_EQ(data.read(), marked_bytes(37, root));
    }
  });
}

TEST_P(DeviceCommunicatorTest, AllToAllSendsEachRankItsOwn) {
  // From rank f to rank t: (f + 2 t) % 4 bytes, so that some pairs exchange nothing; then much.
  for (const int64_t factor : {1, 30011}) {
    const auto count = [&](int from, int to) { return (from + 2 * to) % 4 * factor; };
    run([&](DeviceCommunicator& world, StreamHandle stream) {
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
      const DeviceArray<unsigned char> sent(world.device(), send);
      const DeviceArray<unsigned char> received(world.device(), expected.size());
      world.all_to_all(span_of(sent, send.size()), send_bytes, span_of(received, expected.size()),
                       receive_bytes, stream);
      world.wait(stream);
      EXPECT_EQ(received.read(), expected);
      EXPECT_EQ(world.traffic().bytes_received,
                sum(receive_bytes) - receive_bytes[at(world.rank())]);
      EXPECT_EQ(world.traffic().bytes_sent, sum(send_bytes) - send_bytes[at(world.rank())]);
    });
  }
}

TEST_P(DeviceCommunicatorTest, GroupedSendsArriveInOrderAtAnyRank) {
  // Every rank draws the same list of messages: some of no bytes, some to oneself.
  const uint32_t seed = 78;
  std::mt19937 engine(seed);
  struct Message {
    int from, to;
    Bytes data;
  };
  std::vector<Message> messages;
  for (int i = 0; i < 30; ++i) {
    const int from = static_cast<int>(engine() % static_cast<unsigned>(num_ranks));
    const int to = static_cast<int>(engine() % static_cast<unsigned>(num_ranks));
    const auto bytes = static_cast<int64_t>(i % 8 == 0 ? 50000 + engine() % 50000 : engine() % 500);
    messages.push_back({from, to, marked_bytes(i % 9 == 0 ? 0 : bytes, i % 5, i % 7)});
  }
  run([&](DeviceCommunicator& world, StreamHandle stream) {
    std::vector<DeviceArray<unsigned char>> memory;
    std::vector<SendPart> sends;
    std::vector<ReceivePart> receives;
    std::vector<const Message*> expected;
    for (const Message& message : messages) {
      if (message.from == world.rank()) {
        memory.emplace_back(world.device(), message.data);
        sends.push_back({message.to, span_of(memory.back(), message.data.size())});
      }
    }
    const size_t first = memory.size();
    for (const Message& message : messages) {
      if (message.to != world.rank()) continue;
      memory.emplace_back(world.device(), message.data.size());
      receives.push_back({message.from, span_of(memory.back(), message.data.size())});
      expected.push_back(&message);
    }
    world.send_receive(sends, receives, stream);
    world.wait(stream);
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_EQ(memory[first + i].read(), expected[i]->data) << "seed " << seed;
  });
}

// Rank r's addends; all ranks draw the same. In f32, 1 + 1e8 - 1e8 is 0 in this order, 1 in others.
std::vector<std::vector<float>> make_addends(int num_ranks, size_t count, SeededRng& rng) {
  std::vector<std::vector<float>> inputs;
  for (int rank = 0; rank < num_ranks; ++rank) {
    inputs.push_back(rng.normals(count, std::pow(10.0F, static_cast<float>(rank))));
    inputs.back()[0] = rank == 0 ? 1.0F : (rank % 2 == 1 ? 1e8F : -1e8F);
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

// n - 1 additions in any order, each rounded by at most 2^-24 of what is there.
void expect_sum(const std::vector<float>& found, const std::vector<std::vector<float>>& inputs,
                size_t first = 0) {
  for (size_t i = 0; i < found.size(); ++i) {
    double total = 0.0;
    double magnitude = 0.0;
    for (const auto& input : inputs) {
      total += input[first + i];
      magnitude += std::fabs(input[first + i]);
    }
    ASSERT_NEAR(found[i], total,
                static_cast<double>(inputs.size() - 1) * std::ldexp(magnitude, -24))
        << i;
  }
}

// 1000 elements are summed everywhere, 20003 in parts.
constexpr std::array<size_t, 4> kCounts = {1, 3, 1000, 20003};

TEST_P(DeviceCommunicatorTest, AllReduceAddsInRankOrderToTheSameBitsEverywhere) {
  SeededRng rng(20264);
  for (const size_t count : kCounts) {
    const auto inputs = make_addends(num_ranks, count, rng);
    const std::vector<float> expected = sum_in_rank_order(inputs);
    run([&](DeviceCommunicator& world, StreamHandle stream) {
      const DeviceArray<float> data(world.device(), inputs[at(world.rank())]);
      world.all_reduce_sum({data.data(), count}, SumOrder::kRank, stream);
      world.wait(stream);
      EXPECT_TRUE(same_bits(data.read(), expected))
          << "rank " << world.rank() << ", " << count << " elements";
    });
  }
}

// Rank r gets r parts of the whole in turn, the last rank the rest: rank 0 nothing.
Sizes uneven_parts(size_t count, int num_ranks) {
  Sizes counts;
  auto rest = static_cast<int64_t>(count);
  for (int rank = 0; rank < num_ranks; ++rank) {
    const int64_t part = static_cast<int64_t>(count) * rank / (num_ranks * num_ranks);
    counts.push_back(rank + 1 == num_ranks ? rest : part);
    rest -= part;
  }
  return counts;
}

TEST_P(DeviceCommunicatorTest, ReduceScatterGivesEachRankItsPart) {
  SeededRng rng(20265);
  for (const size_t count : kCounts) {
    const auto inputs = make_addends(num_ranks, count, rng);
    const std::vector<float> expected = sum_in_rank_order(inputs);
    const Sizes counts = uneven_parts(count, num_ranks);
    run([&](DeviceCommunicator& world, StreamHandle stream) {
      const int rank = world.rank();
      const auto begin =
          static_cast<size_t>(std::accumulate(counts.begin(), counts.begin() + rank, int64_t{0}));
      const auto own = static_cast<size_t>(counts[at(rank)]);
      const DeviceArray<float> send(world.device(), inputs[at(rank)]);
      const DeviceArray<float> part(world.device(), own);
      world.reduce_scatter_sum({send.data(), count}, {part.data(), own}, counts, SumOrder::kRank,
                               stream);
      world.wait(stream);
      EXPECT_TRUE(same_bits(part.read(), std::span(expected).subspan(begin, own)))
          << "rank " << rank << ", " << count << " elements";
      world.reduce_scatter_sum({send.data(), count}, {part.data(), own}, counts, SumOrder::kNative,
                               stream);
      world.wait(stream);
      expect_sum(part.read(), inputs, begin);
    });
  }
}

TEST_P(DeviceCommunicatorTest, NativeAllReduceIsTheSumWithinItsBound) {
  SeededRng rng(20266);
  const auto inputs = make_addends(num_ranks, 5000, rng);
  run([&](DeviceCommunicator& world, StreamHandle stream) {
    const DeviceArray<float> data(world.device(), inputs[at(world.rank())]);
    world.all_reduce_sum({data.data(), 5000}, SumOrder::kNative, stream);
    world.wait(stream);
    expect_sum(data.read(), inputs);
  });
}

TEST_P(DeviceCommunicatorTest, ManyOperationsInARowDoNotMixUp) {
  run([&](DeviceCommunicator& world, StreamHandle stream) {
    const DeviceArray<float> one(world.device(), size_t{1});
    for (int round = 0; round < 100; ++round) {
      const auto value = static_cast<float>(round + world.rank());
      world.device()->copy_in(one.data(), &value, sizeof(value), stream);
      world.all_reduce_sum({one.data(), 1}, SumOrder::kRank, stream);
      world.wait(stream);
      ASSERT_EQ(one.read()[0],
                static_cast<float>(num_ranks * round + num_ranks * (num_ranks - 1) / 2));
    }
  });
}

TEST_P(DeviceCommunicatorTest, RefusesSizesThatDoNotFitOnEveryRank) {
  const DeviceArray<unsigned char> data(test_device(), size_t{64});
  const Sizes eight(at(num_ranks), 8);
  expect_error(
      [&] {
        run([&](DeviceCommunicator& world, StreamHandle stream) {
          world.all_gather(span_of(data, 7), span_of(data, at(num_ranks) * 8), eight, stream);
        });
      },
      ErrorCode::kInvalidArgument, {"all_gather", "sends 7 bytes, expected 8"});
  expect_error(
      [&] {
        run([&](DeviceCommunicator& world, StreamHandle stream) {
          world.broadcast(span_of(data, 7), num_ranks, stream);
        });
      },
      ErrorCode::kInvalidArgument, {"broadcast: root"});
}

INSTANTIATE_TEST_SUITE_P(Groups, DeviceCommunicatorTest,
                         testing::Combine(testing::Values(Transport::kHostStaged, Transport::kNccl),
                                          testing::ValuesIn(group_sizes())));

// The double adds from the last rank to the first: what has its bits went through it.
TEST(SumOrderTest, NativeSumsAreTheTransportsAndRankSumsAreNot) {
  const std::vector<int> sizes = group_sizes();
  if (std::find(sizes.begin(), sizes.end(), 3) == sizes.end()) {
    GTEST_SKIP() << "three ranks are needed";
  }
  if (nccl_test_options().library.empty()) GTEST_SKIP() << "not the double";
  run_device_ranks(Transport::kNccl, 3, [](DeviceCommunicator& world) {
    const std::array<float, 3> addends = {1.0F, 1e8F, -1e8F};
    for (const SumOrder order : {SumOrder::kRank, SumOrder::kNative}) {
      const DeviceArray<float> value(world.device(), std::vector<float>{addends[at(world.rank())]});
      world.all_reduce_sum({value.data(), 1}, order, nullptr);
      world.wait(nullptr);
      EXPECT_EQ(value.read()[0], order == SumOrder::kRank ? 0.0F : 1.0F);
    }
  });
}

}  // namespace
}  // namespace gantry::test
