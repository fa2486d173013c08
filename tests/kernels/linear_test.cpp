// One dense matrix in f32: a router, a latent projection.

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/fused_moe/fused_experts.h"
#include "tests/kernels/panel_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

/// W [n, k] as it is stored and as the values that the bytes mean.
struct Dense {
  PackedLayout layout;
  Floats w;
  Floats bias;
  ByteBuffer bytes;
};

Dense random_dense(SeededRng& rng, DType dtype, int64_t n, int64_t k) {
  Dense d;
  d.layout = {dtype, false, n, k};
  d.w = rng.normals(static_cast<size_t>(n * k));
  d.bias = rng.normals(static_cast<size_t>(n));
  d.bytes = ByteBuffer(static_cast<size_t>(d.layout.bytes()));
  pack_matrix(d.layout, d.w.data(), d.bytes.data());
  d.w = unpack_matrix(d.layout, d.bytes.data());
  return d;
}

std::vector<PanelGemmKernel> kernels_of_f32_rows() {
  std::vector<PanelGemmKernel> all;
  for (const PanelGemmKernel& kernel : panel_gemm_kernels()) {
    if (kernel.rows == ActivationDType::kF32) all.push_back(kernel);
  }
  return all;
}

class LinearTest : public testing::TestWithParam<PanelGemmKernel> {
 protected:
  void SetUp() override {
    const PanelGemmKernel& kernel = GetParam();
    if (!can_run(kernel.isa)) GTEST_SKIP() << "needs " << to_string(kernel.isa);
    KernelRequest request{
        .weights = kernel.weights, .activations = ActivationDType::kF32, .isas = IsaSet{}};
    request.isas.insert(kernel.isa);
    kernels = select_fused_experts(request);
    ASSERT_EQ(kernels.w13.gemm->name, kernel.name);
  }

  [[nodiscard]] Floats run(const Dense& d, const Floats& x, bool has_bias = true,
                           int threads = 1) const {
    const auto num_tokens = static_cast<int64_t>(x.size()) / d.layout.k;
    FusedExpertsScratch scratch(linear_scratch(d.layout, kernels, num_tokens));
    if (scratch.rows.size() > 0) std::memset(scratch.rows.data(), 0xff, scratch.rows.size());
    Floats y(static_cast<size_t>(num_tokens * d.layout.n), -77.0F);
    linear(x, d.layout, d.bytes.data(), has_bias ? d.bias.data() : nullptr, y, kernels,
           {.count = threads, .executor = {}}, scratch);
    return y;
  }

  FusedExpertsKernels kernels;
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};
};

TEST_P(LinearTest, MatchesTheReferenceInLongDouble) {
  for (const auto& [tokens, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {3, 8, 31}, {48, 32, 64}, {97, 33, 70}, {200, 65, 96}}) {
    const Dense d = random_dense(rng, GetParam().weights, n, k);
    const Floats x = rng.normals(static_cast<size_t>(tokens * k));
    for (const bool has_bias : {false, true}) {
      std::vector<double> expected;
      for (int64_t i = 0; i < tokens * n; ++i) {
        const int64_t t = i / n;
        long double sum = has_bias ? d.bias[static_cast<size_t>(i % n)] : 0.0F;
        for (int64_t c = 0; c < k; ++c) {
          sum += static_cast<long double>(x[static_cast<size_t>(t * k + c)]) *
                 d.w[static_cast<size_t>(i % n * k + c)];
        }
        expected.push_back(static_cast<double>(sum));
      }
      const double tolerance =
          dot_tolerance(k, largest_magnitude(x), largest_magnitude(d.w), largest_magnitude(d.bias));
      EXPECT_TRUE(all_close(run(d, x, has_bias), expected, tolerance))
          << tokens << " tokens, n " << n << ", k " << k;
    }
  }
}

TEST_P(LinearTest, ATokenHasTheSameBitsAloneAndInABatchOnAnyThreads) {
  const Dense d = random_dense(rng, GetParam().weights, 40, 50);
  const Floats x = rng.normals(130 * 50);
  const Floats together = run(d, x);
  EXPECT_EQ(run(d, x, true, 5), together);
  for (ptrdiff_t token = 0; token < 130; ++token) {
    const Floats alone = run(d, {x.begin() + token * 50, x.begin() + (token + 1) * 50});
    EXPECT_EQ(alone, Floats(together.begin() + token * 40, together.begin() + (token + 1) * 40));
  }
}

TEST_P(LinearTest, NoTokensAreFine) {
  EXPECT_TRUE(run(random_dense(rng, GetParam().weights, 40, 50), {}).empty());
}

INSTANTIATE_TEST_SUITE_P(KernelsOfF32Rows, LinearTest, testing::ValuesIn(kernels_of_f32_rows()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// A scalar matrix of [5, 7] and 2 tokens; each test makes one thing wrong.
class LinearArgumentTest : public testing::Test {
 protected:
  void expect_refused(std::initializer_list<std::string_view> parts) {
    expect_error(
        [&] {
          linear(x, dense.layout, dense.bytes.data(), nullptr, y, kernels,
                 {.count = 1, .executor = {}}, scratch);
        },
        ErrorCode::kInvalidArgument, parts);
  }

  SeededRng rng;
  Dense dense = random_dense(rng, DType::kBF16, 5, 7);
  Floats x = Floats(14);
  Floats y = Floats(10);
  FusedExpertsKernels kernels = select_fused_experts(
      {.weights = DType::kBF16, .activations = ActivationDType::kF32, .isas = IsaSet{}});
  FusedExpertsScratch scratch = FusedExpertsScratch(linear_scratch(dense.layout, kernels, 2));
};

TEST_F(LinearArgumentTest, RefusesAPartOfAToken) {
  x.resize(15);
  expect_refused({"15 inputs"});
}

TEST_F(LinearArgumentTest, RefusesOutputsOfAnotherSize) {
  y.resize(9);
  expect_refused({"9 outputs"});
}

TEST_F(LinearArgumentTest, RefusesAScratchForFewerTokens) {
  scratch = FusedExpertsScratch(linear_scratch(dense.layout, kernels, 1));
  expect_refused({"2 rows", "scratch"});
}

TEST_F(LinearArgumentTest, RefusesAKernelThatRoundsItsInputs) {
  IsaSet isas;
  isas.insert(Isa::kAmxEmulated);
  kernels.w13.gemm = &select_panel_gemm(
      {.weights = DType::kBF16, .activations = ActivationDType::kBF16, .isas = isas});
  expect_refused({"f32 rows", "bf16_amx_32x32_emulated"});
}

TEST_F(LinearArgumentTest, RefusesAGatedMatrix) {
  dense.layout = {DType::kBF16, true, 6, 7};
  y.resize(12);
  expect_refused({"linear"});
}

}  // namespace
}  // namespace gantry::test
