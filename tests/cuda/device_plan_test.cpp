// Rows sorted by expert on the device against the host's stable sort.

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/device_kernels.h"
#include "kernels/permute/token_permutation.h"
#include "tests/support/device_array.h"

namespace gantry::test {
namespace {

class DevicePlanTest : public DeviceTest {
 protected:
  /// Sorts on the device and checks everything that the GEMMs rely on against the host's sort: in
  /// three launches, and in one where the batch is small.
  void check(const std::vector<int32_t>& ids, int64_t top_k, const std::vector<int32_t>& slots,
             int32_t num_slots, int32_t tile_rows) {
    check_plan(ids, top_k, slots, num_slots, tile_rows, /*one_launch=*/false);
    if (ids.size() <= RowPlan::kChunk)
      check_plan(ids, top_k, slots, num_slots, tile_rows, /*one_launch=*/true);
  }

  void check_plan(const std::vector<int32_t>& ids, int64_t top_k, const std::vector<int32_t>& slots,
                  int32_t num_slots, int32_t tile_rows, bool one_launch) {
    const auto choices = static_cast<int64_t>(ids.size());
    const int64_t max_rows = RowPlan::max_rows(choices, num_slots);
    const int64_t max_tiles = RowPlan::max_tiles(choices, num_slots, tile_rows);
    DeviceArray<int32_t> device_ids(device, ids);
    DeviceArray<int32_t> device_slots(device, slots);
    RowPlan plan{.topk_ids = device_ids.data(),
                 .expert_to_slot = device_slots.data(),
                 .num_choices = choices,
                 .num_ids = static_cast<int32_t>(slots.size()),
                 .num_slots = num_slots,
                 .tile_rows = tile_rows,
                 .chunk_rows = nullptr,
                 .choice_row = nullptr,
                 .row_choice = nullptr,
                 .tiles = nullptr,
                 .totals = nullptr};
    DeviceArray<int32_t> chunk_rows(
        device, static_cast<size_t>(RowPlan::chunk_row_values(plan.num_choices, num_slots)));
    DeviceArray<int32_t> choice_row(device, ids.size());
    DeviceArray<int32_t> row_choice(device, static_cast<size_t>(max_rows));
    DeviceArray<TokenTile> tiles(device, static_cast<size_t>(max_tiles));
    DeviceArray<int32_t> totals(device, 2);
    plan.chunk_rows = chunk_rows.data();
    plan.choice_row = choice_row.data();
    plan.row_choice = row_choice.data();
    plan.tiles = tiles.data();
    plan.totals = totals.data();
    const DeviceKernels& kernels = device->kernels();
    ASSERT_TRUE(PlanBatch::takes(plan) || !one_launch);
    if (one_launch) {
      kernels.plan_batch({plan}, device->attributes(), nullptr);
    } else {
      kernels.count_choices({plan}, device->attributes(), nullptr);
      kernels.scan_counts({plan}, device->attributes(), nullptr);
      kernels.place_choices({plan}, device->attributes(), nullptr);
    }

    // The host refuses ids that do not exist; the device counts them as none.
    std::vector<int32_t> known = ids;
    for (int32_t& id : known)
      if (id >= static_cast<int32_t>(slots.size()) || id < 0) id = -1;
    TokenPermutation expected;
    permute_tokens(known, top_k > 0 ? choices / top_k : 0, top_k, slots, num_slots, expected);
    const auto found_totals = totals.read();
    const auto found_rows = row_choice.read();
    const auto found_tiles = tiles.read();
    const auto found_choices = choice_row.read();
    ASSERT_LE(found_totals[0], max_rows);
    ASSERT_LE(found_totals[1], max_tiles);
    size_t tile = 0;
    int32_t row = 0;
    std::vector<int32_t> wanted_row(ids.size(), -1);
    for (int32_t s = 0; s < num_slots; ++s) {
      const int32_t begin = expected.expert_offsets[static_cast<size_t>(s)];
      const int32_t count = expected.expert_offsets[static_cast<size_t>(s) + 1] - begin;
      for (int32_t r = 0; r < count; r += tile_rows, ++tile) {
        ASSERT_EQ(found_tiles[tile].slot, s);
        ASSERT_EQ(found_tiles[tile].first_row, row + r);
        ASSERT_EQ(found_tiles[tile].num_rows, std::min(tile_rows, count - r));
      }
      for (int32_t r = 0; r < align_to(count, 8); ++r, ++row) {
        const int32_t choice = r < count ? expected.row_choice[static_cast<size_t>(begin + r)] : -1;
        ASSERT_EQ(found_rows[static_cast<size_t>(row)], choice) << "row " << row;
        if (choice >= 0) wanted_row[static_cast<size_t>(choice)] = row;
      }
    }
    ASSERT_EQ(found_totals[0], row);
    ASSERT_EQ(found_totals[1], static_cast<int32_t>(tile));
    ASSERT_EQ(found_choices, wanted_row);
  }

  static std::vector<int32_t> identity(int32_t count) {
    std::vector<int32_t> slots(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i)
      slots[static_cast<size_t>(i)] = i;
    return slots;
  }
};

TEST_F(DevicePlanTest, SortsNoToken) { check({}, 2, identity(4), 4, 8); }

TEST_F(DevicePlanTest, SortsOneToken) { check({3, 0}, 2, identity(4), 4, 8); }

TEST_F(DevicePlanTest, SortsTokensThatAllTakeOneExpert) {
  check(std::vector<int32_t>(300, 2), 1, identity(4), 4, 16);
}

TEST_F(DevicePlanTest, GivesNoRowToIdsOfNobody) {
  check({-1, 1, 7, 2, -1, -1, 99, 1}, 2, identity(3), 3, 8);
}

TEST_F(DevicePlanTest, GivesNoRowToExpertsOfOtherRanks) {
  check({0, 1, 2, 3, 0, 1}, 2, {-1, 1, -1, 0}, 2, 8);
}

TEST_F(DevicePlanTest, SortsAWholeChunkAndOneChoiceMore) {
  std::vector<int32_t> ids(RowPlan::kChunk);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i * 7 % 5);
  check(ids, 1, identity(5), 5, 8);
  ids.push_back(3);
  check(ids, 1, identity(5), 5, 8);
}

TEST_F(DevicePlanTest, SortsRandomBatchesAsTheHostDoes) {
  for (int trial = 0; trial < 12; ++trial) {
    const auto experts = static_cast<int32_t>(rng.integer(1, 40));
    const int64_t top_k = rng.integer(1, 4);
    std::vector<int32_t> ids(static_cast<size_t>(rng.integer(0, 200) * top_k));
    for (int32_t& id : ids)
      id = static_cast<int32_t>(rng.integer(-1, experts - 1));
    SCOPED_TRACE(testing::Message() << "trial " << trial << " seed " << rng.seed());
    check(ids, top_k, identity(experts), experts, static_cast<int32_t>(8 << rng.integer(0, 4)));
  }
}

}  // namespace
}  // namespace gantry::test
