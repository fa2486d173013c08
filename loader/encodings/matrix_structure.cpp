#include "loader/encodings/matrix_structure.h"

#include <cstring>

#include "kernels/base/check.h"
#include "loader/encodings/scale_grid.h"

namespace gantry {

std::optional<std::string> missing_companion(const QuantScheme& scheme,
                                             const EncodedMatrix& matrix) {
  const auto has = [&](std::string_view suffix) { return matrix.find(suffix) != nullptr; };
  const auto first_missing =
      [&](std::initializer_list<std::string_view> needed) -> std::optional<std::string> {
    for (const std::string_view suffix : needed) {
      if (!has(suffix)) return std::string(suffix);
    }
    return std::nullopt;
  };
  if (has("qweight")) {
    if (scheme.int_packing == IntPacking::kGptq) return first_missing({"qzeros", "scales"});
    return scheme.symmetric ? first_missing({"scales"}) : first_missing({"qzeros", "scales"});
  }
  const EncodedTensor* weight = matrix.find("weight");
  if (weight != nullptr && !weight->block_type.empty()) return std::nullopt;  // GGUF
  if (has("blocks")) return first_missing({"scales"});
  const EncodedTensor* packed = matrix.find("weight_packed");
  const EncodedTensor* codes = packed != nullptr ? packed : weight;
  if (codes == nullptr) return "weight";
  if (scheme.method == "bitsandbytes") {
    return codes->dtype == DType::kI8 ? first_missing({"SCB"})
                                      : first_missing({"weight.absmax", "weight.quant_map"});
  }
  if (!has("weight_scale") && !has("weight_scale_inv")) return "weight_scale";
  const bool integer = codes->dtype == DType::kI32 || codes->dtype == DType::kI8;
  if (integer && !scheme.symmetric) return first_missing({"weight_zero_point"});
  const EncodedTensor* scale = matrix.find("weight_scale");
  const bool two_levels =
      codes->dtype == DType::kU8 && scale != nullptr && scale->dtype == DType::kF8E4M3;
  if (!two_levels) return std::nullopt;
  return first_missing({packed != nullptr ? "weight_global_scale" : "weight_scale_2"});
}

void check_declared_shape(const EncodedMatrix& matrix) {
  const EncodedTensor* shape = matrix.find("weight_shape");
  if (shape == nullptr) return;
  const bool wide = shape->dtype == DType::kI64;
  require_tensor(*shape, wide ? DType::kI64 : DType::kI32, {2});
  const auto number = [&](int index) {
    int64_t value = 0;
    int32_t narrow = 0;
    if (wide) {
      std::memcpy(&value, shape->data + index * 8, 8);
    } else {
      std::memcpy(&narrow, shape->data + index * 4, 4);
      value = narrow;
    }
    return value;
  };
  GANTRY_CHECK(number(0) == matrix.size.out && number(1) == matrix.size.in, ErrorCode::kFormat,
               "{}: expected [{}, {}] like the config says, found [{}, {}]", shape->name,
               matrix.size.out, matrix.size.in, number(0), number(1));
}

}  // namespace gantry
