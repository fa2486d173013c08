// Rows of int8: how they are rounded, and their product with panels of integers and of FP4, whose
// group sums are exact.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/fused_moe/row_ops.h"
#include "kernels/grouped_gemm/coded_kernels.h"
#include "kernels/quant/quantize_rows.h"
#include "tests/kernels/coded_case.h"
#include "tests/kernels/panel_case.h"
#include "tests/support/seeded_rng.h"
#include "tests/support/tolerance.h"

namespace gantry {

void PrintTo(const CodedGemmKernel& kernel, std::ostream* out) { *out << kernel.name; }

namespace test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Rows of codes of `k` columns, from f32 rows.
struct Rows {
  int64_t num_rows;
  int64_t k;
  int64_t group = 0;
  bool nibble_order = false;
  int64_t padded = padded_depth(k);
  int64_t groups = group > 0 ? (padded + group - 1) / group : 0;
  int64_t stride = (padded + 8 + 4 * groups + 63) / 64 * 64;
  ByteBuffer bytes{static_cast<size_t>(num_rows * stride)};

  /// The call that quantizes x [num_rows, k].
  [[nodiscard]] QuantizeInt8 call(const std::vector<float>& x) {
    QuantizeInt8 call{};
    call.x = x.data();
    call.x_stride = call.n = k;
    call.rows = bytes.data();
    call.stride = stride;
    call.num_rows = num_rows;
    call.padded = call.tail = padded;
    call.group = group;
    call.nibble_order = nibble_order;
    return call;
  }
  [[nodiscard]] int code(int64_t r, int64_t i) const {
    static constexpr int64_t kPlace[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // of k 0 .. 7
    const int64_t at = nibble_order ? i / 8 * 8 + kPlace[i % 8] : i;
    return static_cast<int8_t>(bytes.data()[r * stride + at]);
  }
  [[nodiscard]] Int8RowTail tail(int64_t r) const {
    Int8RowTail tail{};
    std::memcpy(&tail, bytes.data() + r * stride + padded, sizeof(tail));
    return tail;
  }
  [[nodiscard]] int32_t group_sum(int64_t r, int64_t g) const {
    int32_t sum = 0;
    std::memcpy(&sum, bytes.data() + r * stride + padded + 8 + 4 * g, 4);
    return sum;
  }
  /// Row r against quantize_row with this format; sums against the codes.
  void expect_row(int64_t r, std::vector<float> x, const RowFormat& format, float static_scale) {
    quantize_row(format, {.values = x}, {}, static_scale);
    std::vector<int> sums(static_cast<size_t>(groups));
    int sum = 0;
    for (int64_t i = 0; i < padded; ++i) {
      sum += code(r, i);
      if (group > 0) sums[static_cast<size_t>(i / group)] += code(r, i);
      const float found = static_cast<float>(code(r, i)) * tail(r).scale;
      ASSERT_EQ(found, i < k ? x[static_cast<size_t>(i)] : 0.0F) << "k " << k << ", " << i;
    }
    EXPECT_EQ(tail(r).sum, sum);
    for (int64_t g = 0; g < groups; ++g)
      EXPECT_EQ(group_sum(r, g), sums[static_cast<size_t>(g)]) << g << " of groups of " << group;
  }
};

struct NamedOps {
  std::string name;
  Isa isa;
  const RowOps* ops;
};

class QuantizeInt8Test : public testing::TestWithParam<NamedOps> {
 protected:
  void SetUp() override {
    if (!can_run(GetParam().isa)) GTEST_SKIP() << "needs " << to_string(GetParam().isa);
  }
  static void quantize(const QuantizeInt8& call) { GetParam().ops->quantize_int8(call); }

  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(QuantizeInt8Test, GivesTheValuesOfTheSchemeAndTheSumsOfTheCodes) {
  for (const int64_t k : {1, 15, 32, 100, 257}) {
    for (const int64_t group : {0, 8, 16, 24, 40, 128, 512}) {
      const std::vector<float> x = rng.normals(static_cast<size_t>(3 * k), 2.0F);
      Rows rows{3, k, group, group != 16};
      quantize(rows.call(x));
      for (int64_t r = 0; r < 3; ++r) {
        rows.expect_row(r, {x.begin() + r * k, x.begin() + (r + 1) * k},
                        {.kind = RowQuantization::kInt8Token}, 0.0F);
      }
    }
  }
}

TEST_P(QuantizeInt8Test, StaticScalesSaturateFarBeyondAnInt32) {
  std::vector<float> x = rng.normals(70, 2.0F);
  x[3] = 1e30F;
  x[20] = -1e30F;
  x[40] = kInfinity;
  x[41] = -kInfinity;
  x[69] = 2.5F * 0.01F;  // a tie
  Rows rows{1, 70};
  QuantizeInt8 call = rows.call(x);
  call.static_scale = 0.01F;
  quantize(call);
  rows.expect_row(0, x, {.kind = RowQuantization::kInt8Static}, 0.01F);
  EXPECT_EQ(rows.code(0, 3), 127);
  EXPECT_EQ(rows.code(0, 41), -128);
  x[7] = kNan;
  quantize(call);
  EXPECT_TRUE(std::isnan(rows.tail(0).scale));
}

TEST_P(QuantizeInt8Test, TakesTheMagnitudeOfAWholeRowThatOtherRanksHold) {
  const std::vector<float> whole = rng.normals(120, 2.0F);
  const std::vector<float> part(whole.begin() + 30, whole.begin() + 90);
  float amax = 0.0F;
  for (const float value : whole)
    amax = std::max(amax, std::fabs(value));
  Rows rows{1, 60};
  QuantizeInt8 call = rows.call(part);
  call.amax = &amax;
  quantize(call);
  std::vector<float> expected = whole;
  quantize_row({.kind = RowQuantization::kInt8Token}, {.values = expected}, {}, 0.0F);
  for (int64_t i = 0; i < 60; ++i) {
    EXPECT_EQ(static_cast<float>(rows.code(0, i)) * rows.tail(0).scale,
              expected[static_cast<size_t>(30 + i)]);
  }
  amax = kInfinity;
  quantize(call);
  EXPECT_TRUE(std::isnan(rows.tail(0).scale));
}

TEST_P(QuantizeInt8Test, GathersRowsTimesTheFactorsOfTheirChoices) {
  const std::vector<float> x = rng.normals(4 * 40, 1.0F);
  const std::vector<int32_t> token = {2, 0, 2};
  const std::vector<int32_t> choice = {5, 1, 3};
  const std::vector<float> factor = {9, 0.3F, 9, -2, 9, 1.7F};
  Rows rows{3, 40};
  QuantizeInt8 call = rows.call(x);
  call.token = token.data();
  call.choice = choice.data();
  call.factor = factor.data();
  quantize(call);
  for (size_t r = 0; r < 3; ++r) {
    std::vector<float> scaled(x.begin() + token[r] * 40, x.begin() + (token[r] + 1) * 40);
    for (float& value : scaled)
      value *= factor[static_cast<size_t>(choice[r])];
    rows.expect_row(static_cast<int64_t>(r), scaled, {.kind = RowQuantization::kInt8Token}, 0.0F);
  }
}

TEST_P(QuantizeInt8Test, CodesMayTakeThePlaceOfTheirRows) {
  constexpr int64_t kK = 100;
  constexpr int64_t kStride = 448;  // of f32 rows, padded
  const std::vector<float> x = rng.normals(2 * kK, 1.0F);
  ByteBuffer place(static_cast<size_t>(2 * kStride + 64));
  for (int64_t r = 0; r < 2; ++r)
    std::memcpy(place.data() + r * kStride, x.data() + r * kK, kK * 4);
  Rows rows{2, kK, 32};
  QuantizeInt8 call = rows.call(x);
  call.x = reinterpret_cast<const float*>(place.data());
  call.x_stride = kStride / 4;
  call.rows = place.data();
  call.stride = kStride;
  quantize(call);
  for (int64_t r = 0; r < 2; ++r) {
    std::memcpy(rows.bytes.data() + r * rows.stride, place.data() + r * kStride,
                static_cast<size_t>(rows.stride));
    rows.expect_row(r, {x.begin() + r * kK, x.begin() + (r + 1) * kK},
                    {.kind = RowQuantization::kInt8Token}, 0.0F);
  }
}

TEST_P(QuantizeInt8Test, ARowOfZerosStaysZerosAndNanReachesTheScale) {
  const std::vector<float> x = {0, 0, 0, 0, 1, kNan, 2, 3, 1, 2, -kInfinity, 3};
  Rows rows{3, 4};
  quantize(rows.call(x));
  EXPECT_EQ(rows.tail(0).scale, 0.0F);
  EXPECT_EQ(rows.code(0, 1), 0);
  EXPECT_TRUE(std::isnan(rows.tail(1).scale));
  EXPECT_TRUE(std::isnan(rows.tail(2).scale));
}

INSTANTIATE_TEST_SUITE_P(AllIsas, QuantizeInt8Test,
                         testing::Values(NamedOps{"scalar", Isa::kScalar, &scalar::kRowOps},
                                         NamedOps{"avx2", Isa::kAvx2, &avx2::kRowOps},
                                         NamedOps{"avx512", Isa::kAvx512, &avx512::kRowOps}),
                         [](const auto& tested) { return tested.param.name; });

// ---- the product -------------------------------------------------------------------------------

class Int8GemmTest : public testing::TestWithParam<CodedGemmKernel> {
 protected:
  void SetUp() override {
    if (!can_run(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
  }

  Rows random_rows(const CodedCase& w, int64_t num_rows) {
    const WeightFormat& format = w.layout.format;
    Rows rows{num_rows, w.layout.k, format.grouped() ? format.group : 0,
              bits_of(format.element) == 4};
    scalar::kRowOps.quantize_int8(
        rows.call(rng.normals(static_cast<size_t>(num_rows * w.layout.k), 3.0F)));
    return rows;
  }

  [[nodiscard]] std::vector<float> run(const CodedCase& w, const Rows& rows, int64_t first,
                                       int64_t count) const {
    const CodedPanel panel = w.layout.coded_panel();
    Buffer<float> c(static_cast<size_t>((count + 1) * kPanelWidth));
    std::fill(c.span().begin(), c.span().end(), -77.0F);
    kernel.run({.x = rows.bytes.data() + first * rows.stride,
                .x_stride = rows.stride,
                .panel = w.packed.data(),
                .k = rows.padded,
                .num_rows = count,
                .c = c.data(),
                .next = nullptr,
                .coded = &panel,
                .x_sums = rows.padded});
    const auto end = c.span().begin() + static_cast<ptrdiff_t>(count * kPanelWidth);
    EXPECT_TRUE(std::all_of(end, c.span().end(), [](float value) { return value == -77.0F; }))
        << "wrote beyond its rows";
    return {c.span().begin(), end};
  }

  /// C = o * a * sum over g of s_g * S_g, with S_g = sum over k in g of x (c - z) exact in
  /// integers.
  ///
  /// S_g becomes f32 (one rounding), then joins the others by fused multiply-adds, as the minimum
  /// times the sum of x does (at most 2 G roundings), then come the row's scale a and the output's
  /// o: |error| <= 1.01 (2 G + 3) 2^-24 |o a| sum of |s_g S_g| + |m_g X_g|.
  static void expect_reference(const CodedCase& w, const Rows& rows,
                               const std::vector<float>& found) {
    const int64_t k = w.layout.k;
    const int64_t group = w.layout.format.grouped() ? w.layout.format.group : k;
    int64_t wrong = 0;
    for (size_t i = 0; i < found.size() && wrong < 3; ++i) {
      const auto r = static_cast<int64_t>(i) / kPanelWidth;
      const int64_t row = static_cast<int64_t>(i) % kPanelWidth;
      double sum = 0.0;
      double magnitude = 0.0;
      double roundings = 3.0;
      for (int64_t begin = 0; begin < k; begin += group, roundings += 2.0) {
        double of_group = 0.0;  // halves of integers below 2^32: exact
        double of_x = 0.0;
        for (int64_t j = begin; j < std::min(begin + group, k); ++j) {
          of_group += rows.code(r, j) * (w.code(row, j) - w.zero(row, j));
          of_x += rows.code(r, j);
        }
        sum -= of_x * w.minimum(row, begin);
        magnitude += std::fabs(of_x * w.minimum(row, begin));
        sum += of_group * w.scale(row, begin);
        magnitude += std::fabs(of_group * w.scale(row, begin));
      }
      const double factor = w.output_scale(row) * static_cast<double>(rows.tail(r).scale);
      const double tolerance = 1.01 * roundings * kF32Rounding * magnitude * std::fabs(factor);
      if (std::fabs(static_cast<double>(found[i]) - sum * factor) <= tolerance) continue;
      ++wrong;
      ADD_FAILURE() << "row " << r << ", lane " << row << ": expected " << sum * factor
                    << ", found " << found[i] << ", tolerance " << tolerance << ", "
                    << to_string(w.layout.format) << ", k " << k;
    }
  }

  CodedCase panel_of(const WeightFormat& format, int64_t k) {
    return random_coded(
        rng, {.dtype = DType::kF32, .gated = false, .n = kPanelWidth, .k = k, .format = format});
  }

  const CodedGemmKernel kernel = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(Int8GemmTest, MatchesTheExactSumsInEveryFormatAndARowHasTheSameBitsInEveryBatch) {
  for (const WeightFormat& format : every_format_of(kernel.element, {16, 24, 32, 64, 128})) {
    if (format.minimums && kernel.element == WeightElement::kE2M1) continue;  // not read
    const CodedCase w = panel_of(format, 200);
    const Rows rows = random_rows(w, kMaxPanelRows);
    const std::vector<float> all = run(w, rows, 0, kMaxPanelRows);
    expect_reference(w, rows, all);
    for (const int64_t count : {1, 2, 3, 4, 5, 6, 9, 11, 12, 13, 17, 25, 33}) {
      const int64_t first = rng.integer(0, kMaxPanelRows - count);
      const std::vector<float> part = run(w, rows, first, count);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * kPanelWidth))
          << count << " rows from " << first << ", " << to_string(format);
    }
  }
}

TEST_P(Int8GemmTest, MatchesTheExactSumsForEveryNumberOfRows) {
  const CodedCase w = panel_of({kernel.element, ScaleType::kF16, 32, true}, 96);
  for (int64_t count = 1; count <= kMaxPanelRows; ++count) {
    const Rows rows = random_rows(w, count);
    expect_reference(w, rows, run(w, rows, 0, count));
  }
}

TEST_P(Int8GemmTest, MatchesTheExactSumsForEveryDepth) {
  for (const int64_t group : {0, 8, 24, 32, 40, 64, 128, 256}) {
    for (int64_t k = 1; k <= 600; k += k < 70 ? 3 : 37) {
      const CodedCase w = group > 0
                              ? panel_of({kernel.element, ScaleType::kF32, group, group != 64}, k)
                              : panel_of({.element = kernel.element, .output_scale = true}, k);
      const Rows rows = random_rows(w, 1 + k % 19);
      expect_reference(w, rows, run(w, rows, 0, rows.num_rows));
    }
  }
}

TEST_P(Int8GemmTest, LargestMagnitudesDoNotOverflow) {
  // One group of 16384 with everything at its limit: 128 * 127 * 2^14 < 2^31.
  CodedCase w = panel_of({.element = kernel.element, .output_scale = true}, 16384);
  std::fill(w.codes.begin(), w.codes.end(),
            static_cast<uint8_t>(bits_of(kernel.element) == 8             ? 0x80
                                 : kernel.element == WeightElement::kInt4 ? 0x8
                                                                          : 0xf));
  ASSERT_TRUE(w.store());
  Rows rows{2, 16384, 0, bits_of(kernel.element) == 4};
  std::vector<float> x(2 * 16384, 5.0F);
  std::fill(x.begin(), x.begin() + 16384, -5.0F);
  scalar::kRowOps.quantize_int8(rows.call(x));
  expect_reference(w, rows, run(w, rows, 0, 2));
}

TEST_P(Int8GemmTest, ARowWithNanIsNanAndTheOthersAreNot) {
  const CodedCase w = panel_of({kernel.element, ScaleType::kF32, 32}, 64);
  Rows rows{3, 64, 32, bits_of(kernel.element) == 4};
  std::vector<float> x = rng.normals(3 * 64, 1.0F);
  x[64 + 9] = kNan;
  scalar::kRowOps.quantize_int8(rows.call(x));
  const std::vector<float> found = run(w, rows, 0, 3);
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_EQ(std::isnan(found[i]), i / kPanelWidth == 1) << i;
}

std::vector<CodedGemmKernel> kernels_of_int8_rows() {
  std::vector<CodedGemmKernel> kernels;
  for (const CodedGemmKernel& kernel : coded_gemm_kernels()) {
    if (kernel.rows == ActivationDType::kInt8) kernels.push_back(kernel);
  }
  // The AVX-512 code around tiles of AMX, without AMX.
  for (const auto& [name, element] : {std::pair{"int8_amx_avx512_parts", WeightElement::kInt8},
                                      std::pair{"int4_amx_avx512_parts", WeightElement::kInt4},
                                      std::pair{"e2m1_amx_avx512_parts", WeightElement::kE2M1}}) {
    kernels.push_back({name, Isa::kAvx512, element, ActivationDType::kInt8, 0,
                       avx512::panel_gemm_int8_amx_emulated});
  }
  return kernels;
}

INSTANTIATE_TEST_SUITE_P(AllKernels, Int8GemmTest, testing::ValuesIn(kernels_of_int8_rows()),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace test
}  // namespace gantry
