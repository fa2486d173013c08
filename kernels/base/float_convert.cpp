#include "kernels/base/float_convert.h"

#include <algorithm>

namespace gantry {
namespace {

// The first element with all bits of `mask`.
template <typename Element>
int64_t find_all_ones(const void* data, int64_t count, Element mask) noexcept {
  const auto* bits = static_cast<const Element*>(data);
  constexpr int64_t kStep = 4096;  // a branch-free pass over a step, then a search where it hit
  for (int64_t begin = 0; begin < count; begin += kStep) {
    const int64_t end = std::min(count, begin + kStep);
    Element hit = 0;
    for (int64_t i = begin; i < end; ++i)
      hit |= static_cast<Element>((bits[i] & mask) == mask);
    for (int64_t i = begin; hit != 0 && i < end; ++i) {
      if ((bits[i] & mask) == mask) return i;
    }
  }
  return -1;
}

}  // namespace

int64_t find_non_finite(const void* data, DType dtype, int64_t count) noexcept {
  switch (dtype) {
    case DType::kBF16:
      return find_all_ones<uint16_t>(data, count, 0x7f80);
    case DType::kF16:
      return find_all_ones<uint16_t>(data, count, 0x7c00);
    case DType::kF32:
      return find_all_ones<uint32_t>(data, count, 0x7f800000u);
    case DType::kF8E4M3:  // no infinities, and one NaN of either sign
      return find_all_ones<uint8_t>(data, count, 0x7f);
    case DType::kF8E5M2:
      return find_all_ones<uint8_t>(data, count, 0x7c);
    case DType::kF8E8M0:
      return find_all_ones<uint8_t>(data, count, 0xff);
    default:
      return -1;
  }
}

void convert_to_f32(const void* source, DType dtype, int64_t count, float* destination) noexcept {
  if (dtype == DType::kF32) {
    if (count > 0) std::memcpy(destination, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    destination[i] = load_as_f32(source, dtype, i);
}

void convert_from_f32(const float* source, int64_t count, DType dtype, void* destination) noexcept {
  if (dtype == DType::kF32) {
    if (count > 0) std::memcpy(destination, source, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  auto* bytes = static_cast<unsigned char*>(destination);
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t half = dtype == DType::kBF16 ? f32_to_bf16(source[i]) : f32_to_f16(source[i]);
    std::memcpy(bytes + i * 2, &half, 2);
  }
}

}  // namespace gantry
