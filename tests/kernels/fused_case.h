#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/base/float_convert.h"
#include "kernels/fused_moe/fused_experts.h"
#include "tests/support/seeded_rng.h"

namespace gantry::test {

struct FusedShape {
  DType weights = DType::kF32;
  int64_t hidden = 40;
  int64_t intermediate = 33;
  int64_t num_experts = 6;
  int64_t num_tokens = 20;
  int64_t top_k = 2;
  ActivationSpec activation = {};
  bool has_bias = false;
};

/// How a call differs from the plain one.
struct FusedOptions {
  Threads threads = {.count = 1, .executor = {}};
  bool add_w2_bias = true;
  std::vector<float> add_to = {};  ///< empty: the call clears its output
};

/// A layer's experts and a batch. Weights stand by logical expert, as the values that the stored
/// bytes mean; the slots are in any order.
struct FusedCase {
  FusedShape shape;
  std::vector<float> w13;            // [E, S J, H]
  std::vector<float> b13;            // [E, S J] or empty
  std::vector<float> w2;             // [E, H, J]
  std::vector<float> b2;             // [E, H] or empty
  std::vector<float> x;              // [T, H]
  std::vector<int32_t> ids;          // [T, K]
  std::vector<float> weights;        // [T, K] or empty
  std::vector<float> input_weights;  // [T, K] or empty
  std::vector<int32_t> expert_to_slot;
  PackedExperts experts;
  ByteBuffer slots;

  [[nodiscard]] int64_t w13_rows() const {
    return shape.intermediate * (is_gated(shape.activation.kind) ? 2 : 1);
  }
  [[nodiscard]] std::byte* slot(int64_t s) { return slots.data() + s * experts.slot_stride_bytes; }

  /// Rounds the weights to their type and puts the experts into their slots.
  void store() {
    const bool gated = is_gated(shape.activation.kind);
    experts.w13 = {shape.weights, gated, w13_rows(), shape.hidden};
    experts.w2 = {shape.weights, false, shape.hidden, shape.intermediate};
    experts.num_slots = 1 + *std::max_element(expert_to_slot.begin(), expert_to_slot.end());
    experts.w2_offset = experts.w13.bytes();
    const int64_t biases = experts.w2_offset + experts.w2.bytes();
    const int64_t bias_bytes = 4 * (w13_rows() + shape.hidden);
    experts.b13_offset = shape.has_bias ? biases : -1;
    experts.b2_offset = shape.has_bias ? biases + 4 * w13_rows() : -1;
    experts.slot_stride_bytes = (biases + bias_bytes + 63) / 64 * 64;
    slots = ByteBuffer(static_cast<size_t>(experts.num_slots * experts.slot_stride_bytes));
    experts.slots = slots.data();
    for (int64_t e = 0; e < shape.num_experts; ++e) {
      if (expert_to_slot[static_cast<size_t>(e)] >= 0) store_expert(e);
    }
  }

  /// out [T, H]. The scratch has just the bytes that the call needs, all of them NaN.
  [[nodiscard]] std::vector<float> run(const FusedExpertsKernels& kernels,
                                       ActivationDType activations,
                                       const FusedOptions& options = {}) const {
    TokenPermutation permutation;
    permute_tokens(ids, shape.num_tokens, shape.top_k, expert_to_slot, experts.num_slots,
                   permutation);
    std::vector<int32_t> order;  // slots by logical expert
    for (const int32_t s : expert_to_slot) {
      if (s >= 0) order.push_back(s);
    }
    return run(kernels, activations, options,
               {.token = permutation.row_token.data(),
                .choice = permutation.row_choice.data(),
                .offsets = permutation.expert_offsets,
                .order = order});
  }

  [[nodiscard]] std::vector<float> run(const FusedExpertsKernels& kernels,
                                       ActivationDType activations, const FusedOptions& options,
                                       const ExpertRows& rows) const {
    FusedExpertsScratch scratch(fused_experts_scratch(experts, kernels, rows.offsets.back()));
    for (ByteBuffer* buffer : {&scratch.rows, &scratch.intermediate}) {
      if (buffer->size() > 0) std::memset(buffer->data(), 0xff, buffer->size());
    }
    std::vector<float> out = options.add_to;
    if (out.empty()) out.assign(x.size(), std::numeric_limits<float>::quiet_NaN());
    fused_experts({.experts = experts,
                   .activation = shape.activation,
                   .activations = activations,
                   .rows = rows,
                   .x = x,
                   .input_weights = input_weights,
                   .weights = weights,
                   .add_w2_bias = options.add_w2_bias,
                   .clear = options.add_to.empty(),
                   .out = out},
                  kernels, options.threads, scratch);
    return out;
  }

  /// The header's formula by the plainest loops in double, rounded to bf16 where it says so.
  [[nodiscard]] std::vector<double> reference(ActivationDType activations,
                                              const FusedOptions& options = {}) const {
    std::vector<double> out(options.add_to.begin(), options.add_to.end());
    out.resize(x.size(), 0.0);
    for (size_t choice = 0; choice < ids.size(); ++choice) {
      const int32_t e = ids[choice];
      if (e >= 0 && expert_to_slot[static_cast<size_t>(e)] >= 0)
        add_expert(choice, e, activations == ActivationDType::kBF16, options.add_w2_bias, out);
    }
    return out;
  }

 private:
  void store_expert(int64_t e) {
    std::byte* base = slot(expert_to_slot[static_cast<size_t>(e)]);
    float* gate_up = w13.data() + e * w13_rows() * shape.hidden;
    float* down = w2.data() + e * shape.hidden * shape.intermediate;
    pack_matrix(experts.w13, gate_up, base);
    pack_matrix(experts.w2, down, base + experts.w2_offset);
    std::ranges::copy(unpack_matrix(experts.w13, base), gate_up);
    std::ranges::copy(unpack_matrix(experts.w2, base + experts.w2_offset), down);
    if (!shape.has_bias) return;
    std::memcpy(base + experts.b13_offset, b13.data() + e * w13_rows(),
                static_cast<size_t>(w13_rows()) * 4);
    std::memcpy(base + experts.b2_offset, b2.data() + e * shape.hidden,
                static_cast<size_t>(shape.hidden) * 4);
  }

  [[nodiscard]] double activated(double a, double u) const {
    const ActivationSpec& s = shape.activation;
    const double limit = s.limit > 0.0F ? static_cast<double>(s.limit) : INFINITY;
    const double gate = std::fmin(a, limit);
    const double up = std::fmax(std::fmin(u, limit), -limit);
    switch (s.kind) {
      case Activation::kSilu:
        return gate / (1.0 + std::exp(-gate)) * up;
      case Activation::kSwigluOai:
        return gate / (1.0 + std::exp(-static_cast<double>(s.alpha) * gate)) *
               (up + static_cast<double>(s.beta));
      case Activation::kGelu:
        return a * std::erfc(-a / std::sqrt(2.0)) / 2.0 * u;
      case Activation::kSiluNoMul:
        return a / (1.0 + std::exp(-a));
      case Activation::kRelu2NoMul:
        return std::pow(std::fmax(a, 0.0), 2);
      default:
        return std::numeric_limits<double>::quiet_NaN();
    }
  }

  /// W[row] . input + bias of expert e, `rows` being the rows of one expert's W.
  static double dot(const std::vector<float>& w, const std::vector<float>& bias, int64_t e,
                    int64_t rows, int64_t row, const std::vector<double>& input) {
    const auto at = static_cast<size_t>(e * rows + row);
    double sum = bias.empty() ? 0.0 : static_cast<double>(bias[at]);
    for (size_t i = 0; i < input.size(); ++i)
      sum += static_cast<double>(w[at * input.size() + i]) * input[i];
    return sum;
  }

  void add_expert(size_t choice, int64_t e, bool round, bool add_bias,
                  std::vector<double>& out) const {
    const size_t token = choice / static_cast<size_t>(shape.top_k);
    const auto h = static_cast<size_t>(shape.hidden);
    std::vector<double> input;
    for (size_t i = token * h; i < (token + 1) * h; ++i) {
      const float scaled = input_weights.empty() ? x[i] : x[i] * input_weights[choice];
      input.push_back(static_cast<double>(round ? round_to_bf16(scaled) : scaled));
    }
    std::vector<double> middle;
    for (int64_t j = 0; j < shape.intermediate; ++j) {
      const double a = dot(w13, b13, e, w13_rows(), j, input);
      const bool gated = is_gated(shape.activation.kind);
      const double u = gated ? dot(w13, b13, e, w13_rows(), shape.intermediate + j, input) : 0.0;
      const double value = activated(a, u);
      middle.push_back(round ? static_cast<double>(round_to_bf16(static_cast<float>(value)))
                             : value);
    }
    const double weight = weights.empty() ? 1.0 : static_cast<double>(weights[choice]);
    const std::vector<float> bias = add_bias ? b2 : std::vector<float>{};
    for (size_t i = 0; i < h; ++i) {
      out[token * h + i] +=
          weight * dot(w2, bias, e, shape.hidden, static_cast<int64_t>(i), middle);
    }
  }
};

/// Random experts and tokens. About one choice in eight has no expert, and every expert is here, in
/// the slot of its id.
inline FusedCase random_fused(SeededRng& rng, const FusedShape& shape) {
  FusedCase c;
  c.shape = shape;
  const auto count = [](int64_t a, int64_t b) { return static_cast<size_t>(a * b); };
  const auto scale = [](int64_t k) { return 1.0F / std::sqrt(static_cast<float>(k)); };
  const int64_t e = shape.num_experts;
  c.w13 = rng.normals(count(e * c.w13_rows(), shape.hidden), scale(shape.hidden));
  c.w2 = rng.normals(count(e * shape.hidden, shape.intermediate), scale(shape.intermediate));
  if (shape.has_bias) {
    c.b13 = rng.normals(count(e, c.w13_rows()));
    c.b2 = rng.normals(count(e, shape.hidden));
  }
  c.x = rng.normals(count(shape.num_tokens, shape.hidden));
  c.weights = rng.normals(count(shape.num_tokens, shape.top_k));
  for (size_t i = 0; i < c.weights.size(); ++i) {
    const auto id = static_cast<int32_t>(rng.integer(0, e - 1));
    c.ids.push_back(rng.integer(0, 7) == 0 ? -1 : id);
  }
  c.expert_to_slot.resize(static_cast<size_t>(e));
  std::iota(c.expert_to_slot.begin(), c.expert_to_slot.end(), 0);
  c.store();
  return c;
}

}  // namespace gantry::test
