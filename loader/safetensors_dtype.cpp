#include "loader/safetensors_dtype.h"

namespace gantry {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
};

constexpr Row kRows[] = {
    {DType::kBool, "BOOL"},      {DType::kU8, "U8"},          {DType::kI8, "I8"},
    {DType::kU16, "U16"},        {DType::kI16, "I16"},        {DType::kU32, "U32"},
    {DType::kI32, "I32"},        {DType::kU64, "U64"},        {DType::kI64, "I64"},
    {DType::kF16, "F16"},        {DType::kBF16, "BF16"},      {DType::kF32, "F32"},
    {DType::kF64, "F64"},        {DType::kF8E4M3, "F8_E4M3"}, {DType::kF8E5M2, "F8_E5M2"},
    {DType::kF8E8M0, "F8_E8M0"},
};

}  // namespace

std::string_view safetensors_name(DType dtype) noexcept {
  for (const Row& row : kRows) {
    if (row.dtype == dtype) return row.name;
  }
  return "unknown";
}

std::optional<DType> parse_safetensors_dtype(std::string_view name) noexcept {
  for (const Row& row : kRows) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace gantry
