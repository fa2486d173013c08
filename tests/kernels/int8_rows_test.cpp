// Rows of int8: how they are rounded, and their product with int8 panels, which is exact in
// integers.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/fused_moe/row_ops.h"
#include "kernels/grouped_gemm/coded_kernels.h"
#include "kernels/grouped_gemm/pack_codes.h"
#include "kernels/quant/quantize_rows.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

constexpr WeightFormat kInt8PerOutput{.element = WeightElement::kInt8, .output_scale = true};

struct Rows {
  int64_t num_rows;
  int64_t padded;
  int64_t stride;
  ByteBuffer bytes{};

  Rows(int64_t count, int64_t k, const std::vector<float>& x)
      : num_rows(count),
        padded(padded_depth(k)),
        stride((padded * 4 + static_cast<int64_t>(sizeof(Int8RowTail)) + 63) / 64 * 64),
        bytes(static_cast<size_t>(count * stride)) {
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(bytes.data() + r * stride, x.data() + r * k, static_cast<size_t>(k) * 4);
  }
  void quantize(const RowOps& ops) {
    ops.quantize_int8({.rows = bytes.data(),
                       .stride = stride,
                       .num_rows = num_rows,
                       .padded = padded,
                       .tail = padded * 4});
  }
  [[nodiscard]] int code(int64_t r, int64_t i) const {
    return static_cast<int8_t>(bytes.data()[r * stride + i]);
  }
  [[nodiscard]] Int8RowTail tail(int64_t r) const {
    Int8RowTail tail{};
    std::memcpy(&tail, bytes.data() + r * stride + padded * 4, sizeof(tail));
    return tail;
  }
};

std::vector<const RowOps*> row_ops_here() {
  std::vector<const RowOps*> all = {&scalar::kRowOps};
  if (host_isas().contains(Isa::kAvx2)) all.push_back(&avx2::kRowOps);
  if (host_isas().contains(Isa::kAvx512)) all.push_back(&avx512::kRowOps);
  return all;
}

TEST(QuantizeInt8Test, GivesTheValuesOfTheSchemeAndTheSumOfTheCodes) {
  SeededRng rng;
  SCOPED_TRACE(rng.seed());
  for (const int64_t k : {1, 15, 32, 100, 257}) {
    const std::vector<float> x = rng.normals(static_cast<size_t>(3 * k), 2.0F);
    for (const RowOps* ops : row_ops_here()) {
      Rows rows(3, k, x);
      rows.quantize(*ops);
      for (int64_t r = 0; r < 3; ++r) {
        std::vector<float> expected(x.begin() + r * k, x.begin() + (r + 1) * k);
        quantize_row({.kind = RowQuantization::kInt8Token}, {.values = expected}, {}, 0.0F);
        int sum = 0;
        for (int64_t i = 0; i < rows.padded; ++i) {
          sum += rows.code(r, i);
          const float found = static_cast<float>(rows.code(r, i)) * rows.tail(r).scale;
          ASSERT_EQ(found, i < k ? expected[static_cast<size_t>(i)] : 0.0F) << k << " " << i;
        }
        EXPECT_EQ(rows.tail(r).sum, sum);
      }
    }
  }
}

TEST(QuantizeInt8Test, ARowOfZerosStaysZerosAndNanReachesTheScale) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const RowOps* ops : row_ops_here()) {
    Rows rows(3, 4, {0, 0, 0, 0, 1, kNan, 2, 3, 1, 2, -kInfinity, 3});
    rows.quantize(*ops);
    EXPECT_EQ(rows.tail(0).scale, 0.0F);
    EXPECT_EQ(rows.code(0, 1), 0);
    EXPECT_TRUE(std::isnan(rows.tail(1).scale));
    EXPECT_TRUE(std::isnan(rows.tail(2).scale));
  }
}

TEST(Int8GemmTest, IsTheExactSumTimesTheScales) {
  SeededRng rng;
  SCOPED_TRACE(rng.seed());
  for (const CodedGemmKernel& kernel : coded_gemm_kernels()) {
    if (kernel.rows != ActivationDType::kInt8) continue;
    if (!host_isas().contains(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
    for (const int64_t k : {1, 4, 31, 96, 700}) {
      const PackedLayout layout{DType::kF32, false, kPanelWidth, k, kInt8PerOutput};
      std::vector<uint8_t> codes(static_cast<size_t>(kPanelWidth * k));
      for (uint8_t& code : codes)
        code = static_cast<uint8_t>(rng.integer(0, 255));
      const std::vector<float> scales = rng.normals(kPanelWidth, 0.1F);
      ByteBuffer packed(static_cast<size_t>(layout.bytes()));
      ASSERT_TRUE(pack_coded_rows(layout,
                                  {.codes = codes.data(),
                                   .rows = kPanelWidth,
                                   .cols = k,
                                   .stride = k,
                                   .output_scales = scales.data()},
                                  0, packed.data()));
      const CodedPanel panel = layout.coded_panel();
      Rows rows(kMaxPanelRows, k, rng.normals(static_cast<size_t>(kMaxPanelRows * k), 3.0F));
      rows.quantize(scalar::kRowOps);
      for (int64_t count = 1; count <= kMaxPanelRows; ++count) {
        Buffer<float> c(static_cast<size_t>(count * kPanelWidth));
        kernel.run({.x = rows.bytes.data(),
                    .x_stride = rows.stride,
                    .panel = packed.data(),
                    .k = rows.padded,
                    .num_rows = count,
                    .c = c.data(),
                    .next = nullptr,
                    .coded = &panel,
                    .x_sums = rows.padded * 4});
        for (int64_t at = 0; at < count * kPanelWidth; ++at) {
          int64_t sum = 0;
          for (int64_t i = 0; i < k; ++i) {
            sum += rows.code(at / kPanelWidth, i) *
                   static_cast<int8_t>(codes[static_cast<size_t>(at % kPanelWidth * k + i)]);
          }
          // Sums are below 2^24 only for short rows: one rounding, then two products.
          const float expected = static_cast<float>(sum) * rows.tail(at / kPanelWidth).scale *
                                 scales[static_cast<size_t>(at % kPanelWidth)];
          ASSERT_EQ(c[static_cast<size_t>(at)], expected) << "k " << k << ", rows " << count;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gantry::test
