// Which kernels a coded matrix gets: no GEMM runs here.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/grouped_gemm/coded_kernels.h"
#include "tests/kernels/coded_case.h"
#include "tests/kernels/coded_machines.h"

namespace gantry::test {
namespace {

/// For every machine, whether this is one or not.
class MatrixKernelsTest : public testing::TestWithParam<CodedMachine> {
 protected:
  const CodedMachine& machine = GetParam();
};

TEST_P(MatrixKernelsTest, ABatchInvariantRequestGetsOneWayOnly) {
  for (const WeightFormat& format : matrix_formats()) {
    const MatrixKernels kernels = select_matrix_kernels(machine.request(true), format);
    EXPECT_EQ(kernels.coded[1].kernel, nullptr);
    for (const int64_t rows : {1, 5, 6, 16, 17, 1 << 30})
      EXPECT_EQ(kernels.coded_for(rows), kernels.coded[0].kernel) << rows;
  }
}

TEST_P(MatrixKernelsTest, WaysAscendAndReadTheFormatAndTheRows) {
  for (const WeightFormat& format : matrix_formats()) {
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
      EXPECT_TRUE(machine.request().isas.contains(way.kernel->isa));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Machines, MatrixKernelsTest, testing::ValuesIn(coded_machines()),
                         machine_name);

constexpr WeightFormat kInt4Group32{WeightElement::kInt4, ScaleType::kF16, 32, true, false};
constexpr WeightFormat kInt4Group128{WeightElement::kInt4, ScaleType::kF16, 128, true, false};
constexpr WeightFormat kFp8Block{WeightElement::kE4M3, ScaleType::kF32, 128, false, false};
constexpr WeightFormat kMxfp8{WeightElement::kE4M3, ScaleType::kE8M0, 32, false, false};
constexpr WeightFormat kMxfp4{WeightElement::kE2M1, ScaleType::kE8M0, 32, false, false};
constexpr WeightFormat kNvfp4{WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true};
constexpr WeightFormat kInt8Group32{WeightElement::kInt8, ScaleType::kF16, 32, false, false};
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
    EXPECT_EQ(selected("avx2", format), "dequantize_f32_avx2 + f32_avx2_6x16");
  }
}

TEST(SelectMatrixKernelsTest, IsPinnedOnAvx512) {
  const std::string many = "dequantize_f32_avx512 + f32_avx512_fma_12x32";
  for (const char* machine : {"avx512", "avx512_f32", "avx512_bf16_fma", "avx512_vbmi_f32"}) {
    EXPECT_EQ(selected(machine, kInt4Group32), "int4_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kInt4Group128), "int4_avx512_fma_12x32");
    EXPECT_EQ(selected(machine, kFp8Block), "e4m3_avx512_fma_12x32");
    EXPECT_EQ(selected(machine, kMxfp8), "e4m3_avx512_fma_12x32 to 12 rows, " + many);
    EXPECT_EQ(selected(machine, kMxfp4), "e2m1_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kNvfp4), "e2m1_avx512_fma_12x32 to 24 rows, " + many);
    EXPECT_EQ(selected(machine, kInt8Row), "int8_avx512_fma_12x32");
  }
}

/// The kernels that take a few rows first, and what takes more.
std::string int4_and(const std::string& more) { return "int4_avx512_dot_2x32 to 2 rows, " + more; }
std::string fp8_and(const std::string& more) { return "e4m3_avx512_dot_2x32 to 1 rows, " + more; }

TEST(SelectMatrixKernelsTest, IsPinnedOnAvx512WithTheDotInstruction) {
  const std::string many = "dequantize_bf16_avx512 + bf16_avx512_dot_12x32";
  for (const char* machine : {"avx512_bf16", "avx512_vbmi"}) {
    for (const WeightFormat& int4 : {kInt4Group32, kInt4Group128})
      EXPECT_EQ(selected(machine, int4), int4_and("int4_avx512_dot_12x32"));
    for (const WeightFormat& fp4 : {kMxfp4, kNvfp4})
      EXPECT_EQ(selected(machine, fp4), "e2m1_avx512_dot_12x32 to 96 rows, " + many);
    EXPECT_EQ(selected(machine, kInt8Row), "int8_avx512_dot_12x32");
    EXPECT_EQ(selected(machine, kInt8Group32), "int8_avx512_dot_12x32 to 24 rows, " + many);
  }
  // FP8 is looked up by VBMI; without it panels are decoded first.
  for (const WeightFormat& fp8 : {kFp8Block, kMxfp8})
    EXPECT_EQ(selected("avx512_vbmi", fp8), fp8_and("e4m3_avx512_dot_12x32"));
  EXPECT_EQ(selected("avx512_bf16", kFp8Block), many);
  EXPECT_EQ(selected("avx512_bf16", kMxfp8), many);
}

TEST(SelectMatrixKernelsTest, IsPinnedOnAmx) {
  for (const char* machine : {"amx", "amx_emulated"}) {
    std::string many = "dequantize_bf16_avx512 + bf16_amx_32x32";
    if (std::string(machine) == "amx_emulated") many += "_emulated";
    for (const WeightFormat& int4 : {kInt4Group32, kInt4Group128})
      EXPECT_EQ(selected(machine, int4), int4_and("int4_avx512_dot_12x32 to 5 rows, " + many));
    for (const WeightFormat& fp4 : {kMxfp4, kNvfp4})
      EXPECT_EQ(selected(machine, fp4), "e2m1_avx512_dot_12x32 to 5 rows, " + many);
    for (const WeightFormat& fp8 : {kFp8Block, kMxfp8})
      EXPECT_EQ(selected(machine, fp8), fp8_and("e4m3_avx512_dot_12x32 to 5 rows, " + many));
    EXPECT_EQ(selected(machine, kMxfp4, /*batch_invariant=*/true), many);
  }
  EXPECT_EQ(selected("amx_emulated_alone", kInt4Group32),
            "dequantize_bf16_scalar + bf16_amx_32x32_emulated");
}

TEST(SelectMatrixKernelsTest, BatchInvariantRequestsTakeTheOneWayForTheMostRows) {
  EXPECT_EQ(selected("avx512_vbmi", kInt4Group32, true), "int4_avx512_dot_12x32");
  for (const WeightFormat& fp4 : {kMxfp4, kNvfp4})
    EXPECT_EQ(selected("avx512_vbmi", fp4, true), "e2m1_avx512_dot_12x32");
  EXPECT_EQ(selected("avx512", kInt4Group32, true), "int4_avx512_fma_12x32");
  EXPECT_EQ(selected("avx512_bf16", kMxfp8, true),
            "dequantize_bf16_avx512 + bf16_avx512_dot_12x32");
}

TEST(SelectMatrixKernelsTest, Int8RowsMeetIntegersAndFp4AsIntegersWhereTheMachineCan) {
  IsaSet vnni;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni})
    vnni.insert(isa);
  IsaSet avx512;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512})
    avx512.insert(isa);
  const auto kernels_on = [](IsaSet isas, const WeightFormat& format) {
    return select_matrix_kernels(
        {.activations = ActivationDType::kScheme, .isas = isas, .int8_rows = true}, format);
  };
  for (const WeightFormat& format : {kInt4Group32, kInt4Group128, kMxfp4, kNvfp4, kInt8Row}) {
    EXPECT_EQ(kernels_on(vnni, format).rows, ActivationDType::kInt8) << to_string(format);
    EXPECT_EQ(kernels_on(avx512, format).rows, ActivationDType::kF32) << to_string(format);
  }
  EXPECT_EQ(to_string(kernels_on(vnni, kInt4Group32)), "int4_avx512_vnni_12x32");
  EXPECT_EQ(to_string(kernels_on(vnni, kMxfp4)), "e2m1_avx512_vnni_12x32");
  EXPECT_EQ(to_string(kernels_on(vnni, kInt8Row)), "int8_avx512_vnni_12x32");
  IsaSet amx = vnni;
  amx.insert(Isa::kAmxInt8);
  EXPECT_EQ(to_string(kernels_on(amx, kInt8Row)), "int8_amx_32x32");
  for (const WeightFormat& format : {kInt4Group32, kInt4Group128}) {
    const MatrixKernels kernels = kernels_on(amx, format);
    EXPECT_EQ(kernels.coded_for(8)->name, "int4_avx512_vnni_12x32");
    EXPECT_EQ(kernels.coded_for(9)->name, "int4_amx_32x32");
    EXPECT_EQ(kernels.coded_for(1 << 30)->name, "int4_amx_32x32");
  }
  // FP8 is no integer: simulated on f32 rows.
  EXPECT_EQ(kernels_on(vnni, kFp8Block).rows, ActivationDType::kF32);
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
  EXPECT_EQ(mxfp4.coded_for(96)->name, "e2m1_avx512_dot_12x32");
  EXPECT_EQ(mxfp4.coded_for(97), nullptr);
  const MatrixKernels int4 = kernels_for(kInt4Group32);
  EXPECT_EQ(int4.coded_for(2)->name, "int4_avx512_dot_2x32");
  EXPECT_EQ(int4.coded_for(3)->name, "int4_avx512_dot_12x32");
  EXPECT_EQ(int4.coded_for(1 << 30)->name, "int4_avx512_dot_12x32");
  const MatrixKernels plain = kernels_for({});
  EXPECT_EQ(plain.dequantize, nullptr);
  EXPECT_EQ(plain.coded_for(1), nullptr);
  EXPECT_EQ(to_string(plain), "bf16_avx512_dot_12x32");
}

}  // namespace
}  // namespace gantry::test
