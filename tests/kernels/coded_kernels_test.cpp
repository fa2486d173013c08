// Every kernel over coded panels against sums in double over codes, zero points and scales that
// never were packed.

#include "kernels/grouped_gemm/coded_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/coded_case.h"
#include "tests/kernels/coded_rows.h"
#include "tests/kernels/panel_case.h"

namespace gantry {

void PrintTo(const CodedGemmKernel& kernel, std::ostream* out) { *out << kernel.name; }

namespace test {
namespace {

using Floats = std::vector<float>;

const std::vector<int64_t> kGroups = {16, 32, 64, 128};

// Rows of int8 have a test of their own.
std::vector<CodedGemmKernel> kernels_of_float_rows() {
  std::vector<CodedGemmKernel> kernels;
  for (const CodedGemmKernel& kernel : coded_gemm_kernels()) {
    if (kernel.rows != ActivationDType::kInt8) kernels.push_back(kernel);
  }
  return kernels;
}

class CodedGemmTest : public testing::TestWithParam<CodedGemmKernel> {
 protected:
  void SetUp() override {
    if (!can_run(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
  }

  CodedRows rows_for(const CodedCase& w, int64_t num_rows, float deviation = 1.0F) {
    CodedRows rows{.kernel = kernel,
                   .w = w,
                   .num_rows = num_rows,
                   .x = rng.normals(static_cast<size_t>(num_rows * w.layout.k), deviation)};
    rows.store();
    return rows;
  }
  CodedCase panel_of(const WeightFormat& format, int64_t k, int64_t n = kPanelWidth,
                     bool gated = false) {
    return random_coded(rng,
                        {.dtype = DType::kF32, .gated = gated, .n = n, .k = k, .format = format});
  }
  /// A format of this kernel with f32 scales, or those that it is made for.
  [[nodiscard]] WeightFormat grouped(int64_t group) const {
    return {.element = kernel.element, .scale = ScaleType::kF32, .group = group};
  }

  const CodedGemmKernel kernel = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(CodedGemmTest, MatchesTheReferenceInEveryFormatAndARowHasTheSameBitsInEveryBatch) {
  for (const WeightFormat& format : every_format_of(kernel.element, kGroups)) {
    SCOPED_TRACE(to_string(format));
    const CodedCase w = panel_of(format, 200);  // groups of 16, 64 and 128 end within
    const CodedRows rows = rows_for(w, kMaxPanelRows);
    const Floats all = rows.run(0, kMaxPanelRows);
    rows.expect_reference(all);
    for (const int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 24, 25, 37}) {
      const int64_t first = rng.integer(0, kMaxPanelRows - count);
      const Floats part = rows.run(first, count);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * kPanelWidth))
          << count << " rows from " << first;
    }
  }
}

TEST_P(CodedGemmTest, EveryNumberOfRowsGivesTheBitsOfSingleRows) {
  const CodedCase w = panel_of(grouped(32), 96);
  const CodedRows rows = rows_for(w, kMaxPanelRows);
  Floats alone;
  for (int64_t r = 0; r < kMaxPanelRows; ++r) {
    const Floats row = rows.run(r, 1);
    alone.insert(alone.end(), row.begin(), row.end());
  }
  rows.expect_reference(alone);
  for (int64_t count = 1; count <= kMaxPanelRows; ++count) {
    const Floats together = rows.run(0, count);
    EXPECT_TRUE(std::equal(together.begin(), together.end(), alone.begin())) << count << " rows";
  }
}

TEST_P(CodedGemmTest, MatchesTheReferenceForEveryDepth) {
  for (const int64_t group : {16, 24, 32, 40, 128}) {
    for (int64_t k = 1; k <= 330; k += k < 70 ? 1 : 13) {
      const CodedCase w = panel_of(grouped(group), k);
      const CodedRows rows = rows_for(w, 1 + k % 7);
      rows.expect_reference(rows.run(0, rows.num_rows));
    }
  }
}

TEST_P(CodedGemmTest, LanesWithoutAnOutputAreZero) {
  for (const auto& [gated, n] : std::vector<std::pair<bool, int64_t>>{{false, 5}, {true, 14}}) {
    const CodedCase w = panel_of(grouped(32), 72, n, gated);
    const CodedRows rows = rows_for(w, 8);
    const Floats found = rows.run(0, 8);
    rows.expect_reference(found);
    const int64_t half = gated ? 16 : 32;
    for (size_t i = 0; i < found.size(); ++i) {
      const bool exists = static_cast<int64_t>(i) % half < (gated ? n / 2 : n);
      EXPECT_TRUE(exists || found[i] == 0.0F) << i;
    }
  }
}

TEST_P(CodedGemmTest, EveryCodeHasItsValue) {
  // One k a time has an x of 1: C is the weight itself. Lanes and k together walk all codes.
  const int64_t codes = int64_t{1} << bits_of(kernel.element);
  CodedCase w = panel_of(grouped(32), 32);
  std::fill(w.scales.begin(), w.scales.end(), 1.0F);
  for (size_t i = 0; i < w.codes.size(); ++i) {
    w.codes[i] = static_cast<uint8_t>(static_cast<int64_t>(i) % codes);
    if (std::isnan(value_of(kernel.element, w.codes[i]))) w.codes[i] = 0;
  }
  ASSERT_TRUE(w.store());
  CodedRows rows = rows_for(w, 32);
  for (size_t i = 0; i < rows.x.size(); ++i)
    rows.x[i] = i / 32 == i % 32 ? 1.0F : 0.0F;
  rows.store();
  const Floats found = rows.run(0, 32);
  const bool bf16 = kernel.rows == ActivationDType::kBF16;  // which not every book is exact in
  for (int64_t k = 0; k < 32; ++k) {
    for (int64_t lane = 0; lane < 32; ++lane) {
      const auto value = static_cast<float>(w.code(lane, k));
      EXPECT_EQ(found[static_cast<size_t>(k * 32 + lane)], bf16 ? round_to_bf16(value) : value)
          << "code " << static_cast<int>(w.codes[static_cast<size_t>(lane * 32 + k)]);
    }
  }
}

TEST_P(CodedGemmTest, ZerosOfEitherSignAddNothing) {
  CodedCase w = panel_of(grouped(32), 64);
  if (is_book(kernel.element)) GTEST_SKIP() << "code 0 is no zero";
  const bool has_negative_zero =
      kernel.element == WeightElement::kE4M3 || kernel.element == WeightElement::kE2M1 ||
      kernel.element == WeightElement::kE5M2 || kernel.element == WeightElement::kFP4;
  const auto negative = static_cast<uint8_t>(bits_of(kernel.element) == 4 ? 0x8 : 0x80);
  for (size_t i = 0; i < w.codes.size(); ++i)
    w.codes[i] = has_negative_zero && i % 3 != 0 ? negative : 0;
  ASSERT_TRUE(w.store());
  for (const float value : rows_for(w, 7, 1e30F).run(0, 7))
    EXPECT_EQ(value, 0.0F);
}

TEST_P(CodedGemmTest, FetchingTheNextPanelDoesNotChangeABit) {
  const CodedCase w = panel_of(grouped(32), 160);
  const CodedRows rows = rows_for(w, 14);
  EXPECT_EQ(rows.run(0, 14, w.packed.data()), rows.run(0, 14));
}

TEST_P(CodedGemmTest, NanOfOneRowStaysInItsRow) {
  const CodedCase w = panel_of(grouped(32), 64);
  CodedRows rows = rows_for(w, 9);
  const Floats clean = rows.run(0, 9);
  rows.x[4 * 64 + 63] = std::numeric_limits<float>::quiet_NaN();
  rows.store();
  const Floats found = rows.run(0, 9);
  for (size_t i = 0; i < found.size(); ++i) {
    if (i / 32 == 4) {
      EXPECT_TRUE(std::isnan(found[i])) << i;
    } else {
      EXPECT_EQ(found[i], clean[i]) << i;
    }
  }
}

TEST_P(CodedGemmTest, EveryE4M3ScaleCountsWithItsValueAlsoSubnormalOnes) {
  WeightFormat format = grouped(16);
  format.scale = ScaleType::kE4M3;
  CodedCase w = panel_of(format, 128);
  ASSERT_EQ(w.scales.size(), 256U);
  for (unsigned code = 0; code < 256; ++code) {
    const double value = value_of(WeightElement::kE4M3, code);
    w.scales[code] = std::isnan(value) ? 1.0F : static_cast<float>(value);
  }
  ASSERT_TRUE(w.store());
  // One group a row: a wrong scale cannot hide behind a larger one.
  CodedRows rows = rows_for(w, 8);
  for (size_t i = 0; i < rows.x.size(); ++i) {
    if (i / 128 != i % 128 / 16) rows.x[i] = 0.0F;
  }
  rows.store();
  rows.expect_reference(rows.run(0, 8));
}

TEST_P(CodedGemmTest, E8M0ScalesCountFrom2ToTheMinus126To2ToThe100) {
  WeightFormat format = grouped(32);
  format.scale = ScaleType::kE8M0;
  CodedCase w = panel_of(format, 256);
  ASSERT_EQ(w.scales.size(), 256U);
  for (size_t i = 0; i < w.scales.size(); ++i)
    w.scales[i] = std::ldexp(1.0F, static_cast<int>(i % 227) - 126);
  ASSERT_TRUE(w.store());
  CodedRows rows = rows_for(w, 8);
  for (size_t i = 0; i < rows.x.size(); ++i) {
    if (i / 256 != i % 256 / 32) rows.x[i] = 0.0F;
  }
  rows.store();
  rows.expect_reference(rows.run(0, 8));
}

std::string kernel_name(const testing::TestParamInfo<CodedGemmKernel>& tested) {
  return std::string(tested.param.name);
}

INSTANTIATE_TEST_SUITE_P(AllKernels, CodedGemmTest, testing::ValuesIn(kernels_of_float_rows()),
                         kernel_name);

}  // namespace
}  // namespace test
}  // namespace gantry
