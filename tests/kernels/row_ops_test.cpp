// Gathering rows before the GEMMs and adding them to their tokens after. Neither leaves room for an
// error: every instruction set must give the bits that the formulas say.

#include "kernels/fused_moe/row_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/base/float_convert.h"
#include "tests/kernels/row_ops_isas.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;
using Ids = std::vector<int32_t>;
using Bytes = std::vector<std::byte>;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

enum class Format { kF32, kRoundedF32, kBF16 };

/// The operands of a gather. Rows are 64 bytes longer than what is written.
struct Gather {
  Floats x;  // [T, n]
  int64_t n = 1;
  int64_t num_rows = 1;
  Ids token = {};
  Ids choice = {};
  Floats scale = {};
  Ids order = {};
  Floats factors = {};

  [[nodiscard]] int64_t padded() const { return (n + 31) / 32 * 32; }
  [[nodiscard]] static int64_t element(Format format) { return format == Format::kBF16 ? 2 : 4; }
  [[nodiscard]] int64_t stride(Format format) const { return padded() * element(format) + 64; }

  [[nodiscard]] Bytes run(const RowOps& ops, Format format) const {
    Bytes rows(static_cast<size_t>(num_rows * stride(format)), std::byte{0xab});
    ops.gather({.x = x.data(),
                .token = token.empty() ? nullptr : token.data(),
                .choice = choice.empty() ? nullptr : choice.data(),
                .scale = scale.empty() ? nullptr : scale.data(),
                .rows = rows.data(),
                .stride = stride(format),
                .num_rows = num_rows,
                .n = n,
                .padded = padded(),
                .round_bf16 = format != Format::kF32,
                .store_bf16 = format == Format::kBF16,
                .order = order.empty() ? nullptr : order.data(),
                .factors = factors.empty() ? nullptr : factors.data()});
    return rows;
  }
  /// Element i of row r, widened.
  [[nodiscard]] float at(const Bytes& rows, Format format, int64_t r, int64_t i) const {
    const DType dtype = format == Format::kBF16 ? DType::kBF16 : DType::kF32;
    return load_as_f32(rows.data() + r * stride(format), dtype, i);
  }
};

class GatherRowsTest : public RowOpsTest {};

TEST_P(GatherRowsTest, CopiesTheRowsOfTheTokensPadsWithZerosAndWritesNothingElse) {
  for (int64_t n = 1; n <= 70; ++n) {
    const Gather g{.x = rng.normals(static_cast<size_t>(4 * n)),
                   .n = n,
                   .num_rows = 6,
                   .token = {3, 0, 0, 2, 1, 3},
                   .choice = {9, 9, 9, 9, 9, 9}};  // of no meaning without a scale
    const Bytes rows = g.run(ops, Format::kF32);
    for (int64_t r = 0; r < 6; ++r) {
      const auto token = g.token[static_cast<size_t>(r)];
      for (int64_t i = 0; i < g.padded(); ++i) {
        const float expected = i < n ? g.x[static_cast<size_t>(token * n + i)] : 0.0F;
        ASSERT_EQ(g.at(rows, Format::kF32, r, i), expected) << "n " << n << ", row " << r;
      }
      for (int64_t i = g.padded() * 4; i < g.stride(Format::kF32); ++i)
        ASSERT_EQ(rows[static_cast<size_t>(r * g.stride(Format::kF32) + i)], std::byte{0xab});
    }
  }
}

TEST_P(GatherRowsTest, WithoutTokensRowRIsTokenR) {
  const Gather g{.x = rng.normals(3 * 5), .n = 5, .num_rows = 3};
  const Bytes rows = g.run(ops, Format::kF32);
  for (int64_t i = 0; i < 15; ++i)
    EXPECT_EQ(g.at(rows, Format::kF32, i / 5, i % 5), g.x[static_cast<size_t>(i)]);
}

TEST_P(GatherRowsTest, ScalesByTheWeightOfTheChoiceBeforeRounding) {
  Gather g{.x = rng.normals(2 * 37),
           .n = 37,
           .num_rows = 3,
           .token = {1, 0, 1},
           .choice = {4, 0, 2},
           .scale = {0.3F, kNan, -1.7F, kNan, 1e-3F}};
  for (const Format format : {Format::kF32, Format::kRoundedF32, Format::kBF16}) {
    const Bytes rows = g.run(ops, format);
    for (int64_t r = 0; r < 3; ++r) {
      const auto row = static_cast<size_t>(r);
      for (int64_t i = 0; i < 37; ++i) {
        const float x = g.x[static_cast<size_t>(g.token[row] * 37 + i)];
        const float scaled = x * g.scale[static_cast<size_t>(g.choice[row])];
        ASSERT_EQ(g.at(rows, format, r, i),
                  format == Format::kF32 ? scaled : round_to_bf16(scaled));
      }
    }
  }
}

TEST_P(GatherRowsTest, TakesColumnsInOrderTimesTheirFactorsBeforeRounding) {
  for (const int64_t n : {1, 7, 16, 37}) {
    Gather g{.x = rng.normals(static_cast<size_t>(2 * n)),
             .n = n,
             .num_rows = 3,
             .token = {1, 0, 1},
             .choice = {0, 1, 2},
             .scale = {2.0F, -0.5F, 4.0F}};
    g.order.resize(static_cast<size_t>(n));
    std::iota(g.order.begin(), g.order.end(), 0);
    std::shuffle(g.order.begin(), g.order.end(), rng.engine());
    g.factors = rng.normals(static_cast<size_t>(n));
    for (const Format format : {Format::kF32, Format::kRoundedF32, Format::kBF16}) {
      const Bytes rows = g.run(ops, format);
      for (size_t r = 0; r < 3; ++r) {
        for (size_t i = 0; i < g.order.size(); ++i) {
          const float x = g.x[static_cast<size_t>(g.token[r] * n + g.order[i])];
          const float expected = x * g.factors[i] * g.scale[r];
          ASSERT_EQ(g.at(rows, format, static_cast<int64_t>(r), static_cast<int64_t>(i)),
                    format == Format::kF32 ? expected : round_to_bf16(expected))
              << "n " << n << ", row " << r << ", column " << i;
        }
      }
    }
  }
}

TEST_P(GatherRowsTest, WithoutChoicesTheScaleOfRowRIsItsOwn) {
  const Gather g{.x = {1, 1, 1}, .n = 1, .num_rows = 3, .scale = {2, 3, 5}};
  const Bytes rows = g.run(ops, Format::kF32);
  for (int64_t r = 0; r < 3; ++r)
    EXPECT_EQ(g.at(rows, Format::kF32, r, 0), g.scale[static_cast<size_t>(r)]);
}

TEST_P(GatherRowsTest, RoundsEveryTieToTheEvenBf16AndEverythingElseToTheNearest) {
  // Between every two bf16 neighbours, denormal and normal, up to infinity: the midpoint and the
  // values beside it.
  Gather g{.x = {}};
  std::vector<uint16_t> expected;
  for (uint32_t low = 0; low < 0x10000; ++low) {
    if ((low & 0x7fffU) >= 0x7f80U) continue;  // infinity and NaN have no neighbour above
    const auto high = static_cast<uint16_t>(low + 1);
    const auto even = low % 2 == 0 ? static_cast<uint16_t>(low) : high;
    const uint16_t rounded[3] = {static_cast<uint16_t>(low), even, high};
    for (uint32_t i = 0; i < 3; ++i) {
      g.x.push_back(std::bit_cast<float>((low << 16) + 0x7fffU + i));
      expected.push_back(rounded[i]);
    }
  }
  g.n = static_cast<int64_t>(g.x.size());
  const Bytes stored = g.run(ops, Format::kBF16);
  const Bytes rounded = g.run(ops, Format::kRoundedF32);
  for (int64_t i = 0; i < g.n; ++i) {
    uint16_t bits = 0;
    uint32_t wide = 0;
    std::memcpy(&bits, stored.data() + i * 2, 2);
    std::memcpy(&wide, rounded.data() + i * 4, 4);
    ASSERT_EQ(bits, expected[static_cast<size_t>(i)]) << g.x[static_cast<size_t>(i)];
    ASSERT_EQ(wide, static_cast<uint32_t>(bits) << 16) << g.x[static_cast<size_t>(i)];
  }
}

TEST_P(GatherRowsTest, NanStaysNanWhereverItsPayloadStands) {
  Gather g{.x = {}, .n = 45};
  while (g.x.size() < 45) {
    const auto sign = static_cast<uint32_t>(rng.integer(0, 1)) << 31;
    const auto payload = 1U << rng.integer(0, 22);  // low bits alone would round to infinity
    g.x.push_back(std::bit_cast<float>(sign | 0x7f800000U | payload));
  }
  for (const Format format : {Format::kF32, Format::kRoundedF32, Format::kBF16}) {
    const Bytes rows = g.run(ops, format);
    for (int64_t i = 0; i < 45; ++i)
      EXPECT_TRUE(std::isnan(g.at(rows, format, 0, i))) << i;
  }
}

TEST_P(GatherRowsTest, KeepsDenormalsAndTheSignOfZero) {
  const Gather g{.x = {1e-45F, -1e-40F, -0.0F, 0x1p-133F}, .n = 4};  // the last is a bf16
  const Bytes exact = g.run(ops, Format::kF32);
  const Bytes rounded = g.run(ops, Format::kBF16);
  for (int64_t i = 0; i < 4; ++i) {
    const float x = g.x[static_cast<size_t>(i)];
    EXPECT_EQ(std::bit_cast<uint32_t>(g.at(exact, Format::kF32, 0, i)), std::bit_cast<uint32_t>(x));
    EXPECT_EQ(std::bit_cast<uint32_t>(g.at(rounded, Format::kBF16, 0, i)),
              std::bit_cast<uint32_t>(round_to_bf16(x)));
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, GatherRowsTest, testing::ValuesIn(row_ops_isas()), row_ops_name);

// ---- accumulate --------------------------------------------------------------------------------

/// The operands of an accumulate into 5 tokens of 40 columns.
struct Accumulate {
  static constexpr int64_t kTokens = 5;
  static constexpr int64_t kStride = 40;

  Floats c;  // [num_rows, 32]
  int64_t n = 32;
  int64_t first_token = 0;
  Ids token = {};
  Ids choice = {};
  Floats bias = {};
  Floats weight = {};
  Floats out = Floats(kTokens * kStride, 0.0F);

  [[nodiscard]] int64_t num_rows() const { return static_cast<int64_t>(c.size()) / 32; }

  [[nodiscard]] Floats run(const RowOps& ops) const {
    Floats result = out;
    ops.accumulate({.c = c.data(),
                    .num_rows = num_rows(),
                    .bias = bias.empty() ? nullptr : bias.data(),
                    .token = token.empty() ? nullptr : token.data(),
                    .choice = choice.empty() ? nullptr : choice.data(),
                    .first_token = first_token,
                    .weight = weight.empty() ? nullptr : weight.data(),
                    .out = result.data(),
                    .out_stride = kStride,
                    .n = n});
    return result;
  }

  /// The header's formula. `volatile` keeps the compiler from fusing the product into the sum.
  [[nodiscard]] Floats expected() const {
    Floats result = out;
    for (int64_t r = 0; r < num_rows(); ++r) {
      const auto row = static_cast<size_t>(r);
      const int64_t t = token.empty() ? first_token + r : token[row];
      const int64_t w = choice.empty() ? first_token + r : choice[row];
      for (int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        const float sum = c[row * 32 + at] + (bias.empty() ? 0.0F : bias[at]);
        volatile float product = (weight.empty() ? 1.0F : weight[static_cast<size_t>(w)]) * sum;
        result[static_cast<size_t>(t * kStride + i)] += product;
      }
    }
    return result;
  }
};

class AccumulateTest : public RowOpsTest {};

TEST_P(AccumulateTest, HasTheBitsOfTheLoopForEveryWidthAndNeverTouchesOtherColumns) {
  for (int64_t n = 1; n <= 32; ++n) {
    Accumulate a{.c = rng.normals(7 * 32),
                 .n = n,
                 .token = {4, 0, 4, 4, 2, 0, 4},
                 .choice = {6, 0, 1, 5, 2, 9, 8},
                 .bias = rng.normals(static_cast<size_t>(n)),
                 .weight = rng.normals(10),
                 .out = rng.normals(Accumulate::kTokens * Accumulate::kStride)};
    for (size_t i = 0; i < a.c.size(); ++i)
      a.c[i] = static_cast<int64_t>(i % 32) < n ? a.c[i] : kNan;
    EXPECT_EQ(a.run(ops), a.expected()) << "n " << n;
    a.bias.clear();
    a.weight.clear();
    EXPECT_EQ(a.run(ops), a.expected()) << "n " << n;
  }
}

TEST_P(AccumulateTest, WithoutTokensRowsAreConsecutiveTokensAndChoices) {
  const Accumulate a{.c = rng.normals(3 * 32), .first_token = 2, .weight = rng.normals(5)};
  EXPECT_EQ(a.run(ops), a.expected());
}

TEST_P(AccumulateTest, RowsOfOneTokenAreAddedInAscendingOrder) {
  // 1 + 1e8 - 1e8 is 0 in f32 in this order and 1 where the large ones meet first.
  Accumulate a{.c = Floats(3 * 32), .token = {1, 1, 1}, .choice = {0, 1, 2}};
  for (size_t i = 0; i < 32; ++i) {
    a.c[i] = 1.0F;
    a.c[32 + i] = 1e8F;
    a.c[64 + i] = -1e8F;
  }
  EXPECT_EQ(a.run(ops), Floats(a.out.size(), 0.0F));
}

TEST_P(AccumulateTest, TheProductIsRoundedBeforeItIsAdded) {
  // (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 rounds to 1 + 2^-11; a fused multiply-add would leave 2^-24.
  Accumulate a{.c = Floats(32, 1.0F + 0x1p-12F), .weight = {1.0F + 0x1p-12F}};
  std::fill_n(a.out.begin(), 32, -(1.0F + 0x1p-11F));
  EXPECT_EQ(a.run(ops), Floats(a.out.size(), 0.0F));
}

TEST_P(AccumulateTest, NanOfOneRowStaysInItsToken) {
  Accumulate a{.c = rng.normals(4 * 32), .token = {0, 3, 1, 2}, .choice = {0, 1, 2, 3}};
  a.c[32 + 7] = kNan;
  const Floats found = a.run(ops);
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_EQ(std::isnan(found[i]), i == 3 * Accumulate::kStride + 7) << i;
}

INSTANTIATE_TEST_SUITE_P(Isas, AccumulateTest, testing::ValuesIn(row_ops_isas()), row_ops_name);

}  // namespace
}  // namespace gantry::test
