// Gate and up rows of w13 with inputs of their own: static scales that differ.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/fused_moe/fused_experts.h"
#include "tests/kernels/coded_case.h"
#include "tests/support/expect_error.h"

namespace gantry::test {
namespace {

constexpr int64_t kHidden = 96;
constexpr int64_t kIntermediate = 40;
constexpr int64_t kExperts = 3;
constexpr float kGateScale[kExperts] = {0.02F, 0.05F, 0.01F};
constexpr float kUpScale[kExperts] = {0.03F, 0.05F, 0.002F};
constexpr float kMidScale = 0.04F;

struct Expert {
  CodedCase w13;
  CodedCase w2;
};

/// Experts of int8 with their scales of inputs behind the matrices: gate, up, w2.
struct Layer {
  PackedExperts experts;
  ByteBuffer slots;
  std::vector<Expert> logical;
  int64_t scales = 0;
};

Layer random_layer(SeededRng& rng) {
  Layer layer;
  const WeightFormat format{.element = WeightElement::kInt8, .output_scale = true};
  layer.experts.w13 = {DType::kF32, true, 2 * kIntermediate, kHidden, format};
  layer.experts.w2 = {DType::kF32, false, kHidden, kIntermediate, format};
  layer.experts.num_slots = kExperts;
  layer.experts.w2_offset = layer.experts.w13.bytes();
  layer.scales = layer.experts.w2_offset + layer.experts.w2.bytes();
  layer.experts.slot_stride_bytes = layer.scales + 64;
  layer.slots = ByteBuffer(static_cast<size_t>(kExperts * layer.experts.slot_stride_bytes));
  layer.experts.slots = layer.slots.data();
  for (int64_t e = 0; e < kExperts; ++e) {
    Expert expert{random_coded(rng, layer.experts.w13), random_coded(rng, layer.experts.w2)};
    for (CodedCase* matrix : {&expert.w13, &expert.w2}) {
      for (float& scale : matrix->output_scales)
        scale *= 1e-3F;
      EXPECT_TRUE(matrix->store());
    }
    std::byte* slot = layer.slots.data() + e * layer.experts.slot_stride_bytes;
    std::memcpy(slot, expert.w13.packed.data(), expert.w13.packed.size());
    std::memcpy(slot + layer.experts.w2_offset, expert.w2.packed.data(), expert.w2.packed.size());
    const float scales[3] = {kGateScale[e], kUpScale[e], kMidScale};
    std::memcpy(slot + layer.scales, scales, sizeof(scales));
    layer.logical.push_back(std::move(expert));
  }
  return layer;
}

/// A sum in double, and what f32 may be off by: gamma_n of the sum of magnitudes, n the terms and
/// the roundings of a decoded weight.
struct Sum {
  double value = 0.0;
  double bound = 0.0;
};

constexpr double kF32 = 0x1p-24;

/// One row of a matrix times x, whose values may be off by `bounds` (empty: by nothing).
Sum dot(const CodedCase& w, int64_t row, const std::vector<float>& x,
        const std::vector<double>& bounds = {}) {
  Sum sum;
  for (int64_t k = 0; k < w.layout.k; ++k) {
    const auto i = static_cast<size_t>(k);
    const double weight = w.code(row, k) * w.output_scale(row);
    const double product = static_cast<double>(x[i]) * weight;
    sum.value += product;
    sum.bound += static_cast<double>(w.layout.k + 4) * kF32 * std::abs(product);
    if (!bounds.empty()) sum.bound += bounds[i] * std::abs(weight);
  }
  return sum;
}

std::vector<float> quantized(RowQuantization kind, std::vector<float> x, float scale) {
  quantize_row({.kind = kind}, {x, 0}, {}, scale);
  return x;
}

/// silu(gate) * up. |silu'| <= 1.1; its exp and its quotient are good to some units in the last
/// place.
Sum activated(const Sum& gate, const Sum& up) {
  const double silu = gate.value / (1.0 + std::exp(-gate.value));
  const double value = silu * up.value;
  return {value, 1.1 * gate.bound * (std::abs(up.value) + up.bound) + std::abs(silu) * up.bound +
                     16 * kF32 * std::abs(value)};
}

struct Rows {
  const char* name;
  RowQuantization kind;
  bool int8;  ///< rows are codes for kernels of integers
};

void PrintTo(const Rows& rows, std::ostream* out) { *out << rows.name; }

class UpInputsTest : public testing::TestWithParam<Rows> {
 protected:
  // The quantizer whose scales are number `index` behind the matrices.
  RowQuantizer quantizer(const Layer& layer, int64_t index, int64_t columns) const {
    return {.format = {.kind = GetParam().kind},
            .scale_offset = layer.scales + index * int64_t{sizeof(float)},
            .whole_columns = columns};
  }
  FusedExpertsCall call_of(const Layer& layer) const {
    FusedExpertsCall call;
    call.experts = layer.experts;
    call.activations = ActivationDType::kScheme;
    call.x_quantizer = quantizer(layer, 0, kHidden);
    call.up_quantizer = quantizer(layer, 1, kHidden);
    if (GetParam().int8) call.intermediate_quantizer = quantizer(layer, 2, kIntermediate);
    return call;
  }
  FusedExpertsKernels kernels_of(const Layer& layer) const {
    const KernelRequest request{.weights = DType::kF32,
                                .activations = ActivationDType::kScheme,
                                .isas = host_isas(),
                                .int8_rows = GetParam().int8};
    return select_fused_experts(request, layer.experts.w13.format, layer.experts.w2.format);
  }

  SeededRng rng;
};

// Against sums in double over rows that quantize_row made. Kernels of integers need codes between
// the GEMMs, too: there a token one of whose values may fall to either side of a rounding boundary
// is left out.
TEST_P(UpInputsTest, EachMeetsItsOwnHalfOfW13) {
  const RowQuantization kind = GetParam().kind;
  SCOPED_TRACE(rng.seed());
  const Layer layer = random_layer(rng);
  constexpr int64_t kTokens = 60;
  const std::vector<float> x = rng.normals(kTokens * kHidden);
  const std::vector<int32_t> offsets = {0, 3, 57, kTokens};  // few rows, many rows
  const std::vector<int32_t> order = {0, 1, 2};
  std::vector<int32_t> rows(kTokens);
  std::iota(rows.begin(), rows.end(), 0);
  const FusedExpertsKernels kernels = kernels_of(layer);
  FusedExpertsScratch scratch(
      fused_experts_scratch(layer.experts, kernels, kTokens, /*up_rows=*/true));
  std::vector<float> out(x.size());
  FusedExpertsCall call = call_of(layer);
  call.rows = {.token = rows.data(), .choice = rows.data(), .offsets = offsets, .order = order};
  call.x = x;
  call.out = out;
  fused_experts(call, kernels, {.count = 2, .executor = {}}, scratch);

  int compared = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    const size_t e = t < offsets[1] ? 0 : t < offsets[2] ? 1 : 2;
    const std::vector<float> token(x.begin() + t * kHidden, x.begin() + (t + 1) * kHidden);
    const std::vector<float> gate_x = quantized(kind, token, kGateScale[e]);
    const std::vector<float> up_x = quantized(kind, token, kUpScale[e]);
    std::vector<float> middle;
    std::vector<float> below;
    std::vector<float> above;
    std::vector<double> bounds;
    for (int64_t j = 0; j < kIntermediate; ++j) {
      const Sum value = activated(dot(layer.logical[e].w13, j, gate_x),
                                  dot(layer.logical[e].w13, kIntermediate + j, up_x));
      middle.push_back(static_cast<float>(value.value));
      bounds.push_back(value.bound + kF32 * std::abs(value.value));
      below.push_back(static_cast<float>(value.value - value.bound));
      above.push_back(static_cast<float>(value.value + value.bound));
    }
    if (GetParam().int8) {
      middle = quantized(kind, below, kMidScale);
      if (middle != quantized(kind, above, kMidScale)) continue;
      bounds.clear();
    }
    ++compared;
    for (int64_t i = 0; i < kHidden; ++i) {
      const Sum expected = dot(layer.logical[e].w2, i, middle, bounds);
      EXPECT_NEAR(static_cast<double>(out[static_cast<size_t>(t * kHidden + i)]), expected.value,
                  expected.bound)
          << "token " << t << " of expert " << e;
    }
  }
  EXPECT_GT(compared, kTokens / 4);
}

TEST_P(UpInputsTest, NothingIsComputedWithoutRows) {
  const Layer layer = random_layer(rng);
  const FusedExpertsKernels kernels = kernels_of(layer);
  FusedExpertsScratch scratch(fused_experts_scratch(layer.experts, kernels, 0, /*up_rows=*/true));
  const std::vector<int32_t> offsets = {0, 0, 0, 0};
  const std::vector<int32_t> order = {0, 1, 2};
  FusedExpertsCall call = call_of(layer);
  call.rows = {.offsets = offsets, .order = order};
  fused_experts(call, kernels, {.count = 1, .executor = {}}, scratch);
}

TEST_P(UpInputsTest, AScratchWithoutRoomAndAnotherQuantizationAreRefused) {
  const Layer layer = random_layer(rng);
  const FusedExpertsKernels kernels = kernels_of(layer);
  const std::vector<float> x(kHidden, 1.0F);
  std::vector<float> out(kHidden);
  const std::vector<int32_t> offsets = {0, 1, 1, 1};
  const std::vector<int32_t> order = {0, 1, 2};
  FusedExpertsCall call = call_of(layer);
  call.rows = {.offsets = offsets, .order = order};
  call.x = x;
  call.out = out;
  FusedExpertsScratch scratch(fused_experts_scratch(layer.experts, kernels, 1));
  const auto run = [&] { fused_experts(call, kernels, {.count = 1, .executor = {}}, scratch); };
  expect_error(run, ErrorCode::kInvalidArgument, {"bytes of scratch"});
  scratch = FusedExpertsScratch(fused_experts_scratch(layer.experts, kernels, 1, true));
  run();
  call.up_quantizer.scale_offset = -1;
  expect_error(run, ErrorCode::kInvalidArgument, {"up_quantizer"});
  call.up_quantizer = {.format = {.kind = RowQuantization::kFp8Token}};
  expect_error(run, ErrorCode::kInvalidArgument, {"up_quantizer"});
}

INSTANTIATE_TEST_SUITE_P(Rows, UpInputsTest,
                         testing::Values(Rows{"int8_codes", RowQuantization::kInt8Static, true},
                                         Rows{"int8", RowQuantization::kInt8Static, false},
                                         Rows{"fp8", RowQuantization::kFp8Static, false}),
                         [](const auto& tested) { return tested.param.name; });

}  // namespace
}  // namespace gantry::test
