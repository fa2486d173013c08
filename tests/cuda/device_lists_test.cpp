// Lists of tokens by rank and the copies by those lists, on the device, against the host's loops.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "kernels/cuda/device_kernels.h"
#include "parallel/parallel_config.h"
#include "tests/support/device_array.h"

namespace gantry::test {
namespace {

constexpr int kRanks = 5;
constexpr int kParts = 3;
constexpr int kOwnRank = 2;
constexpr int kTopK = 4;
constexpr int kIds = 17;

struct Case {
  int64_t tokens;
  int64_t room;     // -1: as much as needed
  int always_rank;  // or -1
};

class DeviceListsTest : public DeviceTest {};

TEST_F(DeviceListsTest, AreThoseOfTheHost) {
  for (const Case& c : {Case{0, -1, -1}, Case{1, -1, 2}, Case{7, 2, 2}, Case{300, -1, -1},
                        Case{700, 40, 1}, Case{257, 257, -1}, Case{5, 0, -1}}) {
    SCOPED_TRACE(fmt::format("{} tokens, room {}, always {}, seed {}", c.tokens, c.room,
                             c.always_rank, rng.seed()));
    std::vector<int32_t> id_rank(kIds);
    for (int32_t& rank : id_rank)
      rank = static_cast<int32_t>(rng.integer(0, kRanks - 1));
    std::vector<int32_t> ids(static_cast<size_t>(c.tokens * kTopK));
    for (int32_t& id : ids)  // also ids that do not exist
      id = static_cast<int32_t>(rng.integer(-3, kIds + 2));
    const int64_t stride = std::max<int64_t>(1, c.tokens);
    const Slice own = split_evenly(c.tokens, kParts, 1);
    const DeviceArray<int32_t> device_ids(device, ids);
    const DeviceArray<int32_t> device_id_rank(device, id_rank);
    const DeviceArray<int32_t> lists(device, static_cast<size_t>((kRanks + kParts) * stride));
    const DeviceArray<int32_t> rows(device, static_cast<size_t>(kRanks * stride));
    const DeviceArray<int32_t> counts(device, kRanks + kParts);
    const DeviceArray<int32_t> lost(device, kRanks);
    device->kernels().rank_lists({.topk_ids = device_ids.data(),
                                  .ids = {device_id_rank.data(), kIds},
                                  .top_k = kTopK,
                                  .first = own.begin,
                                  .count = own.size(),
                                  .num_ranks = kRanks,
                                  .tokens = c.tokens,
                                  .num_parts = kParts,
                                  .own_rank = kOwnRank,
                                  .always_rank = c.always_rank,
                                  .room = c.room,
                                  .stride = stride,
                                  .lists = lists.data(),
                                  .rows = rows.data(),
                                  .counts = counts.data(),
                                  .lost = lost.data()},
                                 device->attributes(), nullptr);
    const auto found_lists = lists.read();
    const auto found_rows = rows.read();
    const auto found_counts = counts.read();
    const auto found_lost = lost.read();
    for (int list = 0; list < kRanks + kParts; ++list) {
      SCOPED_TRACE(fmt::format("list {}", list));
      const int rank = list < kRanks ? list : kOwnRank;
      const Slice items = list < kRanks ? own : split_evenly(c.tokens, kParts, list - kRanks);
      const bool cut = c.room >= 0 && rank != c.always_rank;
      const int64_t most = cut ? std::min<int64_t>(c.room, items.size()) : items.size();
      std::vector<int32_t> expected;
      std::vector<int32_t> expected_rows;
      int32_t missing = 0;
      for (long token = items.begin; token < items.end; ++token) {
        bool takes = rank == c.always_rank;
        for (int64_t i = token * kTopK; i < (token + 1) * kTopK; ++i) {
          const int32_t id = ids[static_cast<size_t>(i)];
          takes |= id >= 0 && id < kIds && id_rank[static_cast<size_t>(id)] == rank;
        }
        const bool fits = takes && static_cast<int64_t>(expected.size()) < most;
        expected_rows.push_back(fits ? static_cast<int32_t>(expected.size())
                                     : (takes ? RankLists::kNoRoom : RankLists::kAbsent));
        if (fits) expected.push_back(static_cast<int32_t>(token));
        missing += takes && !fits ? 1 : 0;
      }
      if (c.room >= 0) expected.resize(static_cast<size_t>(most), -1);
      ASSERT_EQ(found_counts[static_cast<size_t>(list)], static_cast<int32_t>(expected.size()));
      EXPECT_TRUE(
          std::equal(expected.begin(), expected.end(), found_lists.begin() + list * stride));
      if (list >= kRanks) continue;
      EXPECT_EQ(found_lost[static_cast<size_t>(list)], missing);
      EXPECT_TRUE(std::equal(expected_rows.begin(), expected_rows.end(),
                             found_rows.begin() + list * stride));
    }
  }
}

TEST_F(DeviceListsTest, TokensAreCopiedAndTheirOtherChoicesAreNot) {
  constexpr int64_t kWidth = 131;
  const std::vector<float> x = rng.normals(6 * kWidth);
  const std::vector<float> weights = rng.normals(6 * 2);
  const std::vector<int32_t> ids = {0, 1, 1, 2, -1, 0, 2, 2, 9, 1, 0, 0};
  const std::vector<int32_t> id_rank = {0, 1, 1};
  // Two lists; -1 fills up. Packed, the second begins behind the first's two rows.
  const std::vector<int32_t> lists = {5, 0, 77, 1, -1, 4};
  const std::vector<int32_t> counts = {2, 3};
  const DeviceArray<float> device_x(device, x);
  const DeviceArray<float> device_weights(device, weights);
  const DeviceArray<int32_t> device_ids(device, ids);
  const DeviceArray<int32_t> device_id_rank(device, id_rank);
  const DeviceArray<int32_t> device_lists(device, lists);
  const DeviceArray<int32_t> device_counts(device, counts);
  for (const bool packed : {false, true}) {
    const DeviceArray<float> out_x(device, 6 * kWidth);
    const DeviceArray<int32_t> out_ids(device, 6 * 2);
    const DeviceArray<float> out_weights(device, 6 * 2);
    device->kernels().gather_tokens({.x = device_x.data(),
                                     .topk_ids = device_ids.data(),
                                     .topk_weights = device_weights.data(),
                                     .ids = {device_id_rank.data(), 3},
                                     .lists = device_lists.data(),
                                     .counts = device_counts.data(),
                                     .num_lists = 2,
                                     .stride = 3,
                                     .packed = packed,
                                     .rank = 1,
                                     .top_k = 2,
                                     .n = kWidth,
                                     .out_x = out_x.data(),
                                     .out_ids = out_ids.data(),
                                     .out_weights = out_weights.data()},
                                    device->attributes(), nullptr);
    const auto found_x = out_x.read();
    const auto found_ids = out_ids.read();
    const auto found_weights = out_weights.read();
    for (int list = 0; list < 2; ++list) {
      for (int place = 0; place < counts[static_cast<size_t>(list)]; ++place) {
        const int64_t row = place + (packed ? list * 2 : list * 3);
        const int32_t token = lists[static_cast<size_t>(list * 3 + place)];
        for (int64_t i = 0; i < kWidth; ++i) {
          const float value = token < 0 ? 0.0F : x[static_cast<size_t>(token * kWidth + i)];
          ASSERT_EQ(found_x[static_cast<size_t>(row * kWidth + i)], value) << row;
        }
        for (int64_t i = 0; i < 2; ++i) {
          const auto from = static_cast<size_t>(token * 2 + i);
          const int32_t id = token < 0 ? -1 : ids[from];
          const int rank = packed ? 1 : list;
          const bool computed = id >= 0 && id < 3 && id_rank[static_cast<size_t>(id)] == rank;
          const auto at = static_cast<size_t>(row * 2 + i);
          EXPECT_EQ(found_ids[at], computed ? id : -1) << row;
          EXPECT_EQ(found_weights[at], token < 0 ? 0.0F : weights[from]) << row;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gantry::test
