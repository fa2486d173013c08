// The fused experts over coded weights, for every machine that kernels are selected for.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "tests/kernels/coded_case.h"
#include "tests/kernels/coded_machines.h"
#include "tests/kernels/fused_case.h"

namespace gantry::test {
namespace {

using Floats = std::vector<float>;

/// Formats of a layer's two matrices.
struct LayerFormat {
  std::string name;
  WeightFormat w13;
  WeightFormat w2;
};

std::vector<LayerFormat> layer_formats() {
  constexpr WeightFormat kInt4{WeightElement::kInt4, ScaleType::kF16, 32, true, false};
  constexpr WeightFormat kFp8Block{WeightElement::kE4M3, ScaleType::kF32, 128, false, false};
  constexpr WeightFormat kMxfp4{WeightElement::kE2M1, ScaleType::kE8M0, 32, false, false};
  constexpr WeightFormat kNvfp4{WeightElement::kE2M1, ScaleType::kE4M3, 16, false, true};
  constexpr WeightFormat kQ4K{WeightElement::kUInt4, ScaleType::kInt8, 32, false, false, true, 256};
  constexpr WeightFormat kQ6K{WeightElement::kInt8, ScaleType::kInt8, 16, false, false, false, 256};
  constexpr WeightFormat kQ4Minimums{
      WeightElement::kUInt4, ScaleType::kF16, 32, false, false, true};
  constexpr WeightFormat kIq4{WeightElement::kIQ4, ScaleType::kF16, 32};
  constexpr WeightFormat kInt8Row{.element = WeightElement::kInt8, .output_scale = true};
  return {{"int4_group32_zero_points", kInt4, kInt4},
          {"fp8_block128", kFp8Block, kFp8Block},
          {"mxfp4", kMxfp4, kMxfp4},
          {"nvfp4", kNvfp4, kNvfp4},
          {"int8_per_output", kInt8Row, kInt8Row},
          {"int4_and_int8", kInt4, kInt8Row},
          {"fp8_and_int4", kFp8Block, kInt4},
          {"q4_k_and_q6_k", kQ4K, kQ6K},
          {"q4_1_and_iq4_nl", kQ4Minimums, kIq4}};
}

struct FusedCoded {
  CodedMachine machine;
  LayerFormat format;
};

void PrintTo(const FusedCoded& tested, std::ostream* out) {
  *out << tested.machine.name << ", " << tested.format.name;
}

/// A random expert matrix of about unit gain: `output_scale` 1 / (its rms sqrt(k)), or where the
/// format has none, scales that much smaller. Scales have four significant bits, so that weights
/// decoded to bf16 are exact and every way to multiply has the same reference.
CodedCase expert_matrix(SeededRng& rng, const PackedLayout& layout) {
  CodedCase c = random_coded(rng, layout, CodedScales::kShort);
  double squares = 0.0;
  for (int64_t row = 0; row < layout.n; ++row) {
    for (int64_t k = 0; k < layout.k; ++k)
      squares += std::pow(c.decoded(row, k), 2);
  }
  const double rms = std::sqrt(squares / static_cast<double>(layout.n * layout.k));
  const double gain = 1.0 / (rms * std::sqrt(static_cast<double>(layout.k)));
  const float power = std::ldexp(1.0F, std::ilogb(gain));
  const bool outputs = layout.format.output_scale;
  const bool levels = layout.format.super_group > 0;
  for (float& scale : outputs ? c.output_scales : levels ? c.super_scales : c.scales)
    scale *= power;
  for (float& minimum : levels ? c.super_minimums : c.minimums)
    minimum *= outputs ? 1.0F : power;
  EXPECT_TRUE(c.store());
  return c;
}

class FusedCodedTest : public testing::TestWithParam<FusedCoded> {
 protected:
  void SetUp() override {
    const CodedMachine& machine = GetParam().machine;
    if (!machine.runs_here()) GTEST_SKIP() << "this machine is no " << machine.name;
    kernels = select(false);
  }

  [[nodiscard]] FusedExpertsKernels select(bool batch_invariant) const {
    const auto& [machine, format] = GetParam();
    return select_fused_experts(machine.request(batch_invariant), format.w13, format.w2);
  }

  /// Experts of coded weights in the slots of their ids, and one expert for every token.
  FusedCase coded_case(const std::vector<int64_t>& rows_of_expert, const FusedShape& sizes = {}) {
    FusedShape shape = sizes;
    shape.num_experts = static_cast<int64_t>(rows_of_expert.size());
    shape.num_tokens = std::accumulate(rows_of_expert.begin(), rows_of_expert.end(), int64_t{0});
    shape.top_k = 1;
    FusedCase c = random_fused(rng, shape);
    c.ids.clear();
    for (size_t e = 0; e < rows_of_expert.size(); ++e)
      c.ids.insert(c.ids.end(), static_cast<size_t>(rows_of_expert[e]), static_cast<int32_t>(e));
    std::shuffle(c.ids.begin(), c.ids.end(), rng.engine());
    store_coded(c);
    return c;
  }

  /// Replaces the weights of a case by coded ones.
  void store_coded(FusedCase& c) {
    const LayerFormat& format = GetParam().format;
    c.experts.w13.dtype = c.experts.w2.dtype = DType::kF32;
    c.experts.w13.format = format.w13;
    c.experts.w2.format = format.w2;
    c.experts.w2_offset = c.experts.w13.bytes();
    const int64_t biases = c.experts.w2_offset + c.experts.w2.bytes();
    if (c.shape.has_bias) {
      c.experts.b13_offset = biases;
      c.experts.b2_offset = biases + 4 * c.w13_rows();
    }
    const int64_t bias_bytes = 4 * (c.w13_rows() + c.shape.hidden);
    c.experts.slot_stride_bytes = (biases + bias_bytes + 63) / 64 * 64;
    c.slots = ByteBuffer(static_cast<size_t>(c.shape.num_experts * c.experts.slot_stride_bytes));
    c.experts.slots = c.slots.data();
    c.w13.clear();
    c.w2.clear();
    for (int64_t e = 0; e < c.shape.num_experts; ++e) {
      store_matrix(c.experts.w13, c.slot(e), c.w13);
      store_matrix(c.experts.w2, c.slot(e) + c.experts.w2_offset, c.w2);
      if (!c.shape.has_bias) continue;
      std::memcpy(c.slot(e) + c.experts.b13_offset, c.b13.data() + e * c.w13_rows(),
                  static_cast<size_t>(c.w13_rows()) * 4);
      std::memcpy(c.slot(e) + c.experts.b2_offset, c.b2.data() + e * c.shape.hidden,
                  static_cast<size_t>(c.shape.hidden) * 4);
    }
  }

  [[nodiscard]] Floats run(const FusedCase& c, const FusedOptions& options = {}) const {
    return c.run(kernels, GetParam().machine.activations, options);
  }

  /// || found - expected || <= bound || expected || for every token by itself, so that an expert
  /// with few rows counts. The bounds are those of FusedKernelTest, which are of a whole batch:
  /// f32 sums stay within 1e-4; of bf16 ones single values may fall to the other side of a rounding
  /// boundary. A token of J values between the GEMMs has a flip of 2^-7 of one of them now and
  /// then, so its bound is 2^-7 sqrt(16 / J): a flip of a value 4 times the root mean square.
  void expect_matches_reference(const FusedCase& c, const FusedOptions& options = {}) const {
    const ActivationDType activations = GetParam().machine.activations;
    const Floats found = run(c, options);
    const std::vector<double> expected = c.reference(activations, options);
    ASSERT_EQ(found.size(), expected.size());
    const auto h = static_cast<size_t>(c.shape.hidden);
    const double token_bound =
        activations == ActivationDType::kF32
            ? 1e-4
            : 0x1p-7 * std::sqrt(16.0 / static_cast<double>(c.shape.intermediate));
    double all_error = 0.0;
    double all_norm = 0.0;
    for (size_t token = 0; token < expected.size() / h; ++token) {
      double error = 0.0;
      double norm = 0.0;
      for (size_t i = token * h; i < (token + 1) * h; ++i) {
        error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
        norm += std::pow(expected[i], 2);
      }
      EXPECT_GT(norm, 0.0);
      EXPECT_LE(std::sqrt(error), token_bound * std::sqrt(norm))
          << "token " << token << " of expert " << c.ids[token];
      all_error += error;
      all_norm += norm;
    }
    const double bound = activations == ActivationDType::kF32 ? 1e-4 : 1e-3;
    EXPECT_LE(std::sqrt(all_error), bound * std::sqrt(all_norm));
  }

  FusedExpertsKernels kernels;
  SeededRng rng;
  testing::ScopedTrace trace{__FILE__, __LINE__, "seed " + std::to_string(rng.seed())};

 private:
  void store_matrix(const PackedLayout& layout, std::byte* target, Floats& logical) {
    const CodedCase matrix = expert_matrix(rng, layout);
    std::memcpy(target, matrix.packed.data(), matrix.packed.size());
    for (int64_t row = 0; row < layout.n; ++row) {
      for (int64_t k = 0; k < layout.k; ++k) {
        // Few significant bits each: products are exact.
        logical.push_back(matrix.decoded(row, k) * static_cast<float>(matrix.output_scale(row)));
      }
    }
  }
};

TEST_P(FusedCodedTest, MatchesTheReferenceForNoneOneFewAndManyRowsOfAnExpert) {
  expect_matches_reference(coded_case({0, 1, 5, 40}, {.hidden = 160, .intermediate = 96}));
}

TEST_P(FusedCodedTest, MatchesTheReferenceForSizesThatFillNoPanelAndNoGroup) {
  for (const int64_t hidden : {40, 72}) {
    for (const int64_t intermediate : {16, 33})
      expect_matches_reference(
          coded_case({3, 17, 1}, {.hidden = hidden, .intermediate = intermediate}));
  }
}

TEST_P(FusedCodedTest, AllTokensMayGoToOneExpert) {
  // More rows than one multiply_panel (128) and one task take.
  expect_matches_reference(coded_case({0, 300, 0}, {.hidden = 72, .intermediate = 40}));
}

TEST_P(FusedCodedTest, TakesBiasesAndUngatedActivations) {
  expect_matches_reference(coded_case(
      {2, 20}, {.activation = {.kind = Activation::kSwigluOai, .limit = 7.0F}, .has_bias = true}));
  expect_matches_reference(
      coded_case({2, 20}, {.activation = {.kind = Activation::kSiluNoMul}, .has_bias = true}));
}

TEST_P(FusedCodedTest, NoTokensAreFine) { EXPECT_TRUE(run(coded_case({0, 0})).empty()); }

TEST_P(FusedCodedTest, DoesNotReadAnExpertWithoutRows) {
  FusedCase c = coded_case({0, 3, 30});
  const Floats expected = run(c);
  std::memset(c.slot(0), 0xff, static_cast<size_t>(c.experts.slot_stride_bytes));
  EXPECT_EQ(run(c), expected);
}

TEST_P(FusedCodedTest, TheNumberAndOrderOfThreadsDoNotChangeABit) {
  const FusedCase c = coded_case({1, 5, 40, 130}, {.hidden = 72});
  const Floats one = run(c);
  for (const int count : {2, 5})
    EXPECT_EQ(run(c, {.threads = {.count = count, .executor = {}}}), one) << count << " threads";
  const auto backwards = [](int64_t num_tasks, const std::function<void(int64_t)>& body) {
    while (num_tasks > 0)
      body(--num_tasks);
  };
  EXPECT_EQ(run(c, {.threads = {.count = 3, .executor = backwards}}), one);
}

TEST_P(FusedCodedTest, BatchInvariantKernelsGiveATokenTheSameBitsAloneAndInABatch) {
  kernels = select(true);
  const FusedCase batch = coded_case({70});
  const Floats together = run(batch);
  const auto h = static_cast<size_t>(batch.shape.hidden);
  FusedCase alone = random_fused(
      rng, {.num_experts = 1, .num_tokens = 1, .top_k = 1});  // its weights are not used
  alone.ids = {0};
  alone.experts = batch.experts;
  for (size_t token = 0; token < 70; ++token) {
    std::copy_n(batch.x.begin() + static_cast<ptrdiff_t>(token * h), h, alone.x.begin());
    alone.weights[0] = batch.weights[token];
    const Floats found = run(alone);
    EXPECT_TRUE(std::equal(found.begin(), found.end(),
                           together.begin() + static_cast<ptrdiff_t>(token * h)))
        << "token " << token;
  }
}

std::vector<FusedCoded> fused_coded() {
  std::vector<FusedCoded> all;
  for (const CodedMachine& machine : coded_machines()) {
    for (const LayerFormat& format : layer_formats())
      all.push_back({machine, format});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Machines, FusedCodedTest, testing::ValuesIn(fused_coded()),
                         [](const auto& tested) {
                           std::string name = tested.param.machine.name;
                           name += "_";
                           return name + tested.param.format.name;
                         });

}  // namespace
}  // namespace gantry::test
