#include "loader/expert_slot.h"

#include "kernels/base/buffer.h"
#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"

namespace gantry {
namespace {

constexpr int64_t kSectionAlignment = static_cast<int64_t>(kBufferAlignment);

int64_t align_up(int64_t bytes) {
  return (bytes + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

std::vector<float> widen(DType dtype, const std::byte* data, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  convert_to_f32(data, dtype, count, values.data());
  return values;
}

}  // namespace

SlotLayout SlotLayout::create(DType dtype, bool gated, bool bias, int64_t intermediate_size,
                              int64_t hidden_size) {
  constexpr int64_t kMaxSize = int64_t{1} << 24;  // keeps every product below far inside 64 bits
  GANTRY_CHECK(is_plain_float(dtype), ErrorCode::kInvalidArgument,
               "slot layout: expected f32, f16 or bf16, found {}", to_string(dtype));
  GANTRY_CHECK(intermediate_size >= 0 && intermediate_size <= kMaxSize && hidden_size > 0 &&
                   hidden_size <= kMaxSize,
               ErrorCode::kInvalidArgument, "slot layout: intermediate size {}, hidden size {}",
               intermediate_size, hidden_size);
  SlotLayout layout;
  layout.dtype = dtype;
  layout.gated = gated;
  layout.bias = bias;
  layout.intermediate_size = intermediate_size;
  layout.hidden_size = hidden_size;

  int64_t end = 0;
  const auto place = [&end](int64_t bytes) {
    const SlotSection section{end, bytes};
    end = align_up(end + bytes);
    return section;
  };
  const int64_t element = size_of(dtype);
  layout.w13 = place(layout.w13_rows() * hidden_size * element);
  layout.w2 = place(hidden_size * intermediate_size * element);
  layout.b13 = place(bias ? layout.w13_rows() * 4 : 0);
  layout.b2 = place(bias ? hidden_size * 4 : 0);
  layout.stride_bytes = end;
  return layout;
}

ExpertWeights SlotLayout::w13_weights(const std::byte* slots, int64_t num_slots) const {
  const auto* b = bias ? reinterpret_cast<const float*>(slots + b13.offset) : nullptr;
  return {.data = slots + w13.offset,
          .slot_stride_bytes = stride_bytes,
          .num_slots = num_slots,
          .n = w13_rows(),
          .k = hidden_size,
          .dtype = dtype,
          .layout = packed,
          .bias = b,
          .bias_stride_bytes = stride_bytes};
}

ExpertWeights SlotLayout::w2_weights(const std::byte* slots, int64_t num_slots,
                                     bool with_bias) const {
  const auto* b = bias && with_bias ? reinterpret_cast<const float*>(slots + b2.offset) : nullptr;
  return {.data = slots + w2.offset,
          .slot_stride_bytes = stride_bytes,
          .num_slots = num_slots,
          .n = hidden_size,
          .k = intermediate_size,
          .dtype = dtype,
          .layout = packed,
          .bias = b,
          .bias_stride_bytes = stride_bytes};
}

SlotTarget slot_target(const SlotLayout& layout, Part part, TensorKind kind) {
  const int64_t j = layout.intermediate_size;
  const int64_t h = layout.hidden_size;
  const bool is_weight = kind == TensorKind::kWeight;
  const int64_t element = is_weight ? size_of(layout.dtype) : 4;
  const DType dtype = is_weight ? layout.dtype : DType::kF32;
  switch (part) {
    case Part::kW1:
      return {is_weight ? layout.w13.offset : layout.b13.offset, j, is_weight ? h : 1, dtype};
    case Part::kW3: {
      const SlotSection& section = is_weight ? layout.w13 : layout.b13;
      return {section.offset + j * (is_weight ? h : 1) * element, j, is_weight ? h : 1, dtype};
    }
    case Part::kW2:
      return {is_weight ? layout.w2.offset : layout.b2.offset, h, is_weight ? j : 1, dtype};
    default:
      fail(ErrorCode::kInvalidArgument, "{} has no place in an expert slot", to_string(part));
  }
}

std::vector<float> read_w13(const SlotLayout& layout, const std::byte* slot) {
  return widen(layout.dtype, slot + layout.w13.offset, layout.w13_rows() * layout.hidden_size);
}

std::vector<float> read_w2(const SlotLayout& layout, const std::byte* slot) {
  return widen(layout.dtype, slot + layout.w2.offset,
               layout.hidden_size * layout.intermediate_size);
}

}  // namespace gantry
