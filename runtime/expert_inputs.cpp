#include "runtime/expert_inputs.h"

#include <algorithm>

namespace gantry {
namespace {

PackedLayout layout_of(const MoeLayerSpec& spec) {
  return {DType::kF32, /*gated=*/false, spec.intermediate_size, spec.expert_hidden_size};
}

FusedExpertsKernels select_kernels() {
  return select_fused_experts({.weights = DType::kF32,
                               .activations = ActivationDType::kF32,
                               .isas = host_isas(),
                               .avx512_dot = Avx512Dot::kFma});
}

}  // namespace

ExpertInputs::ExpertInputs(const MatrixReader& reader, const MoeLayerSpec& spec, int expert)
    : spec_(spec) {
  const auto pack = [&](Part part) {
    Projection projection{layout_of(spec), {}, reader.read_bias(spec.layer, expert, part)};
    projection.panels = ByteBuffer(static_cast<size_t>(projection.layout.bytes()));
    pack_matrix(projection.layout, reader.read(spec.layer, expert, part).data(),
                projection.panels.data());
    return projection;
  };
  w1_ = pack(Part::kW1);
  if (spec.gated()) w3_ = pack(Part::kW3);
}

int64_t ExpertInputs::bytes(const MoeLayerSpec& spec) noexcept {
  return (spec.gated() ? 2 : 1) * (layout_of(spec).bytes() + 4 * spec.intermediate_size);
}

ExpertInputs::Scratch::Scratch(const MoeLayerSpec& spec, int64_t max_rows)
    : kernels(select_kernels()), linear(linear_scratch(layout_of(spec), kernels, max_rows)) {
  gate.resize(static_cast<size_t>(max_rows * spec.intermediate_size));
  if (spec.gated()) up.resize(gate.size());
}

int64_t ExpertInputs::scratch_bytes(const MoeLayerSpec& spec, int64_t max_rows) noexcept {
  return linear_scratch(layout_of(spec), select_kernels(), max_rows).rows_bytes +
         (spec.gated() ? 2 : 1) * 4 * max_rows * spec.intermediate_size;
}

std::span<const float> ExpertInputs::run(std::span<const float> x, int64_t num_rows,
                                         const Threads& threads, Scratch& scratch) const {
  const int64_t n = spec_.intermediate_size;
  const auto values = static_cast<size_t>(num_rows * n);
  const auto multiply = [&](const Projection& projection, std::vector<float>& y) {
    linear(x, projection.layout, projection.panels.data(),
           projection.bias.empty() ? nullptr : projection.bias.data(), std::span(y).first(values),
           scratch.kernels, threads, scratch.linear);
  };
  multiply(w1_, scratch.gate);
  if (spec_.gated()) multiply(w3_, scratch.up);
  constexpr int64_t kTaskRows = 64;
  parallel_for(threads, (num_rows + kTaskRows - 1) / kTaskRows, [&](int64_t task) {
    const int64_t row = task * kTaskRows;
    float* gate = scratch.gate.data() + row * n;
    apply_activation(spec_.activation, std::min(kTaskRows, num_rows - row), n, gate, n,
                     spec_.gated() ? scratch.up.data() + row * n : nullptr, n, gate, n);
  });
  return std::span<const float>(scratch.gate).first(values);
}

}  // namespace gantry
