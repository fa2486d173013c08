#pragma once

#include <optional>
#include <string_view>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// The name of a dtype in safetensors headers: "BF16", "F8_E4M3" ...
std::string_view safetensors_name(DType dtype) noexcept;

/// The dtype of that name, or nothing for names that we do not read (F4, F6_E2M3, C64 ...).
std::optional<DType> parse_safetensors_dtype(std::string_view name) noexcept;

}  // namespace gantry
