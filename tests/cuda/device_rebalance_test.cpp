// Experts in GPU memory that move between ranks: the bytes of a fresh upload, damage that all ranks
// notice, calls before and after the switch.

#include "runtime/device_rebalance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "kernels/cuda/device_kernels.h"
#include "runtime/device_weights.h"
#include "tests/runtime/rebalance_case.h"
#include "tests/support/device_array.h"
#include "tests/support/expect_error.h"
#include "tests/support/mutations.h"
#include "tests/support/random_maps.h"
#include "tests/support/same_bits.h"

namespace gantry::test {
namespace {

constexpr int kRanks = 3;

std::vector<std::byte> read(const std::shared_ptr<Device>& device, const DeviceBuffer& buffer) {
  std::vector<std::byte> bytes(buffer.size());
  device->copy_out(bytes.data(), buffer.data(), bytes.size(), nullptr);
  device->synchronize(nullptr);
  return bytes;
}

// Of one rank: layer, what moves its memory, what it computes.
struct RankLayer {
  RankLayer(RebalanceCase& layer_case, const std::shared_ptr<Device>& device,
            const ParallelConfig& config, const ExpertMap& map, Communicator& host,
            bool quantize_rows = false)
      : world(make_host_staged_communicator(host, device, {})),
        layer(device, layer_case.load(of_rank(config, host), map), map, options(quantize_rows),
              world.get()) {}

  static DeviceMoeOptions options(bool quantize_rows = false) {
    DeviceMoeOptions options;
    options.quantize_rows = quantize_rows;
    options.threads.count = 1;
    options.batch_invariant = true;
    options.exchange = {.kind = ExchangeKind::kAllToAll, .combine = CombineOrder::kOrdered};
    return options;
  }

  std::vector<float> forward(const std::vector<float>& x) {
    DeviceWorkspace workspace = layer.make_workspace(4);
    std::vector<float> out(x.size());
    layer.forward_host({.hidden_states = x}, workspace, out);
    return out;
  }

  std::unique_ptr<DeviceCommunicator> world;
  DeviceMoeLayer layer;
};

class DeviceRebalanceTest : public DeviceTest {
 protected:
  RebalanceCase layer_case{golden_root() / "quant" / "modelopt-nvfp4-mixtral"};
  const int num_experts = layer_case.spec().num_experts;
  const ExpertMap linear = ExpertMap::create(num_experts, kRanks, Placement::kLinear);
  const ParallelConfig ranks{.ep_size = kRanks};

  // Every rank holds at least one copy of something.
  ExpertMap random_map() {
    for (;;) {
      ExpertMap map = test::random_map(num_experts, kRanks, rng);
      bool used = true;
      for (int rank = 0; rank < kRanks; ++rank)
        used &= map.num_slots(rank) > 0;
      if (used) return map;
    }
  }

  void expect_slots_of(RankLayer& own, const ExpertMap& map, Communicator& host) {
    const DeviceMoeLayer fresh(device, layer_case.load(of_rank(ranks, host), map), map,
                               RankLayer::options(), own.world.get());
    EXPECT_EQ(own.layer.experts()->map, map);
    EXPECT_TRUE(read(device, own.layer.experts()->slots) == read(device, fresh.experts()->slots))
        << "rank " << host.rank();
    EXPECT_TRUE(read(device, own.layer.experts()->logical.slot) ==
                read(device, fresh.experts()->logical.slot));
    EXPECT_TRUE(read(device, own.layer.experts()->physical.ep_rank) ==
                read(device, fresh.experts()->physical.ep_rank));
  }
};

TEST_F(DeviceRebalanceTest, SlotsAreThoseOfAFreshUpload) {
  std::vector<ExpertMap> maps;
  const int num_maps = 6 * trials();
  for (int i = 0; i < num_maps; ++i)
    maps.push_back(random_map());
  const std::vector<float> x = rng.normals(static_cast<size_t>(5 * layer_case.spec().hidden_size));
  run_local_ranks(kRanks, [&](Communicator& host) {
    RankLayer own(layer_case, device, ranks, linear, host);
    const std::vector<float> before = own.forward(x);
    for (const ExpertMap& map : maps) {
      const OwnedStream stream(device);
      const MovePlan plan = plan_moves(own.layer.experts()->map, map);
      const RebalanceStats stats = rebalance(own.layer, map, host, *own.world, stream.handle());
      EXPECT_EQ(stats.rounds, static_cast<int>(plan.rounds.size()));
      expect_slots_of(own, map, host);
      // Ordered sums: the bits do not depend on who computes.
      EXPECT_TRUE(same_bits(own.forward(x), before)) << "seed " << rng.seed();
    }
  });
}

TEST_F(DeviceRebalanceTest, CallsRunOnTheOldSlotsUntilTheCommit) {
  const ExpertMap map = ExpertMap::create(num_experts, kRanks, Placement::kRoundRobin);
  const std::vector<float> x = rng.normals(static_cast<size_t>(3 * layer_case.spec().hidden_size));
  run_local_ranks(kRanks, [&](Communicator& host) {
    RankLayer own(layer_case, device, ranks, linear, host);
    const auto old = own.layer.experts();
    const std::vector<float> before = own.forward(x);
    {
      StagedDeviceRebalance staged(own.layer, map, host, *own.world, nullptr);
      EXPECT_EQ(own.layer.experts(), old);
      EXPECT_TRUE(same_bits(own.forward(x), before));
      expect_error([&] { rebalance(own.layer, linear, host, *own.world, nullptr); },
                   ErrorCode::kInvalidArgument, {"already being moved"});
      staged.commit();
      EXPECT_EQ(own.layer.experts()->map, map);
      EXPECT_TRUE(same_bits(own.forward(x), before));
    }
    { const StagedDeviceRebalance dropped(own.layer, linear, host, *own.world, nullptr); }
    EXPECT_EQ(own.layer.experts()->map, map);
    rebalance(own.layer, linear, host, *own.world, nullptr);
    expect_slots_of(own, linear, host);
  });
}

// Flips a bit of the n-th group of messages that brings something to a rank.
class FlippingHost final : public WrappedCommunicator {
 public:
  FlippingHost(Communicator& inner, int rank, int nth, size_t byte)
      : WrappedCommunicator(inner), rank_(rank), nth_(nth), byte_(byte) {}

 protected:
  void exchange(const Operation& operation, std::span<const SendPart> sends,
                std::span<const ReceivePart> receives) override {
    WrappedCommunicator::exchange(operation, sends, receives);
    if (rank() != rank_ || receives.empty() || count_++ != nth_) return;
    const std::span<std::byte> data = receives.front().data;
    data[byte_ % data.size()] ^= std::byte{0x04};
  }

 private:
  int rank_;
  int nth_;
  size_t byte_;
  int count_ = 0;
};

TEST_F(DeviceRebalanceTest, ABitThatFlipsOnTheWayIsNoticedByAllRanks) {
  const ExpertMap map = ExpertMap::create(num_experts, kRanks, Placement::kRoundRobin);
  const MovePlan plan = plan_moves(linear, map);
  int arrivals = 0;  // on rank 2
  for (const auto& round : plan.rounds) {
    arrivals += static_cast<int>(std::count_if(
        round.begin(), round.end(), [](const SlotMove& move) { return move.to_rank == 2; }));
  }
  ASSERT_GT(arrivals, 0);
  for (int nth = 0; nth < arrivals; ++nth) {
    std::atomic<int> noticed = 0;
    const auto byte = static_cast<size_t>(rng.integer(0, 1 << 20));
    run_local_ranks(kRanks, [&](Communicator& host) {
      RankLayer own(layer_case, device, ranks, linear, host);
      FlippingHost flipping(host, 2, nth, byte);
      const auto world = make_host_staged_communicator(flipping, device, {});
      const auto before = own.layer.experts();
      expect_error([&] { rebalance(own.layer, map, host, *world, nullptr); }, ErrorCode::kIo,
                   {"rebalance of layer", "rank 2: expert", "digest"});
      ++noticed;
      EXPECT_EQ(own.layer.experts(), before);
      rebalance(own.layer, map, host, *own.world, nullptr);
      expect_slots_of(own, map, host);
    });
    EXPECT_EQ(noticed, kRanks) << "byte " << byte << ", seed " << rng.seed();
  }
}

TEST_F(DeviceRebalanceTest, RefusesMapsThatRanksDoNotShareOrCannotHold) {
  const ExpertMap dealt = ExpertMap::create(num_experts, kRanks, Placement::kRoundRobin);
  std::vector<int32_t> all;
  for (int32_t expert = 0; expert < num_experts; ++expert)
    all.push_back(expert);
  const ExpertMap empty_rank = ExpertMap::from_slots(num_experts, {all, {}, {0}});
  run_local_ranks(kRanks, [&](Communicator& host) {
    RankLayer own(layer_case, device, ranks, linear, host);
    expect_error(
        [&] { rebalance(own.layer, host.rank() == 1 ? linear : dealt, host, *own.world, nullptr); },
        ErrorCode::kInvalidArgument, {"rank 0: rank 1 has another new map"});
    expect_error([&] { rebalance(own.layer, empty_rank, host, *own.world, nullptr); },
                 ErrorCode::kUnsupported, {"EP rank 1 would hold no expert"});
    DeviceWorkspace small = own.layer.make_workspace(4);
    std::vector<std::vector<int32_t>> slots(kRanks);
    for (int rank = 0; rank < kRanks; ++rank) {
      const auto held = linear.slot_to_logical(rank);
      slots[static_cast<size_t>(rank)].assign(held.begin(), held.end());
      slots[static_cast<size_t>(rank)].push_back(0);
    }
    rebalance(own.layer, ExpertMap::from_slots(num_experts, slots), host, *own.world, nullptr);
    std::vector<float> x(static_cast<size_t>(layer_case.spec().hidden_size));
    std::vector<float> out(x.size());
    host.barrier();
    const DeviceArray<float> device_x(device, x);
    const DeviceArray<float> device_out(device, x);
    expect_error(
        [&] {
          own.layer.forward({.num_tokens = 1, .hidden_states = device_x.data()}, small,
                            device_out.data(), nullptr);
        },
        ErrorCode::kInvalidArgument, {"workspace was made for", "expert slots"});
  });
}

TEST_F(DeviceRebalanceTest, RefusesExpertsWhoseStaticScalesWouldStay) {
  RebalanceCase fp8{golden_root() / "quant" / "quark-fp8"};
  const int experts = fp8.spec().num_experts;
  const ExpertMap from = ExpertMap::create(experts, kRanks, Placement::kLinear);
  const ExpertMap to = ExpertMap::create(experts, kRanks, Placement::kRoundRobin);
  run_local_ranks(kRanks, [&](Communicator& host) {
    RankLayer quantized(fp8, device, ranks, from, host, /*quantize_rows=*/true);
    expect_error([&] { rebalance(quantized.layer, to, host, *quantized.world, nullptr); },
                 ErrorCode::kUnsupported, {"static scales", "bf16 activations"});
    RankLayer bf16(fp8, device, ranks, from, host);
    rebalance(bf16.layer, to, host, *bf16.world, nullptr);
    EXPECT_EQ(bf16.layer.experts()->map, to);
  });
}

TEST_F(DeviceRebalanceTest, DigestsShowEveryChangedWord) {
  std::vector<uint64_t> words(1000);
  for (uint64_t& word : words)
    word = static_cast<uint64_t>(rng.integer(0, 1 << 30));
  const auto digest = [&](const std::vector<uint64_t>& values) {
    const DeviceArray<uint64_t> data(device, values);
    const DigestWords kernel{data.data(), static_cast<int64_t>(values.size()), nullptr};
    const DeviceArray<uint64_t> sums(device, 2 * static_cast<size_t>(kernel.launch_shape().blocks));
    device->kernels().digest_words({data.data(), kernel.num_words, sums.data()},
                                   device->attributes(), nullptr);
    const std::vector<uint64_t> found = sums.read();
    std::pair<uint64_t, uint64_t> total;
    for (size_t i = 0; i < found.size(); i += 2) {
      total.first += found[i];
      total.second += found[i + 1];
    }
    return total;
  };
  const auto expected = digest(words);
  EXPECT_EQ(digest(words), expected);
  for (const size_t at : {size_t{0}, size_t{255}, size_t{256}, size_t{999}}) {
    std::vector<uint64_t> changed = words;
    changed[at] ^= uint64_t{1} << (at % 64);
    EXPECT_NE(digest(changed).first, expected.first) << at;
    EXPECT_NE(digest(changed).second, expected.second) << at;
  }
  std::swap(words[3], words[700]);
  EXPECT_NE(digest(words), expected) << rng.seed();
}

}  // namespace
}  // namespace gantry::test
