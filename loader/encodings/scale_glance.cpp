#include "loader/encodings/scale_glance.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string_view>
#include <vector>

#include "kernels/quant/element_formats.h"
#include "loader/encodings/scale_grid.h"

namespace gantry {
namespace {

// What a matrix consists of beside its scales; scales of activations have their own checks
// (loader/input_scales.h). Anything that is in neither list is looked at closely.
constexpr std::array<std::string_view, 11> kOthers = {
    "weight",      "weight_packed", "qweight",           "blocks",      "qzeros",
    "g_idx",       "weight_g_idx",  "weight_zero_point", "input_scale", "input_global_scale",
    "weight_shape"};
constexpr std::array<std::string_view, 5> kScales = {"scales", "weight_scale", "weight_scale_inv",
                                                     "weight_scale_2", "weight_global_scale"};

template <size_t kCount>
bool contains(const std::array<std::string_view, kCount>& list, std::string_view suffix) {
  return std::find(list.begin(), list.end(), suffix) != list.end();
}

// Values of codes 0 .. num_codes - 1 ascend, up to those that are not finite; negative ones follow.
template <typename Value>
bool codes_are_safe(const EncodedTensor& tensor, int num_codes, const Value& value) {
  const float limit = smallest_safe_scale(tensor.dtype);
  int first = 0;
  while (first + 1 < num_codes && value(static_cast<uint8_t>(first)) < limit)
    ++first;
  int last = num_codes - 1;
  while (last > first && !std::isfinite(value(static_cast<uint8_t>(last))))
    --last;
  const auto* bytes = reinterpret_cast<const uint8_t*>(tensor.data);
  const int64_t count = tensor.num_elements();
  const auto low = static_cast<uint8_t>(first);
  const auto range = static_cast<uint8_t>(last - first);
  uint8_t outside = 0;
  for (int64_t i = 0; i < count; ++i)
    outside |= static_cast<uint8_t>(static_cast<uint8_t>(bytes[i] - low) > range);
  return outside == 0;
}

bool floats_are_safe(const EncodedTensor& tensor) {
  // The bits of positive numbers are ordered as the numbers are; those of negative ones, infinity
  // and NaN are above.
  const auto low = std::bit_cast<uint32_t>(smallest_safe_scale(tensor.dtype));
  constexpr uint32_t kInfinity = 0x7f800000u;
  uint32_t outside = 0;
  for (const float value : scale_values(tensor))
    outside |= static_cast<uint32_t>(std::bit_cast<uint32_t>(value) - low >= kInfinity - low);
  return outside == 0;
}

bool is_safe(const EncodedTensor& tensor) {
  switch (tensor.dtype) {
    case DType::kF8E4M3:
      return codes_are_safe(tensor, 128, e4m3_to_f32);
    case DType::kF8E5M2:
      return codes_are_safe(tensor, 128, e5m2_to_f32);
    case DType::kU8:
    case DType::kF8E8M0:
      return codes_are_safe(tensor, 256, e8m0_to_f32);
    default:
      return is_plain_float(tensor.dtype) && floats_are_safe(tensor);
  }
}

}  // namespace

float well_rounded_from(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF8E4M3:
      return 0x1p-6F;  // its smallest normal number: 8 steps of 2^-9
    case DType::kF8E5M2:
      return 0x1p-14F;  // its smallest normal number
    case DType::kF16:
      return 0x1p-21F;  // 8 steps of 2^-24
    case DType::kBF16:
      return 0x1p-130F;  // 8 steps of 2^-133
    case DType::kF32:
      return 0x1p-146F;  // 8 steps of 2^-149
    default:
      return 0.0F;
  }
}

float smallest_safe_scale(DType dtype) noexcept {
  return std::max(well_rounded_from(dtype), 0x1p-126F);
}

bool scales_are_safe(const EncodedMatrix& matrix) {
  return std::all_of(matrix.tensors.begin(), matrix.tensors.end(), [](const auto& entry) {
    const auto& [suffix, tensor] = entry;
    if (contains(kScales, suffix)) return is_safe(tensor);
    return contains(kOthers, suffix) && tensor.block_type.empty();
  });
}

}  // namespace gantry
