// One matrix times rows of x, however the machine does it: in registers, decoded first, or plain.

#include "kernels/fused_moe/matrix_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "tests/kernels/coded_case.h"
#include "tests/kernels/coded_machines.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

/// One coded panel and rows for a machine's kernels.
struct MatrixCase {
  MatrixKernels kernels;
  CodedCase w;
  int64_t num_rows = 1;
  Floats x{};  // [num_rows, k]
  ByteBuffer rows{};

  [[nodiscard]] bool bf16_rows() const { return kernels.gemm->rows == ActivationDType::kBF16; }
  [[nodiscard]] int64_t k() const { return w.layout.k; }
  [[nodiscard]] int64_t stride() const { return row_stride_bytes(kernels, w.layout); }
  [[nodiscard]] int64_t sums_at() const { return w.layout.padded_k() * (bf16_rows() ? 2 : 4); }

  /// Rounds x to what the kernels read; behind a row (and its sums) there is NaN.
  void store() {
    const DType dtype = bf16_rows() ? DType::kBF16 : DType::kF32;
    rows = ByteBuffer(static_cast<size_t>(num_rows * stride()));
    std::memset(rows.data(), 0xff, rows.size());
    for (int64_t r = 0; r < num_rows; ++r) {
      std::byte* row = rows.data() + r * stride();
      std::memset(row, 0, static_cast<size_t>(sums_at()));
      convert_from_f32(x.data() + r * k(), k(), dtype, row);
      convert_to_f32(row, dtype, k(), x.data() + r * k());
    }
    sum_groups(kernels, w.layout, rows.data(), stride(), num_rows);
  }

  /// C of `count` rows from `first` on, multiplied as if the matrix met `matrix_rows` rows.
  [[nodiscard]] Floats run(int64_t first, int64_t count, int64_t matrix_rows) const {
    const CodedPanel panel = w.layout.coded_panel();
    Buffer<float> c(static_cast<size_t>((count + 1) * kPanelWidth));
    std::fill(c.span().begin(), c.span().end(), -77.0F);
    multiply_panel({.kernels = kernels,
                    .layout = w.layout,
                    .coded = panel,
                    .x = rows.data() + first * stride(),
                    .x_stride = stride(),
                    .num_rows = count,
                    .matrix_rows = matrix_rows,
                    .panel = w.packed.data(),
                    .c = c.data(),
                    .next = nullptr});
    const auto end = c.span().begin() + static_cast<ptrdiff_t>(count * kPanelWidth);
    EXPECT_TRUE(std::all_of(end, c.span().end(), [](float value) { return value == -77.0F; }))
        << "wrote beyond its rows";
    return {c.span().begin(), end};
  }

  /// The exact sums of rows 0 .. against `found`. Multiplied in registers, weights are what their
  /// formula says; decoded first, they are rounded to the type that they are decoded to, which is
  /// done here too. Beside that every product passes through at most k + G + 3 roundings (see
  /// coded_kernels_test), decoding to f32 being one of them, and terms of zero points count alone
  /// in registers.
  void expect_reference(const Floats& found, int64_t matrix_rows) const {
    const bool decoded = kernels.coded_for(matrix_rows) == nullptr;
    const bool rounds = decoded && kernels.dequantize->out == DType::kBF16;
    std::vector<double> weights;
    std::vector<double> terms;
    for (int64_t row = 0; row < kPanelWidth; ++row) {
      for (int64_t j = 0; j < k(); ++j) {
        const double weight = rounds ? static_cast<double>(round_to_bf16(w.decoded(row, j)))
                                     : (w.code(row, j) - w.zero(row, j)) * w.scale(row, j);
        const double larger = std::fabs(w.code(row, j)) + std::fabs(w.zero(row, j));
        weights.push_back(weight * w.output_scale(row));
        terms.push_back(std::fabs(larger * w.scale(row, j) * w.output_scale(row)));
      }
    }
    int64_t wrong = 0;
    for (size_t i = 0; i < found.size() && wrong < 3; ++i) {
      const auto r = static_cast<int64_t>(i) / kPanelWidth;
      const int64_t row = static_cast<int64_t>(i) % kPanelWidth;
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t j = 0; j < k(); ++j) {
        const double value = x[static_cast<size_t>(r * k() + j)];
        const auto at = static_cast<size_t>(row * k() + j);
        sum += value * weights[at];
        magnitude += std::fabs(value) * terms[at];
      }
      const auto roundings =
          static_cast<double>(w.layout.padded_k() + w.layout.coded_panel().num_groups + 3);
      const double tolerance = 1.01 * roundings * kF32Rounding * magnitude;
      if (std::fabs(static_cast<double>(found[i]) - sum) <= tolerance) continue;
      ++wrong;
      ADD_FAILURE() << "row " << r << ", lane " << row << ": expected " << sum << ", found "
                    << found[i] << ", tolerance " << tolerance << "; " << to_string(w.layout.format)
                    << ", " << matrix_rows << " rows by " << to_string(kernels);
    }
  }
};

/// Formats of the encodings that there are, and the ones that are hardest on the kernels.
const std::vector<WeightFormat>& formats() {
  static const std::vector<WeightFormat> all = {
      {.element = WeightElement::kInt8, .output_scale = true},
      {.element = WeightElement::kE4M3, .output_scale = true},
      {WeightElement::kE4M3, ScaleType::kF32, 128, false, false},
      {WeightElement::kE4M3, ScaleType::kE8M0, 32, false, false},
      {WeightElement::kInt8, ScaleType::kF16, 32, true, false},
      {WeightElement::kInt4, ScaleType::kF16, 32, true, false},
      {WeightElement::kInt4, ScaleType::kBF16, 128, false, false},
      {WeightElement::kInt4, ScaleType::kF32, 48, true, true},
      {WeightElement::kE2M1, ScaleType::kE8M0, 32, false, false},
      {WeightElement::kE2M1, ScaleType::kE8M0, 32, false, true},
      {WeightElement::kE2M1, ScaleType::kE8M0, 64, true, false},
      {WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true}};
  return all;
}

class MatrixRowsTest : public testing::TestWithParam<CodedMachine> {
 protected:
  MatrixCase random_case(const WeightFormat& format, int64_t k, int64_t num_rows,
                         bool batch_invariant = false) {
    MatrixCase c{.kernels = select_matrix_kernels(machine.request(batch_invariant), format),
                 .w = random_coded(rng, {.n = kPanelWidth, .k = k, .format = format}),
                 .num_rows = num_rows,
                 .x = rng.normals(static_cast<size_t>(num_rows * k))};
    c.store();
    return c;
  }

  const CodedMachine& machine = GetParam();
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

/// Those that run GEMMs; selection alone needs no hardware.
class MultiplyPanelTest : public MatrixRowsTest {
 protected:
  void SetUp() override {
    if (!machine.runs_here()) GTEST_SKIP() << "this machine is no " << machine.name;
  }
};

TEST_P(MultiplyPanelTest, MatchesTheReferenceWhicheverWayItTakes) {
  // 600 columns are several of the pieces that are decoded at once; groups of 48 cross their ends.
  for (const WeightFormat& format : formats()) {
    const MatrixCase c = random_case(format, 600, 49);
    for (const int64_t matrix_rows : {1, 5, 6, 16, 17, 24, 25, 1000})
      c.expect_reference(c.run(0, 13, matrix_rows), matrix_rows);
    c.expect_reference(c.run(0, 49, 49), 49);
  }
}

TEST_P(MultiplyPanelTest, TakesAsManyRowsAsItSays) {
  const MatrixCase c = random_case(formats()[5], 130, kMaxMultiplyRows);
  for (const int64_t rows : {47, 48, 49, 96, 97, 128})
    c.expect_reference(c.run(0, rows, rows), rows);
}

TEST_P(MultiplyPanelTest, MatchesTheReferenceForEveryDepth) {
  for (const WeightFormat& format : {formats()[5], formats()[7], formats()[11]}) {
    for (int64_t k = 1; k < 300; k += k < 40 ? 3 : 41) {
      const MatrixCase c = random_case(format, k, 6);
      for (const int64_t matrix_rows : {1, 1000})
        c.expect_reference(c.run(0, 6, matrix_rows), matrix_rows);
    }
  }
}

TEST_P(MultiplyPanelTest, ARowHasTheSameBitsInEveryBlockOfOneWay) {
  for (const WeightFormat& format : formats()) {
    const MatrixCase c = random_case(format, 300, 100);
    for (const int64_t matrix_rows : {1, 12, 1000}) {
      const Floats all = c.run(0, 100, matrix_rows);
      for (const int64_t count : {1, 2, 11, 12, 13, 48, 49, 60}) {
        const int64_t first = rng.integer(0, 100 - count);
        const Floats part = c.run(first, count, matrix_rows);
        EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + first * kPanelWidth))
            << to_string(format) << ", " << count << " rows from " << first;
      }
    }
  }
}

TEST_P(MultiplyPanelTest, BatchInvariantKernelsGiveARowTheSameBitsForAnyNumberOfMatrixRows) {
  for (const WeightFormat& format : formats()) {
    const MatrixCase c = random_case(format, 300, 12, true);
    const Floats one = c.run(0, 12, 1);
    c.expect_reference(one, 1);
    for (const int64_t matrix_rows : {2, 5, 6, 16, 17, 24, 25, 128, 100000})
      EXPECT_EQ(c.run(0, 12, matrix_rows), one) << to_string(format) << ", " << matrix_rows;
  }
}

TEST_P(MultiplyPanelTest, GroupSumsAreThoseOfTheRoundedRows) {
  for (const int64_t k : {5, 32, 130, 600}) {
    const MatrixCase c = random_case(formats()[7], k, 3);  // groups of 48
    const int64_t groups = (c.w.layout.padded_k() + 47) / 48;
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (int64_t i = g * 48; i < std::min(k, (g + 1) * 48); ++i) {
          const double value = c.x[static_cast<size_t>(r * k + i)];
          sum += value;
          magnitude += std::fabs(value);
        }
        const float found =
            load_as_f32(c.rows.data() + r * c.stride() + c.sums_at(), DType::kF32, g);
        EXPECT_NEAR(static_cast<double>(found), sum, 48 * kF32Rounding * magnitude);
      }
    }
    // What lies behind the sums is as it was.
    for (int64_t at = c.sums_at() + groups * 4; at < c.stride(); ++at)
      ASSERT_EQ(c.rows.data()[at], std::byte{0xff});
  }
}

INSTANTIATE_TEST_SUITE_P(Machines, MultiplyPanelTest, testing::ValuesIn(coded_machines()),
                         machine_name);

// ---- selection ---------------------------------------------------------------------------------

TEST_P(MatrixRowsTest, ABatchInvariantRequestGetsOneWayOnly) {
  for (const WeightFormat& format : formats()) {
    const MatrixKernels kernels = select_matrix_kernels(machine.request(true), format);
    EXPECT_EQ(kernels.coded[1].kernel, nullptr);
    for (const int64_t rows : {1, 5, 6, 16, 17, 1 << 30})
      EXPECT_EQ(kernels.coded_for(rows), kernels.coded[0].kernel) << rows;
  }
}

TEST_P(MatrixRowsTest, WaysAscendAndReadTheFormatAndTheRows) {
  for (const WeightFormat& format : formats()) {
    const MatrixKernels kernels = select_matrix_kernels(machine.request(), format);
    ASSERT_NE(kernels.gemm, nullptr);
    ASSERT_NE(kernels.dequantize, nullptr);
    EXPECT_EQ(kernels.dequantize->out, kernels.gemm->weights);
    int64_t covered = 0;
    for (const MatrixKernels::Coded& way : kernels.coded) {
      if (way.kernel == nullptr) continue;
      EXPECT_GT(way.max_rows, covered);
      covered = way.max_rows;
      EXPECT_EQ(way.kernel->element, format.element);
      EXPECT_EQ(way.kernel->rows, kernels.gemm->rows);
      EXPECT_TRUE(way.kernel->scale == ScaleType::kNone || way.kernel->scale == format.scale);
      EXPECT_TRUE(machine.request().isas.contains(way.kernel->isa));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Machines, MatrixRowsTest, testing::ValuesIn(coded_machines()),
                         machine_name);

constexpr WeightFormat kInt4Group32{WeightElement::kInt4, ScaleType::kF16, 32, true, false};
constexpr WeightFormat kInt4Group128{WeightElement::kInt4, ScaleType::kF16, 128, true, false};
constexpr WeightFormat kFp8Block{WeightElement::kE4M3, ScaleType::kF32, 128, false, false};
constexpr WeightFormat kMxfp8{WeightElement::kE4M3, ScaleType::kE8M0, 32, false, false};
constexpr WeightFormat kMxfp4{WeightElement::kE2M1, ScaleType::kE8M0, 32, false, false};
constexpr WeightFormat kNvfp4{WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true};
constexpr WeightFormat kInt8Row{.element = WeightElement::kInt8, .output_scale = true};

std::string selected(const std::string& machine_name, const WeightFormat& format,
                     bool batch_invariant = false) {
  for (const CodedMachine& machine : coded_machines()) {
    if (machine.name == machine_name)
      return to_string(select_matrix_kernels(machine.request(batch_invariant), format));
  }
  return "no machine " + machine_name;
}

TEST(SelectMatrixKernelsTest, WithoutAvx512PanelsAreDecodedToF32First) {
  for (const WeightFormat& format : {kInt4Group32, kFp8Block, kMxfp4, kNvfp4, kInt8Row}) {
    EXPECT_EQ(selected("scalar", format), "dequantize_f32_scalar + f32_scalar");
    EXPECT_EQ(selected("scalar_f32", format), "dequantize_f32_scalar + f32_scalar");
    EXPECT_EQ(selected("avx2", format), "dequantize_f32_scalar + f32_avx2_6x16");
  }
}

TEST(SelectMatrixKernelsTest, IsPinnedOnAvx512) {
  const std::string many = "dequantize_f32_avx512 + f32_avx512_fma_12x32";
  for (const char* machine : {"avx512", "avx512_f32", "avx512_bf16_fma", "avx512_vbmi_f32"}) {
    EXPECT_EQ(selected(machine, kInt4Group32), "int4_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kInt4Group128), "int4_avx512_fma_12x32");
    EXPECT_EQ(selected(machine, kFp8Block), "e4m3_avx512_fma_12x32");
    EXPECT_EQ(selected(machine, kMxfp8), "e4m3_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kMxfp4), "e2m1_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kNvfp4), "e2m1_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kInt8Row), "int8_avx512_fma_12x32");
  }
}

TEST(SelectMatrixKernelsTest, IsPinnedOnAvx512WithTheDotInstruction) {
  const std::string many = "dequantize_bf16_avx512 + bf16_avx512_dot_12x32";
  for (const char* machine : {"avx512_bf16", "avx512_vbmi"}) {
    EXPECT_EQ(selected(machine, kInt4Group32), "int4_avx512_dot_12x32 to 16 rows, " + many);
    EXPECT_EQ(selected(machine, kInt4Group128), "int4_avx512_dot_12x32");
    EXPECT_EQ(selected(machine, kMxfp4), "e2m1_avx512_dot_12x32 to 5 rows, mxfp4_avx512_dot_12x32");
    EXPECT_EQ(selected(machine, kNvfp4), "e2m1_avx512_dot_12x32 to 5 rows, " + many);
    EXPECT_EQ(selected(machine, kInt8Row), "int8_avx512_dot_12x32");
  }
  // FP8 is looked up by VBMI; without it panels are decoded first.
  EXPECT_EQ(selected("avx512_vbmi", kFp8Block), "e4m3_avx512_dot_12x32");
  EXPECT_EQ(selected("avx512_vbmi", kMxfp8), "e4m3_avx512_dot_12x32 to 16 rows, " + many);
  EXPECT_EQ(selected("avx512_bf16", kFp8Block), many);
  EXPECT_EQ(selected("avx512_bf16", kMxfp8), many);
}

TEST(SelectMatrixKernelsTest, IsPinnedOnAmx) {
  for (const char* machine : {"amx", "amx_emulated"}) {
    std::string many = "dequantize_bf16_avx512 + bf16_amx_32x32";
    if (std::string(machine) == "amx_emulated") many += "_emulated";
    EXPECT_EQ(selected(machine, kInt4Group32), "int4_avx512_dot_12x32 to 16 rows, " + many);
    EXPECT_EQ(selected(machine, kNvfp4), "e2m1_avx512_dot_12x32 to 5 rows, " + many);
    EXPECT_EQ(selected(machine, kMxfp8), "e4m3_avx512_dot_12x32 to 16 rows, " + many);
  }
  EXPECT_EQ(selected("amx_emulated_alone", kInt4Group32),
            "dequantize_bf16_scalar + bf16_amx_32x32_emulated");
}

TEST(SelectMatrixKernelsTest, BatchInvariantRequestsTakeTheOneWayForTheMostRows) {
  EXPECT_EQ(selected("avx512_vbmi", kInt4Group32, true), "int4_avx512_dot_12x32");
  EXPECT_EQ(selected("avx512_vbmi", kMxfp4, true), "mxfp4_avx512_dot_12x32");
  EXPECT_EQ(selected("avx512_vbmi", kNvfp4, true), "e2m1_avx512_dot_12x32");
  EXPECT_EQ(selected("avx512", kInt4Group32, true), "int4_avx512_fma_12x32");
  EXPECT_EQ(selected("avx512_bf16", kMxfp8, true),
            "dequantize_bf16_avx512 + bf16_avx512_dot_12x32");
}

TEST(SelectMatrixKernelsTest, TheNumberOfRowsPicksTheWay) {
  const auto kernels_for = [](const WeightFormat& format) {
    for (const CodedMachine& machine : coded_machines()) {
      if (machine.name == "avx512_vbmi") return select_matrix_kernels(machine.request(), format);
    }
    return MatrixKernels{};
  };
  const MatrixKernels mxfp4 = kernels_for(kMxfp4);
  EXPECT_EQ(mxfp4.coded_for(1)->name, "e2m1_avx512_dot_12x32");
  EXPECT_EQ(mxfp4.coded_for(5)->name, "e2m1_avx512_dot_12x32");
  EXPECT_EQ(mxfp4.coded_for(6)->name, "mxfp4_avx512_dot_12x32");
  EXPECT_EQ(mxfp4.coded_for(1 << 30)->name, "mxfp4_avx512_dot_12x32");
  const MatrixKernels int4 = kernels_for(kInt4Group32);
  EXPECT_EQ(int4.coded_for(16)->name, "int4_avx512_dot_12x32");
  EXPECT_EQ(int4.coded_for(17), nullptr);
  const MatrixKernels plain = kernels_for({});
  EXPECT_EQ(plain.dequantize, nullptr);
  EXPECT_EQ(plain.coded_for(1), nullptr);
  EXPECT_EQ(to_string(plain), "bf16_avx512_dot_12x32");
}

TEST(SelectMatrixKernelsTest, AKernelThatFoldsScalesDoesNotGetZeroPointsOrOutputScales) {
  for (const bool zeros : {false, true}) {
    WeightFormat format = kMxfp4;
    format.zero_points = zeros;
    format.output_scale = !zeros;
    EXPECT_EQ(selected("avx512_vbmi", format).find("mxfp4"), std::string::npos);
    EXPECT_EQ(selected("avx512_vbmi", format, true), "e2m1_avx512_dot_12x32");
  }
}

}  // namespace
}  // namespace gantry::test
