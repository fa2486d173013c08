#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "tests/kernels/fused_case.h"
#include "tests/kernels/panel_case.h"

namespace gantry::test {

/// A GEMM kernel and the activations that it serves here.
struct FusedKernel {
  PanelGemmKernel gemm;
  ActivationDType activations;
};

inline std::string fused_kernel_name(const FusedKernel& tested) {
  return std::string(tested.gemm.name) + "_of_" + std::string(to_string(tested.activations));
}
inline void PrintTo(const FusedKernel& tested, std::ostream* out) {
  *out << fused_kernel_name(tested);
}

/// Every kernel of the table, with every activation type that it can serve.
inline std::vector<FusedKernel> fused_kernels() {
  std::vector<FusedKernel> all;
  for (const PanelGemmKernel& gemm : panel_gemm_kernels()) {
    if (gemm.rows == ActivationDType::kF32) all.push_back({gemm, ActivationDType::kF32});
    all.push_back({gemm, ActivationDType::kBF16});
  }
  return all;
}

/// Runs the experts with one kernel; one that this CPU cannot run is reported as skipped.
class FusedKernelTest : public testing::TestWithParam<FusedKernel> {
 protected:
  void SetUp() override {
    const auto& [gemm, activations] = GetParam();
    if (!can_run(gemm.isa)) GTEST_SKIP() << "needs " << to_string(gemm.isa);
    // The kernel's own instruction set, and the row operations of what it implies.
    IsaSet isas;
    isas.insert(gemm.isa);
    const bool amx = gemm.isa == Isa::kAmxBf16;
    if (amx || gemm.isa == Isa::kAvx512Bf16) isas.insert(Isa::kAvx512);
    kernels = select_fused_experts({.weights = gemm.weights,
                                    .activations = activations,
                                    .isas = isas,
                                    .avx512_dot = Avx512Dot::kDot});
    ASSERT_EQ(kernels.w13.gemm->name, gemm.name);
  }

  FusedCase random_case(FusedShape shape) {
    shape.weights = GetParam().gemm.weights;
    return random_fused(rng, shape);
  }
  [[nodiscard]] std::vector<float> run(const FusedCase& c, const FusedOptions& options = {}) const {
    return c.run(kernels, GetParam().activations, options);
  }

  // || found - expected || <= bound || expected ||.
  //
  // f32 activations: the runtime's promise, 1e-4. These sums of up to 75 products err by a few
  // 1e-7.
  //
  // bf16 activations: where f(...) is within its sum's error of a rounding boundary, this run and
  // the reference may round it to different sides, one bf16 step apart: 2^-7 of the value at most.
  // The error of f is some 2^-20 of it, and boundaries lie at least 2^-8 of it apart, so one value
  // in 2^11 flips. The mean square over all values is then 2^-11 2^-14 at most: a norm of 2e-4 of
  // the whole. Few values may have more than their share of flips, so that bound is taken five
  // times.
  void expect_matches_reference(const FusedCase& c, const FusedOptions& options = {}) const {
    const std::vector<float> found = run(c, options);
    const std::vector<double> expected = c.reference(GetParam().activations, options);
    ASSERT_EQ(found.size(), expected.size());
    double error = 0.0;
    double norm = 0.0;
    for (size_t i = 0; i < found.size(); ++i) {
      error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    const double bound = GetParam().activations == ActivationDType::kF32 ? 1e-4 : 1e-3;
    EXPECT_LE(std::sqrt(error), bound * std::sqrt(norm))
        << "H " << c.shape.hidden << ", J " << c.shape.intermediate << ", T " << c.shape.num_tokens;
    EXPECT_GT(norm, 0.0);
  }

  FusedExpertsKernels kernels;
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

}  // namespace gantry::test
