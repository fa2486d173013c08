#include "loader/tensor_geometry.h"

#include "kernels/base/check.h"

namespace gantry {
namespace {

bool holds_gate_and_up(Part part) { return part == Part::kW13 || part == Part::kSharedW13; }

}  // namespace

MatrixSize part_size(Part part, const MoeLayerSpec& layer) {
  const int64_t h = layer.hidden_size;
  const int64_t expert_h = layer.expert_hidden_size;
  const int64_t i = layer.intermediate_size;
  const int64_t s = layer.shared.intermediate_size;
  switch (part) {
    case Part::kW1:
    case Part::kW3:
      return {i, expert_h};
    case Part::kW13:
      return {2 * i, expert_h};
    case Part::kW2:
      return {expert_h, i};
    case Part::kRouter:
      return {layer.routing.num_experts, h};
    case Part::kCorrectionBias:
      return {layer.routing.num_experts, 1};
    case Part::kPerExpertScale:
      return {layer.num_experts, 1};
    case Part::kRouterScale:
    case Part::kOutputNorm:
      return {h, 1};
    case Part::kHashTable:
      return {layer.vocab_size, layer.routing.top_k};
    case Part::kSharedW1:
    case Part::kSharedW3:
      return {s, h};
    case Part::kSharedW13:
      return {2 * s, h};
    case Part::kSharedW2:
      return {h, s};
    case Part::kSharedGate:
      return {1, h};
    case Part::kLatentIn:
      return {expert_h, h};
    case Part::kLatentOut:
      return {h, expert_h};
    case Part::kOther:
      break;
  }
  return {};
}

std::vector<std::vector<int64_t>> expected_shapes(const TensorPattern& pattern, TensorKind kind,
                                                  const MoeLayerSpec& layer) {
  const MatrixSize size = part_size(pattern.part, layer);
  const int64_t experts = layer.num_experts;
  if (kind == TensorKind::kBias) {
    if (pattern.stacking == Stacking::kStacked3d) return {{experts, size.out}};
    if (pattern.stacking == Stacking::kStacked2d) return {{experts * size.out}};
    return {{size.out}};
  }
  const bool is_vector =
      size.in == 1 && (pattern.naming == Naming::kExact || pattern.part == Part::kOutputNorm);
  if (is_vector) return {{size.out}, {1, size.out}};

  const bool out_in = pattern.orientation == Orientation::kOutIn;
  const int64_t rows = out_in ? size.out : size.in;
  const int64_t cols = out_in ? size.in : size.out;
  switch (pattern.stacking) {
    case Stacking::kStacked3d:
      // Transformers gives identity experts gate and up rows too; nothing reads them.
      if (pattern.part == Part::kW13 && layer.num_named_experts() != layer.num_experts) {
        return {{experts, rows, cols}, {layer.num_named_experts(), rows, cols}};
      }
      return {{experts, rows, cols}};
    case Stacking::kStacked2d:
      return {{experts * rows, cols}};
    case Stacking::kSingle:
    case Stacking::kPerExpert:
      break;
  }
  return {{rows, cols}};
}

FileView file_view(const TensorPattern& pattern, TensorKind kind, const MoeLayerSpec& layer,
                   Part part, int expert) {
  const bool out_in = pattern.orientation == Orientation::kOutIn;
  MatrixSize whole = part_size(pattern.part, layer);
  FileView view;
  view.size = part_size(part, layer);
  if (kind == TensorKind::kBias) {
    whole.in = 1;
    view.size.in = 1;
  }
  // A bias is one file row of `out` elements whatever the orientation of its weight.
  view.rows_are_out = out_in && kind == TensorKind::kWeight;
  view.slab_rows = view.rows_are_out ? whole.out : whole.in;
  view.slab_cols = view.rows_are_out ? whole.in : whole.out;
  view.out_stride = view.rows_are_out ? whole.in : 1;
  view.in_stride = view.rows_are_out ? 1 : whole.out;

  const bool stacked =
      pattern.stacking == Stacking::kStacked3d || pattern.stacking == Stacking::kStacked2d;
  view.slab_offset = stacked ? expert * whole.out * whole.in : 0;
  view.offset = view.slab_offset;
  if (holds_gate_and_up(pattern.part)) {
    const bool is_up = part == Part::kW3 || part == Part::kSharedW3;
    if (pattern.gate_up == GateUp::kInterleaved) {
      if (is_up) view.offset += view.out_stride;
      view.out_stride *= 2;
    } else if (is_up) {
      view.offset += view.size.out * view.out_stride;
    }
  }
  return view;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace gantry
