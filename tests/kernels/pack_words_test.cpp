// Packing of quantized codes word by word: every instruction set against each other, and both
// against the place that code_at has for each code.

#include "kernels/grouped_gemm/pack_words.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <ostream>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

std::vector<uint8_t> random_bytes(SeededRng& rng, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  for (uint8_t& byte : bytes)
    byte = static_cast<uint8_t>(rng.integer(0, 255));
  return bytes;
}

TEST(PackWordsTest, Avx512GivesTheBytesOfTheScalarCode) {
  if (!host_isas().contains(Isa::kAvx512)) GTEST_SKIP() << "no AVX-512 here";
  SeededRng rng;
  for (const WordOrder order : {WordOrder::kBytes, WordOrder::kPairs, WordOrder::kNibblePairs}) {
    for (const int64_t num_words : {0, 1, 15, 16, 17, 33, 64}) {
      for (int64_t num_rows = 1; num_rows <= 16; ++num_rows) {
        for (const int64_t first_lane : {int64_t{0}, 16 - num_rows}) {
          const int64_t stride = num_words * 4 + 3;
          const std::vector<uint8_t> source = random_bytes(rng, num_rows * stride);
          const size_t size = static_cast<size_t>(num_words) * 128 + 64;
          ByteBuffer expected(size);
          ByteBuffer found(size);
          PackWords call{.source = source.data(),
                         .row_stride = stride,
                         .num_rows = num_rows,
                         .num_words = num_words,
                         .first_lane = first_lane,
                         .flip = 0x88888888u,
                         .order = order,
                         .target = expected.data()};
          scalar::pack_words(call);
          call.target = found.data();
          avx512::pack_words(call);
          ASSERT_EQ(std::memcmp(expected.data(), found.data(), size), 0)
              << "order " << static_cast<int>(order) << ", " << num_rows << " rows from lane "
              << first_lane << ", " << num_words << " words";
        }
      }
    }
  }
}

struct Case {
  WeightFormat format;
  bool gated;
  int64_t n;
  int64_t k;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << to_string(c.format) << (c.gated ? " gated " : " ") << c.n << " x " << c.k;
}

class PackRowsTest : public testing::TestWithParam<Case> {
 protected:
  [[nodiscard]] PackedLayout layout() const {
    const Case& c = GetParam();
    return {DType::kF32, c.gated, c.n, c.k, c.format};
  }
  [[nodiscard]] int64_t num_groups() const {
    const Case& c = GetParam();
    return c.format.grouped() ? (c.k + c.format.group - 1) / c.format.group : 0;
  }
  [[nodiscard]] bool nibbles() const { return bits_of(GetParam().format.element) == 4; }
  SeededRng rng_;
};

TEST_P(PackRowsTest, CodesOfFileRowsStandWhereCodeAtLooks) {
  const PackedLayout layout = this->layout();
  const int64_t stride = (nibbles() ? (layout.k + 1) / 2 : layout.k) + 5;
  const std::vector<uint8_t> rows = random_bytes(rng_, layout.n * stride);
  const uint8_t flip = nibbles() ? 0x88 : 0x80;
  const std::vector<float> scales(static_cast<size_t>(layout.n * num_groups()), 1.0F);
  const std::vector<int8_t> zeros(scales.size(), 0);
  const std::vector<float> output_scales(static_cast<size_t>(layout.n), 1.0F);
  ByteBuffer packed(static_cast<size_t>(layout.bytes()));
  // In two pieces, the first of which ends within a half panel.
  const int64_t cut = layout.n / 3;
  for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, std::pair{cut, layout.n}}) {
    ASSERT_TRUE(pack_coded_rows(layout,
                                {.codes = rows.data() + begin * stride,
                                 .rows = end - begin,
                                 .cols = layout.k,
                                 .stride = stride,
                                 .scales = scales.data(),
                                 .zeros = zeros.data(),
                                 .output_scales = output_scales.data(),
                                 .nibbles = nibbles(),
                                 .flip = flip},
                                begin, packed.data()));
  }
  const CodedPanel panel = layout.coded_panel();
  for (int64_t row = 0; row < layout.n; ++row) {
    const auto [p, lane] = layout.place_of(row);
    const std::byte* data = packed.data() + p * panel.bytes;
    for (int64_t k = 0; k < layout.k; ++k) {
      const uint8_t byte = rows[static_cast<size_t>(row * stride + (nibbles() ? k / 2 : k))];
      const int code = nibbles() ? ((byte >> (k % 2 * 4) & 0xf) - 8) & 0xf : (byte - 128) & 0xff;
      ASSERT_EQ(code_at(panel, data, lane, k), code) << "row " << row << ", k " << k;
    }
    for (int64_t k = layout.k; k < layout.padded_k(); ++k)
      ASSERT_EQ(code_at(panel, data, lane, k), 0) << "padding, row " << row << ", k " << k;
  }
}

using PackScalesTest = PackRowsTest;

// Scales in the layout's type go the same way as their values.
TEST_P(PackScalesTest, StoredScalesAndTheirValuesGiveTheSameBytes) {
  const PackedLayout layout = this->layout();
  const ScaleType type = layout.format.scale;
  const int64_t count = layout.n * num_groups();
  std::vector<std::byte> stored(static_cast<size_t>(count * size_of(type)));
  std::vector<float> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    std::byte* at = stored.data() + i * size_of(type);
    do {
      const auto bits = static_cast<uint32_t>(rng_.integer(0, 0x7fffffff)) ^
                        static_cast<uint32_t>(i % 2 != 0 && type != ScaleType::kE8M0) << 31;
      std::memcpy(at, &bits, static_cast<size_t>(size_of(type)));
      values[static_cast<size_t>(i)] = load_scale(stored.data(), type, i);
    } while (!std::isfinite(values[static_cast<size_t>(i)]));
  }
  const std::vector<uint8_t> codes(static_cast<size_t>(layout.n * layout.k), 1);
  const std::vector<int8_t> zeros(static_cast<size_t>(count), 3);
  const std::vector<float> output_scales(static_cast<size_t>(layout.n), 2.0F);
  CodedBlock block{.codes = codes.data(),
                   .rows = layout.n,
                   .cols = layout.k,
                   .stride = layout.k,
                   .scales = values.data(),
                   .zeros = zeros.data(),
                   .output_scales = output_scales.data()};
  ByteBuffer by_value(static_cast<size_t>(layout.bytes()));
  ByteBuffer by_code(static_cast<size_t>(layout.bytes()));
  ASSERT_TRUE(pack_coded_rows(layout, block, 0, by_value.data()));
  block.scales = nullptr;
  block.stored_scales = stored.data();
  block.scale_stride = num_groups() * size_of(type);
  ASSERT_TRUE(pack_coded_rows(layout, block, 0, by_code.data()));
  EXPECT_EQ(std::memcmp(by_value.data(), by_code.data(), by_value.size()), 0);
  const CodedPanel panel = layout.coded_panel();
  for (int64_t row = 0; row < layout.n; ++row) {
    const auto [p, lane] = layout.place_of(row);
    for (int64_t g = 0; g < num_groups(); ++g) {
      ASSERT_EQ(
          load_scale(by_code.data() + p * panel.bytes + panel.scales, type, g * kPanelWidth + lane),
          values[static_cast<size_t>(row * num_groups() + g)])
          << "row " << row << ", group " << g;
    }
  }
}

constexpr WeightFormat kFp8{.element = WeightElement::kE4M3, .scale = ScaleType::kF32, .group = 32};
constexpr WeightFormat kInt8{.element = WeightElement::kInt8, .output_scale = true};
constexpr WeightFormat kInt4{
    .element = WeightElement::kInt4, .scale = ScaleType::kF16, .group = 32, .zero_points = true};
constexpr WeightFormat kInt4BF16{
    .element = WeightElement::kInt4, .scale = ScaleType::kBF16, .group = 64};
constexpr WeightFormat kMxFp4{
    .element = WeightElement::kE2M1, .scale = ScaleType::kE8M0, .group = 32};
constexpr WeightFormat kNvFp4{
    .element = WeightElement::kE2M1, .scale = ScaleType::kE4M3, .group = 16, .output_scale = true};

std::vector<Case> cases(std::initializer_list<WeightFormat> formats) {
  std::vector<Case> all;
  for (const WeightFormat& format : formats) {
    for (const int64_t k : {1, 7, 16, 64, 131, 256}) {
      all.push_back({format, false, 40, k});
      all.push_back({format, true, 2 * 21, k});
      all.push_back({format, false, 5, k});
    }
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(Formats, PackRowsTest,
                         testing::ValuesIn(cases({kFp8, kInt8, kInt4, kInt4BF16, kMxFp4, kNvFp4})));
INSTANTIATE_TEST_SUITE_P(Formats, PackScalesTest,
                         testing::ValuesIn(cases({kFp8, kInt4, kInt4BF16, kMxFp4, kNvFp4})));

// What is no value of the scale type is noticed, whatever its size.
TEST(ScaleTypesTest, ValuesThatTheTypeDoesNotHaveAreRefused) {
  const auto packs = [](ScaleType type, float scale) {
    const PackedLayout layout{
        DType::kF32, false, 1, 32, {.element = WeightElement::kE2M1, .scale = type, .group = 32}};
    const std::vector<uint8_t> codes(32, 0);
    ByteBuffer packed(static_cast<size_t>(layout.bytes()));
    return pack_coded_rows(
        layout, {.codes = codes.data(), .rows = 1, .cols = 32, .stride = 32, .scales = &scale}, 0,
        packed.data());
  };
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const float scale : {0.0F, -1.0F, 1.5F, 0x1p-128F, 0x1.8p-127F, kInfinity, kNaN})
    EXPECT_FALSE(packs(ScaleType::kE8M0, scale)) << scale;
  for (const float scale : {0x1p-127F, 0x1p-126F, 1.0F, 0x1p127F})
    EXPECT_TRUE(packs(ScaleType::kE8M0, scale)) << scale;
  for (const float scale : {0x1p-10F, 0x1.8p-9F, 0x1.1p-6F, 1.0625F, 464.0F, 480.0F, 512.0F, 1e30F,
                            -1.0625F, kInfinity, kNaN})
    EXPECT_FALSE(packs(ScaleType::kE4M3, scale)) << scale;
  for (const float scale : {0.0F, 0x1p-9F, 0x1.cp-7F, 0x1p-6F, -1.125F, 448.0F, -448.0F})
    EXPECT_TRUE(packs(ScaleType::kE4M3, scale)) << scale;
  EXPECT_FALSE(packs(ScaleType::kF16, 65536.0F));
  EXPECT_FALSE(packs(ScaleType::kBF16, 0x1.01p0F + 0x1p-20F));
  EXPECT_TRUE(packs(ScaleType::kF16, 65504.0F));
}

}  // namespace
}  // namespace gantry::test
