// Every kernel over coded panels against sums in double over codes, zero points and scales that
// never were packed.

#include "kernels/grouped_gemm/coded_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/coded_case.h"
#include "tests/kernels/panel_case.h"

namespace gantry {

void PrintTo(const CodedGemmKernel& kernel, std::ostream* out) { *out << kernel.name; }
void PrintTo(const PanelDequantizer& dequantizer, std::ostream* out) { *out << dequantizer.name; }

namespace test {
namespace {

using Floats = std::vector<float>;

const std::vector<int64_t> kGroups = {16, 32, 64, 128};

/// Rows of x for one coded panel, as a kernel takes them and as the values they mean.
struct CodedRows {
  const CodedGemmKernel& kernel;
  const CodedCase& w;  // one panel: 32 rows, or 16 gate and 16 up rows
  int64_t num_rows;
  Floats x;  // [num_rows, k]
  ByteBuffer rows{};

  [[nodiscard]] int64_t element() const { return kernel.rows == ActivationDType::kBF16 ? 2 : 4; }
  [[nodiscard]] int64_t k() const { return w.layout.k; }
  [[nodiscard]] int64_t padded() const { return w.layout.padded_k(); }
  [[nodiscard]] int64_t padded_groups() const { return w.layout.coded_panel().num_groups; }
  [[nodiscard]] int64_t stride() const {
    const int64_t sums = w.layout.format.zero_points ? padded_groups() * 4 : 0;
    return (padded() * element() + sums + 63) / 64 * 64;
  }

  /// Rounds x to what the kernel reads. Behind a row and its sums there is NaN.
  void store() {
    const DType dtype = element() == 2 ? DType::kBF16 : DType::kF32;
    rows = ByteBuffer(static_cast<size_t>(num_rows * stride()));
    std::memset(rows.data(), 0xff, rows.size());
    for (int64_t r = 0; r < num_rows; ++r) {
      std::byte* row = rows.data() + r * stride();
      std::memset(row, 0, static_cast<size_t>(padded() * element()));
      convert_from_f32(x.data() + r * k(), k(), dtype, row);
      convert_to_f32(row, dtype, k(), x.data() + r * k());
      if (!w.layout.format.zero_points) continue;
      Floats sums(static_cast<size_t>(padded_groups()));
      for (int64_t i = 0; i < k(); ++i)
        sums[static_cast<size_t>(i / w.layout.format.group)] += x[at(r, i)];
      std::memcpy(row + padded() * element(), sums.data(), sums.size() * 4);
    }
  }

  /// C of `count` rows from `first` on.
  [[nodiscard]] Floats run(int64_t first, int64_t count, const std::byte* next = nullptr) const {
    const CodedPanel panel = w.layout.coded_panel();
    Buffer<float> c(static_cast<size_t>((count + 1) * kPanelWidth));
    std::fill(c.span().begin(), c.span().end(), -77.0F);
    kernel.run({.x = rows.data() + first * stride(),
                .x_stride = stride(),
                .panel = w.packed.data(),
                .k = padded(),
                .num_rows = count,
                .c = c.data(),
                .next = next,
                .coded = &panel,
                .x_sums = padded() * element()});
    const auto end = c.span().begin() + static_cast<ptrdiff_t>(count * kPanelWidth);
    EXPECT_TRUE(std::all_of(end, c.span().end(), [](float value) { return value == -77.0F; }))
        << "wrote beyond its rows";
    return {c.span().begin(), end};
  }

  /// Every value of `found`, rows 0 .. in order, against the exact sum
  ///
  ///   C = o * sum over g of s_g * (sum over k in g of x c - z_g * X_g),  X_g = sum of x
  ///
  /// A product x c passes through at most k roundings of its group's sum, one where the zero point
  /// joins it, one for each group from there on and one of the output scale; so does z x, with its
  /// own k of X_g. So |error| <= 1.01 (k + G + 3) 2^-24 * |o| sum of |s| |x| (|c| + |z|), with
  /// codes and zero points being exact in what the kernels make of them. Kernels of bf16 rows take
  /// sums below 2^-126 as zero, at most one for each rounding.
  void expect_reference(const Floats& found) const {
    const int64_t lanes = w.layout.n;
    double worst = 0.0;
    int64_t wrong = 0;
    std::vector<double> factors;  // of every weight, once for all rows
    for (int64_t row = 0; row < lanes; ++row) {
      for (int64_t j = 0; j < k(); ++j)
        factors.push_back(w.scale(row, j) * w.output_scale(row));
    }
    for (size_t i = 0; i < found.size(); ++i) {
      const auto r = static_cast<int64_t>(i) / kPanelWidth;
      const int64_t lane = static_cast<int64_t>(i) % kPanelWidth;
      const int64_t row = row_of(lane);
      double sum = 0.0;
      double magnitude = 0.0;
      double scales = 0.0;
      for (int64_t j = 0; row < lanes && j < k(); ++j) {
        const double s = factors[at(row, j)];
        const double value = x[at(r, j)];
        sum += s * value * (w.code(row, j) - w.zero(row, j));
        magnitude += std::fabs(s * value) * (std::fabs(w.code(row, j)) + std::fabs(w.zero(row, j)));
        scales = std::max(scales, std::fabs(s));
      }
      const auto roundings = static_cast<double>(padded() + padded_groups() + 3);
      const double tiny = element() == 2 ? 0x1p-126 : kF32Tiny;
      const double tolerance =
          roundings * (1.01 * kF32Rounding * magnitude + tiny * std::max(1.0, scales));
      const double error = std::fabs(static_cast<double>(found[i]) - sum);
      if (error <= tolerance) continue;
      if (wrong++ == 0) {
        ADD_FAILURE() << "row " << r << ", lane " << lane << ": expected " << sum << ", found "
                      << found[i] << ", tolerance " << tolerance;
      }
      worst = std::max(worst, error);
    }
    EXPECT_EQ(wrong, 0) << "worst error " << worst << " in " << to_string(w.layout.format) << ", k "
                        << k() << ", " << num_rows << " rows";
  }

 private:
  [[nodiscard]] size_t at(int64_t r, int64_t i) const { return static_cast<size_t>(r * k() + i); }
  /// The row of W in a lane; `n` where there is none.
  [[nodiscard]] int64_t row_of(int64_t lane) const {
    if (!w.layout.gated) return std::min(lane, w.layout.n);
    const int64_t half = w.layout.n / 2;
    if (lane % 16 >= half) return w.layout.n;
    return lane < 16 ? lane : half + lane - 16;
  }
};

/// Formats that a kernel is made for.
std::vector<WeightFormat> formats_for(const CodedGemmKernel& kernel) {
  std::vector<WeightFormat> all = formats_of(kernel.element, kGroups);
  if (kernel.scale == ScaleType::kNone) return all;
  // One that folds scales into the weights has neither zero points nor output scales.
  std::erase_if(all, [&](const WeightFormat& format) {
    return format.scale != kernel.scale || format.zero_points || format.output_scale;
  });
  return all;
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
    return {.element = kernel.element,
            .scale = kernel.scale == ScaleType::kNone ? ScaleType::kF32 : kernel.scale,
            .group = group};
  }

  const CodedGemmKernel& kernel = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(CodedGemmTest, MatchesTheReferenceInEveryFormatAndARowHasTheSameBitsInEveryBatch) {
  for (const WeightFormat& format : formats_for(kernel)) {
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
  for (int64_t k = 0; k < 32; ++k) {
    for (int64_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(static_cast<double>(found[static_cast<size_t>(k * 32 + lane)]), w.code(lane, k))
          << "code " << static_cast<int>(w.codes[static_cast<size_t>(lane * 32 + k)]);
    }
  }
}

TEST_P(CodedGemmTest, ZerosOfEitherSignAddNothing) {
  CodedCase w = panel_of(grouped(32), 64);
  const bool has_negative_zero =
      kernel.element == WeightElement::kE4M3 || kernel.element == WeightElement::kE2M1;
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
  if (kernel.scale != ScaleType::kNone) GTEST_SKIP() << "folds e8m0 scales";
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

TEST_P(CodedGemmTest, E8M0ScalesCountFrom2ToTheMinus100To2ToThe100) {
  WeightFormat format = grouped(32);
  format.scale = ScaleType::kE8M0;
  CodedCase w = panel_of(format, 224);
  ASSERT_EQ(w.scales.size(), 224U);
  for (size_t i = 0; i < w.scales.size(); ++i)
    w.scales[i] = std::ldexp(1.0F, static_cast<int>(i % 201) - 100);
  ASSERT_TRUE(w.store());
  CodedRows rows = rows_for(w, 7);
  for (size_t i = 0; i < rows.x.size(); ++i) {
    if (i / 224 != i % 224 / 32) rows.x[i] = 0.0F;
  }
  rows.store();
  rows.expect_reference(rows.run(0, 7));
}

std::string kernel_name(const testing::TestParamInfo<CodedGemmKernel>& tested) {
  return std::string(tested.param.name);
}

INSTANTIATE_TEST_SUITE_P(AllKernels, CodedGemmTest,
                         testing::ValuesIn(coded_gemm_kernels().begin(),
                                           coded_gemm_kernels().end()),
                         kernel_name);

// ---- dequantizers ------------------------------------------------------------------------------

class PanelDequantizerTest : public testing::TestWithParam<PanelDequantizer> {
 protected:
  void SetUp() override {
    if (!can_run(dequantizer.isa)) GTEST_SKIP() << "needs " << to_string(dequantizer.isa);
  }

  /// What the packed layout says element (lane, k) of a decoded piece is, as bits of f32.
  [[nodiscard]] uint32_t bits_at(const ByteBuffer& piece, int64_t lane, int64_t k) const {
    const int64_t index = dequantizer.out == DType::kBF16 ? k / 2 * 64 + lane * 2 + k % 2  //
                                                          : k * 32 + lane;
    return std::bit_cast<uint32_t>(load_as_f32(piece.data(), dequantizer.out, index));
  }
  /// The formula, in the output's type. vcvtneps2bf16 takes subnormals as zero of their sign.
  [[nodiscard]] uint32_t expected_bits(const CodedCase& w, int64_t lane, int64_t k) const {
    if (lane >= w.layout.n) return 0;
    const float value = w.decoded(lane, k);
    if (dequantizer.out == DType::kF32) return std::bit_cast<uint32_t>(value);
    const bool flushed = dequantizer.isa != Isa::kScalar && std::fabs(value) < 0x1p-126F;
    return std::bit_cast<uint32_t>(flushed ? std::copysign(0.0F, value) : round_to_bf16(value));
  }

  void expect_piece(const CodedCase& w, int64_t begin, int64_t count) const {
    const CodedPanel panel = w.layout.coded_panel();
    ByteBuffer out(static_cast<size_t>(count * 32 * size_of(dequantizer.out) + 64));
    std::memset(out.data(), 0xab, out.size());
    dequantizer.run({.panel = w.packed.data(),
                     .coded = &panel,
                     .k_begin = begin,
                     .k_count = count,
                     .out = out.data()});
    for (int64_t k = begin; k < std::min(begin + count, w.layout.k); ++k) {
      for (int64_t lane = 0; lane < 32; ++lane) {
        ASSERT_EQ(bits_at(out, lane, k - begin), expected_bits(w, lane, k))
            << to_string(w.layout.format) << ", lane " << lane << ", k " << k << " of piece "
            << begin << " + " << count << ", expected "
            << std::bit_cast<float>(expected_bits(w, lane, k)) << ", found "
            << std::bit_cast<float>(bits_at(out, lane, k - begin));
      }
    }
    for (size_t i = out.size() - 64; i < out.size(); ++i)
      ASSERT_EQ(out.data()[i], std::byte{0xab}) << "wrote beyond the piece";
  }
  CodedCase panel_of(const WeightFormat& format, int64_t k, int64_t n = kPanelWidth) {
    return random_coded(rng, {.dtype = DType::kF32, .n = n, .k = k, .format = format});
  }

  const PanelDequantizer& dequantizer = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(PanelDequantizerTest, EveryPieceOfEveryFormatHasTheBitsOfTheFormula) {
  for (const WeightElement element : all_elements()) {
    for (const WeightFormat& format : formats_of(element, {16, 24, 32, 64, 128})) {
      const CodedCase w = panel_of(format, 170);
      for (int64_t begin = 0; begin < 192; begin += 32) {
        for (int64_t count = 32; begin + count <= 192; count += 32)
          ASSERT_NO_FATAL_FAILURE(expect_piece(w, begin, count));
      }
    }
  }
}

TEST_P(PanelDequantizerTest, EveryCodeHasItsValueAndItsSign) {
  for (const WeightElement element : all_elements()) {
    CodedCase w = panel_of({.element = element}, 32);
    for (size_t i = 0; i < w.codes.size(); ++i) {
      w.codes[i] = static_cast<uint8_t>(i % (size_t{1} << bits_of(element)));
      if (std::isnan(value_of(element, w.codes[i]))) w.codes[i] = 0;
    }
    ASSERT_TRUE(w.store());
    expect_piece(w, 0, 32);
  }
}

TEST_P(PanelDequantizerTest, EveryScaleOfEightBitsCounts) {
  for (const ScaleType type : {ScaleType::kE8M0, ScaleType::kE4M3}) {
    CodedCase w = panel_of({WeightElement::kE2M1, type, 16, false, false}, 128);
    ASSERT_EQ(w.scales.size(), 256U);
    for (unsigned code = 0; code < 256; ++code) {
      const auto byte = static_cast<std::byte>(code);
      const float scale = load_scale(&byte, type, 0);
      w.scales[code] = std::isnan(scale) ? 1.0F : scale;
    }
    ASSERT_TRUE(w.store());
    expect_piece(w, 0, 128);
  }
}

TEST_P(PanelDequantizerTest, SubnormalF16ScalesCount) {
  CodedCase w = panel_of({WeightElement::kInt4, ScaleType::kF16, 16, true, false}, 64);
  for (size_t i = 0; i < w.scales.size(); ++i)
    w.scales[i] = static_cast<float>(i + 1) * 0x1p-24F;
  ASSERT_TRUE(w.store());
  expect_piece(w, 0, 64);
}

TEST_P(PanelDequantizerTest, LanesWithoutAnOutputAreZero) {
  expect_piece(panel_of({WeightElement::kInt4, ScaleType::kF16, 32, true, true}, 96, 19), 0, 96);
}

INSTANTIATE_TEST_SUITE_P(All, PanelDequantizerTest,
                         testing::ValuesIn(panel_dequantizers().begin(),
                                           panel_dequantizers().end()),
                         [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace test
}  // namespace gantry
