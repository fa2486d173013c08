// Slot memory that goes from layer to layer: what a load leaves of earlier bytes, in every golden.

#include "loader/slot_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "runtime/moe_model.h"
#include "tests/support/golden_dirs.h"

namespace gantry::test {
namespace {

constexpr auto kOldByte = std::byte{0xa5};

SlotLayout plain_layout(int64_t hidden_size) {
  return SlotLayout::create(DType::kBF16, /*gated=*/true, /*bias=*/false, 32, hidden_size);
}

TEST(SlotPoolTest, GivesMemoryOfTheSameLayoutAgain) {
  const auto pool = std::make_shared<SlotPool>();
  const SlotLayout layout = plain_layout(64);
  const std::byte* first = nullptr;
  {
    SlotBuffer buffer = pool->take(layout, 4096);
    first = buffer.data();
    EXPECT_EQ(buffer.size(), 4096U);
    EXPECT_TRUE(std::all_of(first, first + 4096, [](std::byte b) { return b == std::byte{0}; }));
    buffer.data()[7] = kOldByte;
    EXPECT_EQ(pool->bytes_kept(), 0U);
  }
  EXPECT_EQ(pool->bytes_kept(), 4096U);
  const SlotBuffer again = pool->take(layout, 4096);
  EXPECT_EQ(again.data(), first);
  EXPECT_EQ(again.data()[7], kOldByte);
  EXPECT_EQ(pool->bytes_kept(), 0U);
}

TEST(SlotPoolTest, GivesFreshMemoryToOtherLayoutsAndSizesAndKeepsNothingThen) {
  for (const auto& [hidden_size, bytes] : {std::pair{int64_t{128}, size_t{4096}}, {64, 8192}}) {
    const auto pool = std::make_shared<SlotPool>();
    { pool->take(plain_layout(64), 4096).data()[0] = kOldByte; }
    const SlotBuffer other = pool->take(plain_layout(hidden_size), bytes);
    EXPECT_EQ(other.size(), bytes);
    EXPECT_EQ(other.data()[0], std::byte{0});
    EXPECT_EQ(pool->bytes_kept(), 0U);
  }
}

TEST(SlotPoolTest, MovedBuffersGoBackOnce) {
  const auto pool = std::make_shared<SlotPool>();
  {
    SlotBuffer first = pool->take(plain_layout(64), 4096);
    SlotBuffer second = pool->take(plain_layout(64), 4096);
    SlotBuffer third(std::move(first));
    second = std::move(third);  // what it had goes back
    EXPECT_EQ(pool->bytes_kept(), 4096U);
    second = SlotBuffer(ByteBuffer(16));  // of no pool
    EXPECT_EQ(pool->bytes_kept(), 8192U);
  }
  EXPECT_EQ(pool->bytes_kept(), 8192U);
}

TEST(SlotPoolTest, BuffersOutliveTheHandleToTheirPool) {
  SlotBuffer buffer;
  {
    auto pool = std::make_shared<SlotPool>();
    buffer = pool->take(plain_layout(64), 4096);
  }
  buffer.data()[4095] = kOldByte;
}

TEST(SlotPoolTest, ThreadsNeverShareABuffer) {
  const auto pool = std::make_shared<SlotPool>();
  std::vector<std::thread> threads;
  std::vector<int> clashes(4);
  for (size_t t = 0; t < clashes.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        SlotBuffer buffer = pool->take(plain_layout(64), 1024);
        std::memset(buffer.data(), static_cast<int>(t), buffer.size());
        std::this_thread::yield();
        clashes[t] += buffer.data()[0] != std::byte(t) || buffer.data()[1023] != std::byte(t);
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(clashes, std::vector<int>(4, 0));
  EXPECT_LE(pool->bytes_kept(), 4 * 1024U);
}

struct Nibbles {
  int64_t unwritten = 0;  // zero in fresh memory, old in used memory
  int64_t wrong = 0;
};

Nibbles compare(const SlotBuffer& fresh, const SlotBuffer& used) {
  Nibbles counts;
  for (size_t i = 0; i < fresh.size(); ++i) {
    for (const int shift : {0, 4}) {
      const auto nibble = [shift](std::byte b) { return b >> shift & std::byte{0xf}; };
      if (nibble(fresh.data()[i]) == nibble(used.data()[i])) continue;
      const bool old = nibble(used.data()[i]) == nibble(kOldByte);
      ++(old && nibble(fresh.data()[i]) == std::byte{0} ? counts.unwritten : counts.wrong);
    }
  }
  return counts;
}

// Half bytes that no code has, in rows of an odd number of 4-bit codes.
int64_t loose_nibbles(const PackedLayout& layout) {
  return layout.format.coded() && bits_of(layout.format.element) == 4 ? layout.k % 2 * layout.n : 0;
}

class SlotPoolGoldenTest : public testing::TestWithParam<Golden> {};

TEST_P(SlotPoolGoldenTest, LoadsWriteAllButThePadding) {
  MoeModel model(GetParam().directory, /*names_only=*/false);
  const WeightLoader loader(model.checkpoint(), model.config(), model.tensors());
  const MoeLayerSpec& spec = model.config().layers.back();
  for (const ParallelConfig& parallel :
       {ParallelConfig{}, ParallelConfig{.tp_size = 2, .rank = 1},
        ParallelConfig{.tp_size = 3, .rank = 2}, ParallelConfig{.ep_size = 2, .rank = 1}}) {
    SCOPED_TRACE(describe(parallel));
    if (!infeasible_reason(spec, parallel.tp_size, parallel.ep_size).empty()) continue;
    const auto experts =
        ExpertMap::create(spec.num_experts, parallel.ep_size, Placement::kRoundRobin);
    LoadOptions options;
    const auto load = [&] {
      LoadStats stats;
      return loader.load_layer(spec.layer, parallel, experts, options, model.report(), stats);
    };
    const MoeLayerWeights fresh = load();
    options.slot_pool = std::make_shared<SlotPool>();
    {
      SlotBuffer old = options.slot_pool->take(fresh.layout, fresh.slots.size());
      std::memset(old.data(), std::to_integer<int>(kOldByte), old.size());
    }
    const MoeLayerWeights used = load();
    ASSERT_TRUE(model.report().ok()) << summarize(model.report(), 5);
    ASSERT_EQ(used.slots.size(), fresh.slots.size());
    const Nibbles found = compare(fresh.slots, used.slots);
    EXPECT_EQ(found.wrong, 0);
    const SlotLayout& layout = fresh.layout;
    const int64_t padding = layout.stride_bytes - layout.owned_bytes();
    const int64_t loose = loose_nibbles(layout.w13_panels) + loose_nibbles(layout.w2_panels);
    EXPECT_EQ(found.unwritten, fresh.num_slots * (2 * padding + loose));
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, SlotPoolGoldenTest, testing::ValuesIn(all_goldens()),
                         [](const auto& golden) { return golden.param.name; });

}  // namespace
}  // namespace gantry::test
