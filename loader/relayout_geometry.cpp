#include "loader/relayout_geometry.h"

#include <algorithm>
#include <array>

#include "kernels/base/check.h"
#include "loader/expected_tensors.h"

namespace gantry {
namespace {

// Tensors whose first axis follows the matrix' outputs, row by row or in blocks of rows. The others
// (GPTQ's and AWQ's packed along the outputs, permutations, flat block scales of bitsandbytes ...)
// have no border that a fused tensor could be cut at, or no fused spelling at all.
constexpr std::array<std::string_view, 7> kRowFirst = {
    "weight", "weight_packed", "weight_scale", "weight_scale_inv", "blocks", "scales", "bias"};

// gpt-oss: blocks and scales are [out, in] although the plain parameter is [in, out].
bool ignores_orientation(std::string_view suffix) {
  return suffix == "blocks" || suffix == "scales" || suffix == "bias";
}

bool rows_are_out(const TensorPattern& pattern, std::string_view suffix) {
  return pattern.orientation == Orientation::kOutIn || ignores_orientation(suffix);
}

int64_t product(const std::vector<int64_t>& dims, size_t first) {
  int64_t result = 1;
  for (size_t d = first; d < dims.size(); ++d)
    result *= dims[d];
  return result;
}

int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

bool is_scale(std::string_view suffix) {
  return suffix == "weight_scale" || suffix == "weight_scale_inv";
}

}  // namespace

std::vector<std::pair<const std::string*, const CheckpointTensor*>> in_file_order(
    const Checkpoint& checkpoint) {
  std::vector<std::pair<const std::string*, const CheckpointTensor*>> order;
  for (const auto& [name, tensor] : checkpoint.tensors())
    order.emplace_back(&name, &tensor);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->file, a.second->info.begin) <
           std::pair(b.second->file, b.second->info.begin);
  });
  return order;
}

std::optional<TensorRef> expert_tensor_ref(const std::string& name, const MoeModelConfig& config,
                                           const TensorMap& map) {
  const ParsedName parsed = map.names().parse(name);
  if (parsed.name_class != NameClass::kMoe || !is_expert_part(parsed.ref.part)) return {};
  if (config.find_layer(parsed.ref.layer) == nullptr) return {};  // multi-token prediction
  TensorRef ref = parsed.ref;
  // Where one name has two orientations, the map has found out which it is.
  const int expert = std::max(0, ref.expert);
  const LayerTensors& layer = map.layer(ref.layer);
  if (expert < static_cast<int>(layer.experts.size()) && ref.kind != TensorKind::kEncoded) {
    const TensorSource* source = layer.expert_source(expert, provided_parts(ref.part)[0], ref.kind);
    if (source != nullptr && source->name == name) ref = source->ref;
  }
  GANTRY_CHECK(!ref.base_layer, ErrorCode::kUnsupported,
               "{}: names of an adapter's base layer have no other spelling", name);
  return ref;
}

void add_run(RelayoutPlan& plan, size_t target, int64_t target_offset,
             const CheckpointTensor& source, int64_t source_offset, int64_t bytes) {
  if (bytes == 0) return;
  FileView from;
  from.size = {1, bytes};
  from.out_stride = bytes;
  from.in_stride = 1;
  from.slab_rows = 1;
  from.slab_cols = bytes;
  FileView to = from;
  from.offset = source_offset;
  to.offset = to.slab_offset = target_offset;
  plan.slabs.push_back({.target = target,
                        .offset_bytes = target_offset,
                        .element_bytes = 1,
                        .rows = 1,
                        .cols = bytes,
                        .rows_are_out = true,
                        .parts = {{.source = &source, .from = from, .to = to}}});
}

void require_joinable(std::string_view name, std::string_view suffix, DType dtype,
                      const EncodedShape& shape, const TensorPattern& pattern,
                      const MoeLayerSpec& layer, const QuantScheme* scheme) {
  GANTRY_CHECK(std::find(kRowFirst.begin(), kRowFirst.end(), suffix) != kRowFirst.end(),
               ErrorCode::kUnsupported,
               "{}: where {} is cut between experts, gate and up is not defined", name, suffix);
  GANTRY_CHECK(pattern.stacking != Stacking::kStacked2d, ErrorCode::kUnsupported,
               "{}: quantized experts are not stored in {}", name, pattern.name);
  const bool elementwise = is_scale(suffix) || dtype == DType::kF8E4M3 || dtype == DType::kF8E5M2 ||
                           dtype == DType::kI8 || is_plain_float(dtype);
  GANTRY_CHECK(
      rows_are_out(pattern, suffix) || (elementwise && shape.dims.size() == 2) || shape.scalar,
      ErrorCode::kUnsupported, "{}: packed codes cannot be stored [in, out] like {}", name,
      pattern.name);
  if (pattern.part != Part::kW13 || shape.scalar) return;
  const int64_t out = layer.intermediate_size;
  const bool in_blocks = scheme != nullptr && scheme->grid == ScaleGrid::kBlock && is_scale(suffix);
  GANTRY_CHECK(!in_blocks || out % scheme->block_rows == 0, ErrorCode::kUnsupported,
               "{}: blocks of {} rows reach across gate and up of {} rows", name,
               scheme->block_rows, out);
  GANTRY_CHECK(
      pattern.gate_up != GateUp::kInterleaved || shape.rows == out, ErrorCode::kUnsupported,
      "{}: {} rows for {} outputs cannot be interleaved like gate and up", name, shape.rows, out);
}

EncodedShape encoded_shape(std::string_view name, const TensorInfo& info, const TensorRef& ref,
                           const TensorPattern& pattern, const MoeLayerSpec& layer, Part part,
                           const QuantScheme* scheme) {
  const std::string_view suffix =
      ref.kind == TensorKind::kEncoded ? std::string_view(ref.suffix) : to_string(ref.kind);
  EncodedShape shape;
  shape.dims = info.shape;
  if (is_stacked(pattern.stacking)) {
    GANTRY_CHECK(pattern.stacking == Stacking::kStacked3d && !info.shape.empty() &&
                     info.shape[0] == layer.num_experts,
                 ErrorCode::kFormat, "{}: expected [{}, ...], found {}", name, layer.num_experts,
                 shape_text(info.shape));
    shape.dims.erase(shape.dims.begin());
  }
  shape.scalar = product(shape.dims, 0) == 1;
  if (shape.scalar) return shape;

  const bool in_blocks = scheme != nullptr && scheme->grid == ScaleGrid::kBlock && is_scale(suffix);
  if (!rows_are_out(pattern, suffix)) {
    GANTRY_CHECK(shape.dims.size() == 2, ErrorCode::kUnsupported,
                 "{}: {} stored [in, out] has no defined border between gate and up", name,
                 shape_text(info.shape));
    std::swap(shape.dims[0], shape.dims[1]);
  }
  if (pattern.part == Part::kW13) {
    GANTRY_CHECK(shape.dims[0] > 0 && shape.dims[0] % 2 == 0, ErrorCode::kUnsupported,
                 "{}: {} rows cannot be cut into those of gate and up", name, shape.dims[0]);
    shape.dims[0] /= 2;
  } else if (in_blocks && shape.dims.size() == 1) {
    // Transformers drops an axis of one block; fused tensors need it.
    const MatrixSize size = part_size(part, layer);
    const int64_t rows = blocks_of(size.out, scheme->block_rows);
    const int64_t cols = blocks_of(size.in, scheme->block_cols);
    if (rows * cols == shape.dims[0]) shape.dims = {rows, cols};
  }
  shape.rows = shape.dims[0];
  shape.cols = product(shape.dims, 1);
  if (pattern.part == Part::kW13) {
    require_joinable(name, suffix, info.dtype, shape, pattern, layer, scheme);
  }
  return shape;
}

FileView encoded_view(const EncodedShape& shape, const TensorPattern& pattern,
                      std::string_view suffix, Part part, int expert) {
  FileView view;
  view.size = {shape.rows, shape.cols};
  // A scalar of a fused tensor is one for both of gate and up.
  const bool both = pattern.part == Part::kW13 && !shape.scalar;
  const int64_t whole_out = shape.rows * (both ? 2 : 1);
  view.rows_are_out = rows_are_out(pattern, suffix);
  view.slab_rows = view.rows_are_out ? whole_out : shape.cols;
  view.slab_cols = view.rows_are_out ? shape.cols : whole_out;
  view.out_stride = view.rows_are_out ? shape.cols : 1;
  view.in_stride = view.rows_are_out ? 1 : whole_out;
  view.slab_offset = is_stacked(pattern.stacking) ? expert * view.slab_rows * view.slab_cols : 0;
  view.offset = view.slab_offset;
  if (!both) return view;
  const bool is_up = part == Part::kW3;
  if (pattern.gate_up == GateUp::kInterleaved) {
    if (is_up) view.offset += view.out_stride;
    view.out_stride *= 2;
  } else if (is_up) {
    view.offset += shape.rows * view.out_stride;
  }
  return view;
}

std::vector<int64_t> encoded_dims(const EncodedShape& shape, const TensorPattern& pattern,
                                  std::string_view suffix, int64_t num_experts) {
  std::vector<int64_t> dims = shape.dims;
  if (!shape.scalar) {
    if (pattern.part == Part::kW13) dims[0] *= 2;
    if (!rows_are_out(pattern, suffix)) std::swap(dims[0], dims[1]);
  }
  if (is_stacked(pattern.stacking)) dims.insert(dims.begin(), num_experts);
  return dims;
}

}  // namespace gantry
