#include "kernels/base/float_convert.h"

namespace gantry {

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
