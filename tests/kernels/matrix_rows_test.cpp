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
        const double weight =
            rounds ? static_cast<double>(round_to_bf16(w.decoded(row, j)))
                   : (w.code(row, j) - w.zero(row, j)) * w.scale(row, j) - w.minimum(row, j);
        const double larger = std::fabs(w.code(row, j)) + std::fabs(w.zero(row, j));
        weights.push_back(weight * w.output_scale(row));
        terms.push_back((std::fabs(larger * w.scale(row, j)) + std::fabs(w.minimum(row, j))) *
                        std::fabs(w.output_scale(row)));
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

/// For every machine; one that this is not is reported as skipped.
class MultiplyPanelTest : public testing::TestWithParam<CodedMachine> {
 protected:
  void SetUp() override {
    if (!machine.runs_here()) GTEST_SKIP() << "this machine is no " << machine.name;
  }

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

TEST_P(MultiplyPanelTest, MatchesTheReferenceWhicheverWayItTakes) {
  // 600 columns are several of the pieces that are decoded at once; groups of 48 cross their ends.
  for (const WeightFormat& format : matrix_formats()) {
    const MatrixCase c = random_case(format, 600, 49);
    for (const int64_t matrix_rows : {1, 5, 6, 16, 17, 24, 25, 1000})
      c.expect_reference(c.run(0, 13, matrix_rows), matrix_rows);
    c.expect_reference(c.run(0, 49, 49), 49);
  }
}

TEST_P(MultiplyPanelTest, TakesAsManyRowsAsItSays) {
  const MatrixCase c = random_case(matrix_formats()[5], 130, kMaxMultiplyRows);
  for (const int64_t rows : {47, 48, 49, 96, 97, 128})
    c.expect_reference(c.run(0, rows, rows), rows);
}

TEST_P(MultiplyPanelTest, MatchesTheReferenceForEveryDepth) {
  for (const WeightFormat& format :
       {matrix_formats()[5], matrix_formats()[7], matrix_formats()[11]}) {
    for (int64_t k = 1; k < 300; k += k < 40 ? 3 : 41) {
      const MatrixCase c = random_case(format, k, 6);
      for (const int64_t matrix_rows : {1, 1000})
        c.expect_reference(c.run(0, 6, matrix_rows), matrix_rows);
    }
  }
}

TEST_P(MultiplyPanelTest, ARowHasTheSameBitsInEveryBlockOfOneWay) {
  for (const WeightFormat& format : matrix_formats()) {
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
  for (const WeightFormat& format : matrix_formats()) {
    const MatrixCase c = random_case(format, 300, 12, true);
    const Floats one = c.run(0, 12, 1);
    c.expect_reference(one, 1);
    for (const int64_t matrix_rows : {2, 5, 6, 16, 17, 24, 25, 128, 100000})
      EXPECT_EQ(c.run(0, 12, matrix_rows), one) << to_string(format) << ", " << matrix_rows;
  }
}

TEST_P(MultiplyPanelTest, GroupSumsAreThoseOfTheRoundedRows) {
  for (const int64_t k : {5, 32, 130, 600}) {
    const MatrixCase c = random_case(matrix_formats()[7], k, 3);  // groups of 48
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

}  // namespace
}  // namespace gantry::test
