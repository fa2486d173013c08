#pragma once

#include <utility>
#include <vector>

#include "kernels/base/export.h"
#include "loader/family_spec.h"
#include "loader/moe_config.h"

namespace gantry GANTRY_API {

/// The tensors of a layer that are not per expert and must be there: router, biases, shared
/// experts. Follows from the config alone.
std::vector<std::pair<Part, TensorKind>> required_singles(const MoeLayerSpec& layer);

/// True for the parts of shared experts.
bool is_shared_part(Part part) noexcept;

/// kSharedW1 for kW1, and so on.
Part shared_part(Part part) noexcept;
/// True for kW1, kW3, kW2 and kW13.
bool is_expert_part(Part part) noexcept;
/// The parts of a layer that a tensor of `part` provides: w13 gives w1 and w3.
std::vector<Part> provided_parts(Part part);

/// The family's first spelling of a part: an index into FamilySpec::tensors. Of expert parts the
/// first with this stacking.
/// @throws Error kUnsupported if the family has no such spelling
int expert_pattern(const FamilySpec& family, Part part, Stacking stacking);

/// Every tensor that a checkpoint of this family has for a layer, in one spelling: what `synth` and
/// the export tools write.
/// @param stacking how experts are stored; the family's first spelling with it is taken
/// @throws Error kUnsupported if the family has no such spelling
std::vector<TensorRef> expected_tensors(const MoeLayerSpec& layer, const FamilySpec& family,
                                        Stacking stacking);

/// How the family's own exporters store experts: the stacking of its first expert pattern.
Stacking usual_stacking(const FamilySpec& family);

}  // namespace gantry
