#include "loader/expert_slot.h"

#include <algorithm>

#include "kernels/base/buffer.h"
#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr int64_t kSectionAlignment = static_cast<int64_t>(kBufferAlignment);

int64_t align_up(int64_t bytes) {
  return (bytes + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

// The order of a slot's neurons if it holds all of them in another one than the file's, else null.
const int32_t* own_neurons(const SlotLayout& layout, const std::byte* slot) {
  if (!layout.transforms.mid_order) return nullptr;
  const auto* order = reinterpret_cast<const int32_t*>(slot + layout.mid_order.offset);
  const bool all = std::all_of(order, order + layout.intermediate_size,
                               [&](int32_t neuron) { return neuron < layout.intermediate_size; });
  return all ? order : nullptr;
}

// Columns of a matrix times the f32 values of a section.
void multiply_columns(const SlotSection& section, const std::byte* slot,
                      std::vector<float>& matrix) {
  const auto* factors = reinterpret_cast<const float*>(slot + section.offset);
  const size_t columns = static_cast<size_t>(section.bytes) / sizeof(float);
  for (size_t i = 0; i < matrix.size(); ++i)
    matrix[i] *= factors[i % columns];
}

}  // namespace

SlotLayout SlotLayout::create(DType dtype, bool gated, bool bias, int64_t intermediate_size,
                              int64_t hidden_size, bool static_inputs) {
  SlotLayout layout;
  layout.dtype = dtype;
  layout.gated = gated;
  layout.bias = bias;
  layout.static_inputs = static_inputs;
  layout.intermediate_size = intermediate_size;
  layout.hidden_size = hidden_size;
  layout.place_sections({}, {});
  return layout;
}

SlotLayout SlotLayout::create(const WeightFormat& w13, const WeightFormat& w2, bool gated,
                              bool bias, int64_t intermediate_size, int64_t hidden_size,
                              bool static_inputs, const InputTransforms& transforms) {
  SlotLayout layout;
  layout.dtype = DType::kF32;
  layout.transforms = transforms;
  layout.gated = gated;
  layout.bias = bias;
  layout.static_inputs = static_inputs;
  layout.intermediate_size = intermediate_size;
  layout.hidden_size = hidden_size;
  layout.place_sections(w13, w2);
  return layout;
}

void SlotLayout::place_sections(const WeightFormat& w13_format, const WeightFormat& w2_format) {
  constexpr int64_t kMaxSize = int64_t{1} << 24;  // keeps every product below far inside 64 bits
  GANTRY_CHECK(is_plain_float(dtype), ErrorCode::kInvalidArgument,
               "slot layout: expected f32, f16 or bf16, found {}", to_string(dtype));
  GANTRY_CHECK(intermediate_size >= 0 && intermediate_size <= kMaxSize && hidden_size > 0 &&
                   hidden_size <= kMaxSize,
               ErrorCode::kInvalidArgument, "slot layout: intermediate size {}, hidden size {}",
               intermediate_size, hidden_size);
  int64_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const SlotSection section{end, bytes};
    end = align_up(end + bytes);
    return section;
  };
  w13_panels = {dtype, gated, w13_rows(), hidden_size, w13_format};
  w2_panels = {dtype, false, hidden_size, intermediate_size, w2_format};
  w13 = place(w13_panels.bytes());
  w2 = place(w2_panels.bytes());
  b13 = place(bias ? w13_rows() * 4 : 0);
  b2 = place(bias ? hidden_size * 4 : 0);
  input_scales = place(static_inputs ? (gated ? 3 : 2) * int64_t{sizeof(float)} : 0);
  x_order = place(transforms.order ? hidden_size * int64_t{sizeof(int32_t)} : 0);
  x_factors = place(transforms.factors ? hidden_size * int64_t{sizeof(float)} : 0);
  mid_factors = place(transforms.mid_factors ? intermediate_size * int64_t{sizeof(float)} : 0);
  mid_order = place(transforms.mid_order ? intermediate_size * int64_t{sizeof(int32_t)} : 0);
  stride_bytes = end;
}

int64_t SlotLayout::input_scale_offset(Part part) const {
  GANTRY_CHECK(
      static_inputs && (part == Part::kW1 || part == Part::kW2 || (part == Part::kW3 && gated)),
      ErrorCode::kInvalidArgument, "the slot holds no input scale of {}", to_string(part));
  const int64_t index = part == Part::kW1 ? 0 : part == Part::kW2 ? 1 : 2;
  return input_scales.offset + index * int64_t{sizeof(float)};
}

PackedExperts SlotLayout::experts(const std::byte* slots, int64_t num_slots) const noexcept {
  return {.slots = slots,
          .slot_stride_bytes = stride_bytes,
          .num_slots = num_slots,
          .w13 = w13_panels,
          .w2 = w2_panels,
          .w13_offset = w13.offset,
          .w2_offset = w2.offset,
          .b13_offset = bias ? b13.offset : -1,
          .b2_offset = bias ? b2.offset : -1,
          .x_order_offset = transforms.order ? x_order.offset : -1,
          .x_factors_offset = transforms.factors ? x_factors.offset : -1,
          .mid_factors_offset = transforms.mid_factors ? mid_factors.offset : -1};
}

SlotTarget slot_target(const SlotLayout& layout, Part part, TensorKind kind) {
  const int64_t j = layout.intermediate_size;
  const int64_t h = layout.hidden_size;
  const bool is_w2 = part == Part::kW2;
  GANTRY_CHECK(is_w2 || part == Part::kW1 || part == Part::kW3, ErrorCode::kInvalidArgument,
               "{} has no place in an expert slot", to_string(part));
  const int64_t first_row = part == Part::kW3 ? j : 0;
  if (kind == TensorKind::kBias) {
    return {is_w2 ? layout.b2.offset : layout.b13.offset,
            first_row,
            is_w2 ? h : j,
            1,
            DType::kF32,
            std::nullopt};
  }
  return {is_w2 ? layout.w2.offset : layout.w13.offset,
          first_row,
          is_w2 ? h : j,
          is_w2 ? j : h,
          layout.dtype,
          is_w2 ? layout.w2_panels : layout.w13_panels};
}

std::vector<float> read_w13(const SlotLayout& layout, const std::byte* slot) {
  std::vector<float> matrix = unpack_matrix(layout.w13_panels, slot + layout.w13.offset);
  if (layout.transforms.factors) multiply_columns(layout.x_factors, slot, matrix);
  const int32_t* columns = nullptr;
  if (layout.transforms.order) {
    columns = reinterpret_cast<const int32_t*>(slot + layout.x_order.offset);
  }
  const int32_t* neurons = own_neurons(layout, slot);
  if (columns == nullptr && neurons == nullptr) return matrix;
  const int64_t j = layout.intermediate_size;
  const int64_t h = layout.hidden_size;
  std::vector<float> logical(matrix.size());
  for (int64_t row = 0; row < layout.w13_rows(); ++row) {
    const int64_t to = neurons == nullptr ? row : row / j * j + neurons[row % j];
    for (int64_t k = 0; k < h; ++k) {
      const int64_t column = columns == nullptr ? k : columns[k];
      logical[static_cast<size_t>(to * h + column)] = matrix[static_cast<size_t>(row * h + k)];
    }
  }
  return logical;
}

std::vector<float> read_w2(const SlotLayout& layout, const std::byte* slot) {
  std::vector<float> matrix = unpack_matrix(layout.w2_panels, slot + layout.w2.offset);
  if (layout.transforms.mid_factors) multiply_columns(layout.mid_factors, slot, matrix);
  const int32_t* neurons = own_neurons(layout, slot);
  if (neurons == nullptr) return matrix;
  const auto j = static_cast<size_t>(layout.intermediate_size);
  std::vector<float> logical(matrix.size());
  for (size_t i = 0; i < matrix.size(); ++i)
    logical[i / j * j + static_cast<size_t>(neurons[i % j])] = matrix[i];
  return logical;
}

}  // namespace gantry
