#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Element types of tensors, in memory and in safetensors files.
enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kU64,
  kI64,
  kF16,
  kBF16,
  kF32,
  kF64,
  kF8E4M3,  ///< e4m3fn: no infinities, 0x7F and 0xFF are NaN.
  kF8E5M2,
  kF8E8M0,  ///< A power of two: 2^(byte - 127), 255 is NaN.
};

/// Bytes of one element.
constexpr int64_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kBool:
    case DType::kU8:
    case DType::kI8:
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kF8E8M0:
      return 1;
    case DType::kU16:
    case DType::kI16:
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU32:
    case DType::kI32:
    case DType::kF32:
      return 4;
    case DType::kU64:
    case DType::kI64:
    case DType::kF64:
      return 8;
  }
  return 0;
}

/// The name as users write it: "bf16", "f32", "i64", "f8_e4m3" ...
std::string_view to_string(DType dtype) noexcept;

/// True for the types that an unquantized weight may have: f32, f16, bf16.
constexpr bool is_plain_float(DType dtype) noexcept {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

}  // namespace gantry
