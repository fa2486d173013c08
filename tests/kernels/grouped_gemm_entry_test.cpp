// Selection of kernels and the checks of the public entry: no kernel runs here.

#include <gtest/gtest.h>

#include <set>
#include <string_view>
#include <vector>

#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/grouped_gemm/grouped_gemm_kernels.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

// A machine that has every ISA up to `isa`, in the order of the enumeration.
IsaSet isas_up_to(Isa isa) {
  IsaSet isas;
  for (int i = 0; i <= static_cast<int>(isa); ++i)
    isas.insert(static_cast<Isa>(i));
  return isas;
}

std::string_view selected(DType dtype, IsaSet isas) {
  return select_grouped_gemm(PackedLayout::kRowMajor, dtype, isas).name;
}

TEST(SelectGroupedGemmTest, IsPinnedOnAScalarMachine) {
  EXPECT_EQ(selected(DType::kBF16, IsaSet{}), "bf16_scalar");
  EXPECT_EQ(selected(DType::kF16, IsaSet{}), "f16_scalar");
  EXPECT_EQ(selected(DType::kF32, IsaSet{}), "f32_scalar");
}

TEST(SelectGroupedGemmTest, IsPinnedOnAvx2) {
  const IsaSet isas = isas_up_to(Isa::kAvx2);
  EXPECT_EQ(selected(DType::kBF16, isas), "bf16_avx2_2x4");
  EXPECT_EQ(selected(DType::kF16, isas), "f16_avx2_2x4");
  EXPECT_EQ(selected(DType::kF32, isas), "f32_avx2_2x4");
}

TEST(SelectGroupedGemmTest, IsPinnedOnAvx512AndAbove) {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAmxInt8}) {
    const IsaSet isas = isas_up_to(isa);
    EXPECT_EQ(selected(DType::kBF16, isas), "bf16_avx512_4x4");
    EXPECT_EQ(selected(DType::kF16, isas), "f16_avx512_4x4");
    EXPECT_EQ(selected(DType::kF32, isas), "f32_avx512_4x4");
  }
}

TEST(SelectGroupedGemmTest, SaysWhatNoKernelReads) {
  expect_error([] { (void)selected(DType::kF8E4M3, isas_up_to(Isa::kAvx2)); },
               ErrorCode::kUnsupported, {"f8_e4m3", "avx2"});
}

TEST(SelectGroupedGemmTest, EveryPlainTypeHasAScalarKernelAndNamesAreDistinct) {
  std::set<std::string_view> names;
  std::set<DType> scalar;
  for (const GroupedGemmKernel& kernel : grouped_gemm_kernels()) {
    EXPECT_TRUE(names.insert(kernel.name).second) << kernel.name;
    EXPECT_TRUE(is_plain_float(kernel.dtype) && kernel.run != nullptr && kernel.tile_rows >= 1);
    if (kernel.isa == Isa::kScalar) scalar.insert(kernel.dtype);
  }
  EXPECT_EQ(scalar, (std::set<DType>{DType::kF16, DType::kBF16, DType::kF32}));
}

// Two experts of [3, 4] f32 with rows 0, 1 and 2; each test makes one thing wrong.
class GroupedGemmArgumentTest : public testing::Test {
 protected:
  void SetUp() override {
    weights.data = reinterpret_cast<const std::byte*>(w.data());
    weights.slot_stride_bytes = 3 * 4 * 4;
    weights.num_slots = 2;
    weights.n = 3;
    weights.k = 4;
    weights.dtype = DType::kF32;
  }

  void multiply() { grouped_gemm(x, weights, offsets, y, IsaSet{}, {.count = 1, .executor = {}}); }
  void expect_refused(std::initializer_list<std::string_view> parts) {
    expect_error([&] { multiply(); }, ErrorCode::kInvalidArgument, parts);
  }

  std::vector<float> w = std::vector<float>(2 * 3 * 4);
  std::vector<float> x = std::vector<float>(3 * 4);
  std::vector<float> y = std::vector<float>(3 * 3);
  std::vector<int32_t> offsets = {0, 1, 3};
  ExpertWeights weights;
};

TEST_F(GroupedGemmArgumentTest, AcceptsWhatFits) { EXPECT_NO_THROW(multiply()); }

TEST_F(GroupedGemmArgumentTest, RefusesQuantizedWeights) {
  weights.dtype = DType::kF8E4M3;
  expect_refused({"f8_e4m3"});
}

TEST_F(GroupedGemmArgumentTest, RefusesNegativeSizes) {
  weights.k = -4;
  expect_refused({"weights", "-4"});
}

TEST_F(GroupedGemmArgumentTest, RefusesTooFewOffsets) {
  offsets = {0, 3};
  expect_refused({"expected 3", "found 2"});
}

TEST_F(GroupedGemmArgumentTest, RefusesNoOffsets) {
  offsets.clear();
  expect_refused({"row offsets"});
}

TEST_F(GroupedGemmArgumentTest, RefusesOffsetsThatDoNotStartAtZero) {
  offsets = {1, 1, 3};
  expect_refused({"row offsets"});
}

TEST_F(GroupedGemmArgumentTest, RefusesOffsetsThatDescend) {
  offsets = {0, 4, 3};
  expect_refused({"row offsets"});
}

TEST_F(GroupedGemmArgumentTest, RefusesInputsOfAnotherSize) {
  x.resize(11);
  expect_refused({"expected 12 inputs", "found 11"});
}

TEST_F(GroupedGemmArgumentTest, RefusesOutputsOfAnotherSize) {
  y.resize(10);
  expect_refused({"9 outputs", "and 10"});
}

}  // namespace
}  // namespace gantry::test
