#include "kernels/activation/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "tests/support/expect_error.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;
using enum Activation;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The formulas of the header, in long double, in the words of the header.
long double reference(const ActivationSpec& s, long double a, long double u) {
  const auto sigmoid = [](long double x) { return 1 / (1 + std::exp(-x)); };
  const auto silu = [&](long double x) { return x * sigmoid(x); };
  const auto gelu = [](long double x) { return x * std::erfc(-x / std::sqrt(2.0L)) / 2; };
  const auto gelu_tanh = [](long double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0L)) * (x + 0.044715L * x * x * x)));
  };
  const auto relu2 = [](long double x) { return std::fmax(x, 0.0L) * std::fmax(x, 0.0L); };
  const long double limit = s.limit;
  const auto below = [&](long double x) { return std::fmin(x, limit); };
  const auto within = [&](long double x) { return std::fmax(std::fmin(x, limit), -limit); };
  const long double beta = s.beta;
  const long double linear_beta = s.linear_beta;
  switch (s.kind) {
    case kSilu:
      return limit > 0 ? silu(below(a)) * within(u) : silu(a) * u;
    case kGelu:
      return gelu(a) * u;
    case kGeluTanh:
      return gelu_tanh(a) * u;
    case kSwigluOai:
      return below(a) * sigmoid(s.alpha * below(a)) * (within(u) + beta);
    case kSwigluStep:
      return below(silu(a)) * within(u);
    case kSitu:
      return beta * std::tanh(a / beta) * sigmoid(a) *
             (linear_beta > 0 ? linear_beta * std::tanh(u / linear_beta) : u);
    case kRelu2:
      return relu2(a) * u;
    case kSiluNoMul:
      return silu(a);
    case kGeluNoMul:
      return gelu(a);
    case kGeluTanhNoMul:
      return gelu_tanh(a);
    case kRelu2NoMul:
      return relu2(a);
  }
  return kNan;
}

ActivationSpec with(Activation kind, float limit = 0.0F, float alpha = 1.702F, float beta = 1.0F,
                    float linear_beta = 0.0F) {
  return {.kind = kind, .limit = limit, .alpha = alpha, .beta = beta, .linear_beta = linear_beta};
}

struct ActivationCase {
  std::string name;
  ActivationSpec spec;
};

void PrintTo(const ActivationCase& tested, std::ostream* out) { *out << tested.name; }

Floats apply(const ActivationSpec& spec, const Floats& gate, const Floats& up) {
  Floats out(gate.size(), -77.0F);
  const auto n = static_cast<int64_t>(gate.size());
  apply_activation(spec, 1, n, gate.data(), n, is_gated(spec.kind) ? up.data() : nullptr, n,
                   out.data(), n);
  return out;
}

class ActivationTest : public testing::TestWithParam<ActivationCase> {
 protected:
  // 1 + erf, 1 + tanh cancel for negative arguments: the error is relative to |a|, not to the
  // result. Everything else is a handful of roundings of factors of at most |a| + 1 and
  // |u| + |beta|, clamped or not.
  void expect_close(float found, float a, float u) const {
    const auto expected = static_cast<double>(reference(spec, a, u));
    if (!std::isfinite(static_cast<float>(expected))) {
      EXPECT_EQ(found, static_cast<float>(expected)) << "a " << a << ", u " << u;
      return;
    }
    const double factor = is_gated(spec.kind) ? std::fabs(u) + std::fabs(spec.beta) : 1.0;
    const double scale = std::fabs(expected) + std::fmin(std::fabs(a), 100.0) * factor;
    // Subnormal factors have an absolute error, which the other factor multiplies.
    EXPECT_NEAR(found, expected, 1e-6 * scale + 1e-37 * (1.0 + factor)) << "a " << a << ", u " << u;
  }

  const ActivationSpec& spec = GetParam().spec;
};

TEST_P(ActivationTest, MatchesTheFormulaInLongDouble) {
  SeededRng rng;
  SCOPED_TRACE("seed " + std::to_string(rng.seed()));
  const Floats gate = rng.normals(2000, 4.0F);
  const Floats up = rng.normals(2000, 4.0F);
  const Floats found = apply(spec, gate, up);
  for (size_t i = 0; i < gate.size(); ++i)
    expect_close(found[i], gate[i], up[i]);
}

TEST_P(ActivationTest, HoldsAtClampsZeroAndLargeMagnitudes) {
  Floats gate;
  Floats up;
  const Floats edges = {0.0F,   -0.0F, 1e-40F,  -1e-40F, 6.999F, 7.0F,  7.001F, -6.999F,
                        -7.0F,  9.0F,  20.0F,   -20.0F,  88.0F,  89.0F, -88.0F, -89.0F,
                        104.0F, 1e4F,  -104.0F, -1e4F,   1e15F,  -1e15F};
  for (const float a : edges) {
    for (const float u : edges) {
      gate.push_back(a);
      up.push_back(u);
    }
  }
  const Floats found = apply(spec, gate, up);
  for (size_t i = 0; i < gate.size(); ++i)
    expect_close(found[i], gate[i], up[i]);
}

TEST_P(ActivationTest, NanOfEitherOperandStaysNan) {
  const Floats found = apply(spec, {kNan, 1.0F, -1.0F, kNan}, {2.0F, kNan, kNan, kNan});
  EXPECT_TRUE(std::isnan(found[0]));
  EXPECT_TRUE(std::isnan(found[3]));
  EXPECT_EQ(std::isnan(found[1]), is_gated(spec.kind));
  EXPECT_EQ(std::isnan(found[2]), is_gated(spec.kind));
}

TEST_P(ActivationTest, MayWriteOverItsGate) {
  SeededRng rng;
  const Floats gate = rng.normals(33);
  const Floats up = rng.normals(33);
  Floats in_place = gate;
  apply_activation(spec, 3, 11, in_place.data(), 11, up.data(), 11, in_place.data(), 11);
  EXPECT_EQ(in_place, apply(spec, gate, up));
}

TEST_P(ActivationTest, TakesTheHalvesOfFusedRowsAndLeavesWhatIsBetween) {
  // w13 rows: 5 gates, 5 ups, 2 values of padding. The output has a stride of its own.
  SeededRng rng;
  const Floats fused = rng.normals(3 * 12);
  Floats out(3 * 7, -77.0F);
  apply_activation(spec, 3, 5, fused.data(), 12, fused.data() + 5, 12, out.data(), 7);
  for (size_t r = 0; r < 3; ++r) {
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(out[r * 7 + i], apply(spec, {fused[r * 12 + i]}, {fused[r * 12 + 5 + i]})[0]);
    }
    EXPECT_EQ(out[r * 7 + 5], -77.0F);
    EXPECT_EQ(out[r * 7 + 6], -77.0F);
  }
}

TEST_P(ActivationTest, ItsSpecIsValid) { EXPECT_NO_THROW(validate(spec)); }

INSTANTIATE_TEST_SUITE_P(
    Kinds, ActivationTest,
    testing::Values(
        ActivationCase{"Silu", with(kSilu)}, ActivationCase{"SiluClamped", with(kSilu, 7.0F)},
        ActivationCase{"Gelu", with(kGelu)}, ActivationCase{"GeluTanh", with(kGeluTanh)},
        ActivationCase{"SwigluOai", with(kSwigluOai, 7.0F)},
        ActivationCase{"SwigluOaiOtherConstants", with(kSwigluOai, 2.5F, 1.1F, 0.0F)},
        ActivationCase{"SwigluStep", with(kSwigluStep, 7.0F)},
        ActivationCase{"Situ", with(kSitu, 0.0F, 1.702F, 3.0F)},
        ActivationCase{"SituLinear", with(kSitu, 0.0F, 1.702F, 0.5F, 6.0F)},
        ActivationCase{"Relu2", with(kRelu2)}, ActivationCase{"SiluNoMul", with(kSiluNoMul)},
        ActivationCase{"GeluNoMul", with(kGeluNoMul)},
        ActivationCase{"GeluTanhNoMul", with(kGeluTanhNoMul)},
        ActivationCase{"Relu2NoMul", with(kRelu2NoMul)}),
    [](const auto& tested) { return tested.param.name; });

TEST(ActivationShapeTest, NoRowsAndNoColumnsTouchNothing) {
  float guard = 5.0F;
  apply_activation(with(kSilu), 0, 8, nullptr, 8, nullptr, 8, &guard, 8);
  apply_activation(with(kSilu), 3, 0, &guard, 1, &guard, 1, &guard, 1);
  EXPECT_EQ(guard, 5.0F);
}

TEST(ActivationNameTest, NamesAreDistinct) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(kRelu2NoMul); ++i) {
    names.insert(to_string(static_cast<Activation>(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kRelu2NoMul) + 1);
  EXPECT_EQ(names.count("unknown"), 0U);
}

TEST(ActivationNameTest, OnlyTheNoMulKindsAreUngated) {
  for (int i = 0; i <= static_cast<int>(kRelu2NoMul); ++i) {
    const auto kind = static_cast<Activation>(i);
    EXPECT_EQ(is_gated(kind), to_string(kind).find("no_mul") == std::string_view::npos);
  }
}

TEST(ActivationValidateTest, NamesTheConstantAndTheKind) {
  const auto refused = [](const ActivationSpec& spec, std::string_view field) {
    expect_error([&] { validate(spec); }, ErrorCode::kInvalidArgument,
                 {to_string(spec.kind), field});
  };
  refused(with(kSwigluOai, 0.0F), "limit");
  refused(with(kSwigluStep, 0.0F), "limit");
  refused(with(kSilu, -1.0F), "limit");
  refused(with(kSilu, kNan), "limit");
  refused(with(kSwigluOai, 7.0F, kNan), "alpha");
  refused(with(kSwigluOai, 7.0F, 1.0F, HUGE_VALF), "beta");
  refused(with(kSitu, 0.0F, 1.0F, 0.0F), "beta");
  refused(with(kSitu, 0.0F, 1.0F, 1.0F, -2.0F), "linear_beta");
}

}  // namespace
}  // namespace gantry::test
