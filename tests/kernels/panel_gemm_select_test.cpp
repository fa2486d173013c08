// Which kernel a request gets, and why not another: no GEMM runs here.

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

constexpr auto kF32 = ActivationDType::kF32;
constexpr auto kBF16 = ActivationDType::kBF16;

// A machine that has every ISA up to `isa`, in the order of the enumeration.
IsaSet isas_up_to(Isa isa) {
  IsaSet isas;
  for (int i = 0; i <= static_cast<int>(isa); ++i)
    isas.insert(static_cast<Isa>(i));
  return isas;
}

KernelRequest request(DType weights, ActivationDType activations, IsaSet isas,
                      Avx512Dot flavour = Avx512Dot::kFma) {
  return {.weights = weights, .activations = activations, .isas = isas, .avx512_dot = flavour};
}

std::string_view selected(DType weights, ActivationDType activations, IsaSet isas,
                          Avx512Dot flavour = Avx512Dot::kFma) {
  return select_panel_gemm(request(weights, activations, isas, flavour)).name;
}

// Every combination of what a machine may have, with and without the emulation.
std::vector<IsaSet> machines() {
  std::vector<IsaSet> all;
  for (int i = 0; i <= static_cast<int>(Isa::kAmxInt8); ++i) {
    IsaSet isas = isas_up_to(static_cast<Isa>(i));
    all.push_back(isas);
    isas.insert(Isa::kAmxEmulated);
    all.push_back(isas);
  }
  return all;
}

TEST(SelectPanelGemmTest, IsPinnedOnAScalarMachine) {
  for (const ActivationDType activations : {kF32, kBF16}) {
    EXPECT_EQ(selected(DType::kBF16, activations, IsaSet{}), "bf16_scalar");
    EXPECT_EQ(selected(DType::kF16, activations, IsaSet{}), "f16_scalar");
    EXPECT_EQ(selected(DType::kF32, activations, IsaSet{}), "f32_scalar");
  }
}

TEST(SelectPanelGemmTest, IsPinnedOnAvx2) {
  const IsaSet isas = isas_up_to(Isa::kAvx2);
  for (const ActivationDType activations : {kF32, kBF16}) {
    EXPECT_EQ(selected(DType::kBF16, activations, isas), "bf16_avx2_6x16");
    EXPECT_EQ(selected(DType::kF16, activations, isas), "f16_avx2_6x16");
    EXPECT_EQ(selected(DType::kF32, activations, isas), "f32_avx2_6x16");
  }
}

TEST(SelectPanelGemmTest, IsPinnedOnAvx512WithoutBf16WhateverTheFlavour) {
  const IsaSet isas = isas_up_to(Isa::kAvx512);
  for (const Avx512Dot flavour : {Avx512Dot::kFma, Avx512Dot::kDot}) {
    EXPECT_EQ(selected(DType::kBF16, kBF16, isas, flavour), "bf16_avx512_fma_12x32");
    EXPECT_EQ(selected(DType::kF16, kBF16, isas, flavour), "f16_avx512_fma_12x32");
    EXPECT_EQ(selected(DType::kF32, kBF16, isas, flavour), "f32_avx512_fma_12x32");
  }
}

TEST(SelectPanelGemmTest, IsPinnedOnAvx512Bf16ByTheFlavour) {
  const IsaSet isas = isas_up_to(Isa::kAvx512Bf16);
  EXPECT_EQ(selected(DType::kBF16, kBF16, isas, Avx512Dot::kFma), "bf16_avx512_fma_12x32");
  EXPECT_EQ(selected(DType::kBF16, kBF16, isas, Avx512Dot::kDot), "bf16_avx512_dot_12x32");
  EXPECT_EQ(selected(DType::kF16, kBF16, isas, Avx512Dot::kDot), "f16_avx512_fma_12x32");
  EXPECT_EQ(selected(DType::kF32, kBF16, isas, Avx512Dot::kDot), "f32_avx512_fma_12x32");
}

TEST(SelectPanelGemmTest, IsPinnedOnAmxWhateverTheFlavour) {
  const IsaSet isas = isas_up_to(Isa::kAmxInt8);
  for (const Avx512Dot flavour : {Avx512Dot::kFma, Avx512Dot::kDot}) {
    EXPECT_EQ(selected(DType::kBF16, kBF16, isas, flavour), "bf16_amx_32x32");
    EXPECT_EQ(selected(DType::kBF16, kF32, isas, flavour), "bf16_avx512_fma_12x32");
    EXPECT_EQ(selected(DType::kF16, kBF16, isas, flavour), "f16_avx512_fma_12x32");
  }
}

TEST(SelectPanelGemmTest, TheEmulationIsTakenOnlyWhereItIsAskedForAndAmxIsMissing) {
  IsaSet isas;
  isas.insert(Isa::kAmxEmulated);
  EXPECT_EQ(selected(DType::kBF16, kBF16, isas), "bf16_amx_32x32_emulated");
  isas.insert(Isa::kAmxBf16);
  EXPECT_EQ(selected(DType::kBF16, kBF16, isas), "bf16_amx_32x32");
  EXPECT_FALSE(detected_isas().contains(Isa::kAmxEmulated));
}

TEST(SelectPanelGemmTest, F32ActivationsNeverGetAKernelOfBf16Rows) {
  for (const IsaSet isas : machines()) {
    for (const DType weights : {DType::kBF16, DType::kF16, DType::kF32}) {
      for (const Avx512Dot flavour : {Avx512Dot::kFma, Avx512Dot::kDot}) {
        EXPECT_EQ(select_panel_gemm(request(weights, kF32, isas, flavour)).rows, kF32)
            << to_string(isas);
      }
    }
  }
}

TEST(SelectPanelGemmTest, OnlyBatchInvariantKernelsServeARequestForOne) {
  for (const IsaSet isas : machines()) {
    KernelRequest wanted = request(DType::kBF16, kBF16, isas, Avx512Dot::kDot);
    wanted.batch_invariant = true;
    EXPECT_TRUE(select_panel_gemm(wanted).batch_invariant) << to_string(isas);
  }
}

TEST(SelectPanelGemmTest, SaysWhatNoKernelReads) {
  expect_error([] { (void)selected(DType::kF8E4M3, kBF16, isas_up_to(Isa::kAvx2)); },
               ErrorCode::kUnsupported, {"f8_e4m3", "scalar avx2"});
}

// ---- refusals ----------------------------------------------------------------------------------

using Refusals = std::vector<std::string>;

TEST(RefusedPanelGemmTest, NamesEveryBetterKernelAndItsReason) {
  const IsaSet isas = isas_up_to(Isa::kAvx512Bf16);
  EXPECT_EQ(
      refused_panel_gemms(request(DType::kBF16, kBF16, isas)),
      (Refusals{"bf16_amx_32x32: needs amx_bf16", "bf16_amx_32x32_emulated: needs amx_emulated",
                "bf16_avx512_dot_12x32: FMA is as fast here (see avx512 dot)"}));
  EXPECT_EQ(
      refused_panel_gemms(request(DType::kBF16, kBF16, isas, Avx512Dot::kDot)),
      (Refusals{"bf16_amx_32x32: needs amx_bf16", "bf16_amx_32x32_emulated: needs amx_emulated"}));
}

TEST(RefusedPanelGemmTest, SaysThatF32ActivationsMustNotBeRounded) {
  const IsaSet isas = isas_up_to(Isa::kAmxEmulated);
  EXPECT_EQ(refused_panel_gemms(request(DType::kBF16, kF32, isas, Avx512Dot::kDot)),
            (Refusals{"bf16_amx_32x32: rounds activations to bf16",
                      "bf16_amx_32x32_emulated: rounds activations to bf16",
                      "bf16_avx512_dot_12x32: rounds activations to bf16"}));
}

TEST(RefusedPanelGemmTest, IsEmptyWhereTheBestKernelIsTaken) {
  EXPECT_TRUE(refused_panel_gemms(request(DType::kF32, kF32, isas_up_to(Isa::kAvx512))).empty());
}

// ---- the table ---------------------------------------------------------------------------------

TEST(PanelGemmTableTest, NamesAreDistinctAndBeginWithTheWeights) {
  std::set<std::string_view> names;
  for (const PanelGemmKernel& kernel : panel_gemm_kernels()) {
    EXPECT_TRUE(names.insert(kernel.name).second) << kernel.name;
    EXPECT_TRUE(kernel.name.starts_with(to_string(kernel.weights))) << kernel.name;
    EXPECT_NE(kernel.run, nullptr) << kernel.name;
  }
}

TEST(PanelGemmTableTest, EveryPlainTypeHasAScalarKernelOfF32Rows) {
  std::set<DType> scalar;
  for (const PanelGemmKernel& kernel : panel_gemm_kernels()) {
    EXPECT_TRUE(is_plain_float(kernel.weights)) << kernel.name;
    if (kernel.isa == Isa::kScalar && kernel.rows == kF32) scalar.insert(kernel.weights);
  }
  EXPECT_EQ(scalar, (std::set<DType>{DType::kF16, DType::kBF16, DType::kF32}));
}

TEST(PanelGemmTableTest, RowsArePaddedLinesAndNeverAMultipleOf4KBApart) {
  for (const PanelGemmKernel& kernel : panel_gemm_kernels()) {
    const int64_t element = kernel.rows == kBF16 ? 2 : 4;
    for (int64_t k = 1; k <= 8192; k += k < 130 ? 1 : 31) {
      const int64_t stride = kernel.row_stride_bytes(k);
      const int64_t padded = (k + 31) / 32 * 32 * element;
      ASSERT_GE(stride, padded) << kernel.name << ", k " << k;
      ASSERT_LE(stride, padded + 64) << kernel.name << ", k " << k;
      ASSERT_EQ(stride % 64, 0) << kernel.name << ", k " << k;
      ASSERT_NE(stride % 4096, 0) << kernel.name << ", k " << k;
    }
  }
}

// ---- FMA or the dot instruction ----------------------------------------------------------------

// The choice is made once a process: each of these runs in one of its own.
class Avx512DotDeathTest : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }

  // Exits with 1 for the dot instruction, 0 for FMA, 2 for an error that names the variable.
  [[noreturn]] static void choose(const char* value) {
    ::setenv("GANTRY_AVX512_DOT", value, 1);
    int code = 3;
    try {
      code = avx512_dot_choice().flavour == Avx512Dot::kDot ? 1 : 0;
      if (!avx512_dot_choice().reason.ends_with(value)) code = 4;
    } catch (const Error& error) {
      if (std::string_view(error.what()).find("GANTRY_AVX512_DOT") != std::string_view::npos) {
        code = 2;
      }
    }
    std::exit(code);
  }
};

TEST_F(Avx512DotDeathTest, TheEnvironmentDecides) {
  EXPECT_EXIT(choose("fma"), testing::ExitedWithCode(0), "");
  EXPECT_EXIT(choose("bf16"), testing::ExitedWithCode(1), "");
}

TEST_F(Avx512DotDeathTest, RefusesAnotherValue) {
  EXPECT_EXIT(choose("vnni"), testing::ExitedWithCode(2), "");
}

TEST(Avx512DotTest, WithoutTheEnvironmentAProbeOrTheCpuDecides) {
  if (std::getenv("GANTRY_AVX512_DOT") != nullptr) GTEST_SKIP() << "GANTRY_AVX512_DOT is set";
  const Avx512DotChoice& choice = avx512_dot_choice();
  EXPECT_FALSE(choice.reason.empty());
  const bool measured = detected_isas().contains(Isa::kAvx512Bf16);
  EXPECT_EQ(choice.ratio > 0.0, measured) << choice.reason;
  EXPECT_EQ(choice.flavour == Avx512Dot::kDot, choice.ratio > 1.3) << choice.reason;
}

}  // namespace
}  // namespace gantry::test
