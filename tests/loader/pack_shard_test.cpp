// Shards of a coded matrix: what a rank's slot decodes to is the piece of the whole matrix that the
// rank owns, wherever the piece cuts groups and bytes.

#include "loader/pack_shard.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

constexpr MatrixSize kSize{40, 192};

// Codes and power-of-two scales, so that every product is exact; the bytes of the file as well.
struct Sample {
  CodedMatrix coded;
  std::vector<uint8_t> bytes;
  std::vector<std::byte> exponents;
};

Sample sample_of(const WeightFormat& format, bool in_file, SeededRng& rng) {
  Sample sample{.coded = {.format = format, .size = kSize}, .bytes = {}, .exponents = {}};
  CodedMatrix& coded = sample.coded;
  const int64_t row_bytes = kSize.in * bits_of(format.element) / 8 + (in_file ? 4 : 0);
  std::vector<uint8_t> bytes(static_cast<size_t>(kSize.out * row_bytes));
  for (uint8_t& byte : bytes)
    byte = static_cast<uint8_t>(rng.integer(0, 255) & 0x77);  // no NaN in e4m3
  coded.padded_row_bytes = row_bytes;
  if (in_file) {
    sample.bytes = std::move(bytes);
    coded.file_codes = sample.bytes.data();
    coded.flip = format.element == WeightElement::kInt4 ? 0x88 : 0;
  } else {
    coded.codes = std::move(bytes);
  }
  const auto count = static_cast<size_t>(kSize.out * coded.num_groups());
  for (size_t i = 0; i < count; ++i) {
    sample.exponents.push_back(static_cast<std::byte>(rng.integer(117, 137)));
    coded.scales.push_back(std::ldexp(1.0F, static_cast<int>(sample.exponents.back()) - 127));
    if (format.zero_points) coded.zeros.push_back(static_cast<int8_t>(rng.integer(-8, 7)));
  }
  if (in_file && format.scale == ScaleType::kE8M0) {
    coded.scales.clear();
    coded.file_scales = sample.exponents.data();
  }
  for (int64_t o = 0; format.output_scale && o < kSize.out; ++o)
    coded.output_scales.push_back(std::ldexp(1.0F, static_cast<int>(rng.integer(-4, 4))));
  return sample;
}

void expect_piece(const CodedMatrix& coded, const Slice& out, const Slice& in) {
  SCOPED_TRACE(fmt::format("{}, rows {} .. {}, inputs {} .. {}", to_string(coded.format), out.begin,
                           out.end, in.begin, in.end));
  const WeightFormat format = shard_format(coded.format, in.begin);
  ASSERT_TRUE(format.coded());
  EncodedJob job;
  job.out = out;
  job.in = in;
  job.target.panels = PackedLayout{DType::kF32, false, out.size(), in.size(), format};
  ByteBuffer slot(static_cast<size_t>(job.target.panels->bytes()));
  job.destinations = {{slot.data(), 0}};
  pack_shard(coded, job);
  const std::vector<float> found = unpack_matrix(*job.target.panels, slot.data());
  const std::vector<float> whole = dequantize(coded);
  for (int64_t o = 0; o < out.size(); ++o) {
    for (int64_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(found[static_cast<size_t>(o * in.size() + i)],
                whole[static_cast<size_t>((out.begin + o) * kSize.in + in.begin + i)])
          << o << ", " << i;
    }
  }
}

TEST(PackShardTest, SlotsHoldThePieceThatTheRankOwns) {
  constexpr WeightFormat kFormats[] = {
      {.element = WeightElement::kInt4, .scale = ScaleType::kF16, .group = 64, .zero_points = true},
      {.element = WeightElement::kE2M1, .scale = ScaleType::kE8M0, .group = 32},
      {.element = WeightElement::kE2M1,
       .scale = ScaleType::kE8M0,
       .group = 64,
       .output_scale = true},
      {.element = WeightElement::kE4M3, .scale = ScaleType::kF32, .group = 128}};
  SeededRng rng;
  for (const WeightFormat& format : kFormats) {
    for (const bool in_file : {false, true}) {
      const Sample sample = sample_of(format, in_file, rng);
      expect_piece(sample.coded, {0, kSize.out}, {0, kSize.in});
      expect_piece(sample.coded, {13, 31}, {0, kSize.in});
      expect_piece(sample.coded, {0, kSize.out}, {64, 192});
      expect_piece(sample.coded, {5, 40}, {32, 32 + 96});  // as many groups, but smaller ones
      expect_piece(sample.coded, {0, kSize.out}, {32, 101});
      expect_piece(sample.coded, {0, 1}, {16, 17});
    }
  }
}

// Rows and columns in another order, sorted columns being the groups of the file.
TEST(PackShardTest, SlotsHoldRowsAndColumnsInTheOrderOfTheJob) {
  SeededRng rng;
  const auto shuffled = [&](int64_t count) {
    std::vector<int32_t> order(static_cast<size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), rng.engine());
    return order;
  };
  const std::vector<int32_t> rows = shuffled(kSize.out);
  const std::vector<int32_t> columns = shuffled(kSize.in);
  for (const WeightFormat& format :
       {WeightFormat{.element = WeightElement::kInt4,
       .scale = ScaleType::kF16,
       .group = 64,
       .zero_points = true},
        WeightFormat{.element = WeightElement::kInt8, .scale = ScaleType::kF32, .group = 32},
        WeightFormat{.element = WeightElement::kInt4, .output_scale = true}}) {
    for (const bool in_file : {false, true}) {
      const Sample sample = sample_of(format, in_file, rng);
      CodedMatrix coded = sample.coded;
      coded.input_groups.resize(static_cast<size_t>(kSize.in));
      for (size_t i = 0; format.grouped() && i < columns.size(); ++i)
        coded.input_groups[static_cast<size_t>(columns[i])] =
            static_cast<int32_t>(static_cast<int64_t>(i) / format.group);
      const std::vector<float> whole = dequantize(coded);
      EncodedJob job;
      job.out = {3, 37};
      job.in = {64, 160};
      job.row_order = &rows;
      job.column_order = &columns;
      job.target.panels = PackedLayout{DType::kF32, false, 34, 96, format};
      ByteBuffer slot(static_cast<size_t>(job.target.panels->bytes()));
      job.destinations = {{slot.data(), 0}};
      pack_shard(coded, job);
      const std::vector<float> found = unpack_matrix(*job.target.panels, slot.data());
      for (size_t o = 0; o < 34; ++o) {
        for (size_t i = 0; i < 96; ++i) {
          const auto at = static_cast<size_t>(rows[3 + o] * kSize.in + columns[64 + i]);
          ASSERT_EQ(found[o * 96 + i], whole[at]) << to_string(format) << " " << o << ", " << i;
        }
      }
    }
  }
}

// Without groups a shard may begin anywhere, within a byte too.
TEST(PackShardTest, ShardsMayBeginWithinAByte) {
  SeededRng rng;
  for (const WeightElement element : {WeightElement::kInt4, WeightElement::kInt8}) {
    for (const bool in_file : {false, true}) {
      const Sample sample = sample_of({.element = element, .output_scale = true}, in_file, rng);
      expect_piece(sample.coded, {0, kSize.out}, {7, 107});
      expect_piece(sample.coded, {3, 20}, {1, kSize.in});
      expect_piece(sample.coded, {3, 20}, {2, 5});
    }
  }
}

}  // namespace
}  // namespace gantry::test
