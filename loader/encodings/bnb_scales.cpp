#include "loader/encodings/bnb_scales.h"

#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "kernels/base/check.h"
#include "loader/config_reader.h"
#include "loader/encodings/scale_grid.h"
#include "loader/strict_json.h"

namespace gantry {
namespace {

constexpr std::string_view kStatePrefix = "weight.quant_state.bitsandbytes__";
constexpr int64_t kMaxStateBytes = 4096;  // real ones have about 200
constexpr int64_t kMaxBlock = int64_t{1} << 20;

struct QuantState {
  int64_t block = 0;
  int64_t nested_block = 0;  // 0: not nested
  float nested_offset = 0.0F;
};

// A quant_state as it stands in its tensor.
struct StateText {
  const EncodedTensor* tensor;
  std::string type;
  nlohmann::json object;
};

std::optional<StateText> read_state_text(const EncodedMatrix& matrix) {
  const EncodedTensor* tensor = nullptr;
  std::string type;
  for (const char* name : {"nf4", "fp4"}) {
    const EncodedTensor* found = matrix.find(std::string(kStatePrefix) + name);
    if (found == nullptr) continue;
    GANTRY_CHECK(tensor == nullptr, ErrorCode::kFormat, "{} and {}: a matrix has one quant_state",
                 tensor == nullptr ? "" : tensor->name, found->name);
    tensor = found;
    type = name;
  }
  if (tensor == nullptr) return std::nullopt;
  GANTRY_CHECK(tensor->dtype == DType::kU8 && tensor->shape.size() == 1 &&
                   tensor->num_elements() <= kMaxStateBytes,
               ErrorCode::kFormat, "{}: expected up to {} u8, found {} {}", tensor->name,
               kMaxStateBytes, shape_text(tensor->shape), to_string(tensor->dtype));
  const std::string text(reinterpret_cast<const char*>(tensor->data),
                         static_cast<size_t>(tensor->num_elements()));
  nlohmann::json object = parse_strict_json(text, tensor->name);
  GANTRY_CHECK(object.is_object(), ErrorCode::kFormat, "{}: expected a JSON object", tensor->name);
  return StateText{tensor, type, std::move(object)};
}

std::optional<QuantState> read_state(const EncodedMatrix& matrix) {
  const std::optional<StateText> text = read_state_text(matrix);
  if (!text) return std::nullopt;
  const auto& [tensor, type, object] = *text;
  const ConfigReader reader(object, tensor->name);

  const std::string declared = reader.string_or({"quant_type"}, type);
  GANTRY_CHECK(declared == type, ErrorCode::kFormat, "{}: expected quant_type {}, found '{}'",
               tensor->name, type, declared);
  const auto shape = reader.find_list("shape");
  const std::vector<std::string> expected = {std::to_string(matrix.size.out),
                                             std::to_string(matrix.size.in)};
  GANTRY_CHECK(shape == expected, ErrorCode::kFormat, "{}: expected the shape [{}], found {}",
               tensor->name, fmt::join(expected, ", "),
               shape ? fmt::format("[{}]", fmt::join(*shape, ", ")) : std::string("none"));
  QuantState state;
  state.block = reader.require_int({"blocksize"}, 1, kMaxBlock);
  if (reader.has("nested_blocksize")) {
    state.nested_block = reader.require_int({"nested_blocksize"}, 1, kMaxBlock);
    GANTRY_CHECK(reader.has("nested_offset"), ErrorCode::kFormat,
                 "{}: nested_blocksize without nested_offset", tensor->name);
    state.nested_offset = static_cast<float>(reader.number_or({"nested_offset"}, 0.0));
  }
  return state;
}

std::vector<float> read_nested(const EncodedMatrix& matrix, const QuantState& state,
                               int64_t blocks) {
  const EncodedTensor& codes = matrix.require("weight.absmax");
  const EncodedTensor& map = matrix.require("weight.nested_quant_map");
  const EncodedTensor& nested = matrix.require("weight.nested_absmax");
  require_tensor(codes, DType::kU8, {blocks});
  require_tensor(map, DType::kF32, {256});
  require_tensor(nested, DType::kF32, {(blocks + state.nested_block - 1) / state.nested_block});
  const std::vector<float> book = scale_values(map);
  const std::vector<float> outer = scale_values(nested);
  std::vector<float> values(static_cast<size_t>(blocks));
  for (size_t b = 0; b < values.size(); ++b) {
    const auto code = static_cast<size_t>(codes.data[b]);
    values[b] = book[code] * outer[b / static_cast<size_t>(state.nested_block)];
    values[b] += state.nested_offset;
  }
  return values;
}

}  // namespace

MatrixSize declared_bnb_size(const EncodedMatrix& matrix) {
  const std::optional<StateText> text = read_state_text(matrix);
  GANTRY_CHECK(text.has_value(), ErrorCode::kFormat,
               "{}: its size is not known: expected a weight.quant_state",
               matrix.require("weight").name);
  const std::string& name = text->tensor->name;
  const auto shape = ConfigReader(text->object, name).find_list("shape");
  MatrixSize size;
  for (const auto& [at, value] : {std::pair{size_t{0}, &size.out}, {size_t{1}, &size.in}}) {
    const std::string digits = shape && shape->size() == 2 ? (*shape)[at] : "";
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), *value);
    GANTRY_CHECK(error == std::errc() && end == digits.data() + digits.size() && *value > 0 &&
                     *value <= int64_t{1} << 31,
                 ErrorCode::kFormat, "{}: expected a shape [out, in], found [{}]", name,
                 shape ? fmt::format("{}", fmt::join(*shape, ", ")) : "");
  }
  return size;
}

BnbScales read_bnb_scales(const EncodedMatrix& matrix) {
  const EncodedTensor& absmax = matrix.require("weight.absmax");
  const std::optional<QuantState> state = read_state(matrix);
  const int64_t count = matrix.size.out * matrix.size.in;
  const int64_t found = absmax.num_elements();
  const bool nested = absmax.dtype == DType::kU8;
  GANTRY_CHECK(found > 0 && count % found == 0, ErrorCode::kFormat,
               "{}: expected scales of equal blocks of {} values, found {} {}", absmax.name, count,
               shape_text(absmax.shape), to_string(absmax.dtype));
  BnbScales scales;
  scales.block = state ? state->block : count / found;
  GANTRY_CHECK(scales.block * found == count, ErrorCode::kFormat,
               "{}: expected the scales of {} values in blocks of {}, found {}", absmax.name, count,
               scales.block, shape_text(absmax.shape));
  GANTRY_CHECK(matrix.size.in % scales.block == 0, ErrorCode::kUnsupported,
               "{}: blocks of {} cross rows of {}", absmax.name, scales.block, matrix.size.in);
  GANTRY_CHECK(
      nested == (state && state->nested_block > 0) &&
          nested == (matrix.find("weight.nested_absmax") != nullptr) &&
          nested == (matrix.find("weight.nested_quant_map") != nullptr),
      ErrorCode::kFormat,
      "{}: {}: expected nested_absmax, nested_quant_map and a quant_state with nested_blocksize "
      "beside u8 scales, and none of them beside f32 ones",
      absmax.name, to_string(absmax.dtype));
  if (nested) {
    scales.values = read_nested(matrix, *state, found);
  } else {
    require_tensor(absmax, DType::kF32, {found});
    scales.values = scale_values(absmax);
  }
  return scales;
}

}  // namespace gantry
