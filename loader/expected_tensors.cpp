#include "loader/expected_tensors.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {

int expert_pattern(const FamilySpec& family, Part part, Stacking stacking) {
  for (size_t p = 0; p < family.tensors.size(); ++p) {
    const TensorPattern& pattern = family.tensors[p];
    const std::vector<Part> parts = provided_parts(pattern.part);
    if (std::find(parts.begin(), parts.end(), part) == parts.end()) continue;
    if (is_expert_part(part) && pattern.stacking != stacking) continue;
    return static_cast<int>(p);
  }
  fail(ErrorCode::kUnsupported, "family {} has no spelling of {} with this stacking", family.name,
       to_string(part));
}

bool is_expert_part(Part part) noexcept {
  return part == Part::kW1 || part == Part::kW3 || part == Part::kW2 || part == Part::kW13;
}

bool is_shared_part(Part part) noexcept {
  return part == Part::kSharedW1 || part == Part::kSharedW3 || part == Part::kSharedW2 ||
         part == Part::kSharedW13;
}

Part shared_part(Part part) noexcept {
  return part == Part::kW1   ? Part::kSharedW1
         : part == Part::kW3 ? Part::kSharedW3
                             : Part::kSharedW2;
}

std::vector<Part> provided_parts(Part part) {
  if (part == Part::kW13) return {Part::kW1, Part::kW3};
  if (part == Part::kSharedW13) return {Part::kSharedW1, Part::kSharedW3};
  return {part};
}

std::vector<std::pair<Part, TensorKind>> required_singles(const MoeLayerSpec& layer) {
  std::vector<std::pair<Part, TensorKind>> list;
  const auto add = [&](bool wanted, Part part, TensorKind kind = TensorKind::kWeight) {
    if (wanted) list.emplace_back(part, kind);
  };
  add(true, Part::kRouter);
  add(layer.router_bias, Part::kRouter, TensorKind::kBias);
  add(layer.correction_bias, Part::kCorrectionBias);
  add(layer.per_expert_scale, Part::kPerExpertScale);
  add(layer.router_input_norm, Part::kRouterScale);
  add(layer.hash_table, Part::kHashTable);
  const bool shared = layer.shared.intermediate_size > 0;
  add(shared, Part::kSharedW1);
  add(shared && is_gated(layer.shared.activation.kind), Part::kSharedW3);
  add(shared, Part::kSharedW2);
  add(shared && layer.shared.gated_output, Part::kSharedGate);
  add(layer.has_latent(), Part::kLatentIn);
  add(layer.has_latent(), Part::kLatentOut);
  add(layer.output_norm, Part::kOutputNorm);
  return list;
}

std::vector<TensorRef> expected_tensors(const MoeLayerSpec& layer, const FamilySpec& family,
                                        Stacking stacking) {
  std::vector<TensorRef> refs;
  const auto add = [&](int expert, Part part, TensorKind kind) {
    TensorRef ref;
    ref.layer = layer.layer;
    ref.expert = expert;
    ref.pattern = expert_pattern(family, part, stacking);
    ref.part = family.tensors[static_cast<size_t>(ref.pattern)].part;
    ref.kind = kind;
    // Gate and up of a fused tensor name the same tensor.
    if (std::find(refs.begin(), refs.end(), ref) == refs.end()) refs.push_back(ref);
  };
  const int num_names = stacking == Stacking::kPerExpert ? layer.num_experts : 1;
  for (int e = 0; e < num_names; ++e) {
    const int expert = stacking == Stacking::kPerExpert ? e : -1;
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !layer.gated()) continue;
      add(expert, part, TensorKind::kWeight);
      if (layer.expert_bias) add(expert, part, TensorKind::kBias);
    }
  }
  for (const auto& [part, kind] : required_singles(layer))
    add(-1, part, kind);
  return refs;
}

Stacking usual_stacking(const FamilySpec& family) {
  for (const TensorPattern& pattern : family.tensors) {
    if (is_expert_part(pattern.part)) return pattern.stacking;
  }
  return Stacking::kPerExpert;
}

}  // namespace gantry
