#include "tools/reference_check.h"

#include <cmath>
#include <limits>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/safetensors.h"
#include "loader/tensor_geometry.h"

namespace gantry::cli {
namespace {

// The number behind the first "layers" or "blocks" segment of a path.
std::optional<int> layer_of(const std::string& block, std::string_view container) {
  const std::string stem = std::string(container) + ".";
  for (size_t at = block.find(stem); at != std::string::npos; at = block.find(stem, at + 1)) {
    if (at != 0 && block[at - 1] != '.') continue;
    const size_t begin = at + stem.size();
    const size_t end = block.find('.', begin);
    if (const auto index = parse_index(std::string_view(block).substr(begin, end - begin))) {
      return index;
    }
  }
  return std::nullopt;
}

std::vector<float> read_floats(const SafetensorsFile& file, const TensorInfo& info) {
  GANTRY_CHECK(is_plain_float(info.dtype), ErrorCode::kFormat, "{}: {}: expected floats, found {}",
               file.path().string(), info.name, describe(info));
  std::vector<std::byte> raw(static_cast<size_t>(info.num_bytes()));
  file.read(info.begin, raw.data(), info.num_bytes());
  std::vector<float> values(static_cast<size_t>(info.num_elements()));
  convert_to_f32(raw.data(), info.dtype, info.num_elements(), values.data());
  return values;
}

std::vector<int32_t> read_token_ids(const SafetensorsFile& file) {
  const TensorInfo* info = file.find("input_ids");
  if (info == nullptr || info->dtype != DType::kI64) return {};
  std::vector<int64_t> wide(static_cast<size_t>(info->num_elements()));
  file.read(info->begin, wide.data(), info->num_bytes());
  return {wide.begin(), wide.end()};
}

}  // namespace

Reference read_reference(const std::filesystem::path& path, const MoeModelConfig& config) {
  const SafetensorsFile file(path);
  Reference reference;
  for (const TensorInfo& input : file.header().tensors) {
    constexpr std::string_view kSuffix = ".input";
    if (!input.name.ends_with(kSuffix)) continue;
    const std::string block = input.name.substr(0, input.name.size() - kSuffix.size());
    const TensorInfo* output = file.find(block + ".output");
    const std::optional<int> layer = layer_of(block, config.family->container);
    if (output == nullptr || !layer) continue;
    const MoeLayerSpec* spec = config.find_layer(*layer);
    if (spec == nullptr) continue;
    GANTRY_CHECK(input.shape.size() == 2 && input.shape[1] == spec->hidden_size &&
                     output->shape == input.shape,
                 ErrorCode::kFormat, "{}: {}: expected input and output of [T, {}], found {} and {}",
                 path.string(), block, spec->hidden_size, describe(input), describe(*output));
    const auto [place, inserted] = reference.blocks.emplace(
        *layer, ReferenceBlock{block, read_floats(file, input), read_floats(file, *output)});
    GANTRY_CHECK(inserted, ErrorCode::kFormat, "{}: {} and {} are both layer {}", path.string(),
                 place->second.name, block, *layer);
  }
  GANTRY_CHECK(!reference.blocks.empty(), ErrorCode::kInvalidArgument,
               "{}: no '<block>.input' and '<block>.output' of a MoE layer of this model",
               path.string());
  reference.token_ids = read_token_ids(file);
  return reference;
}

double relative_error(const std::vector<float>& y, const std::vector<float>& reference) {
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double d = static_cast<double>(y[i]) - reference[i];
    difference += d * d;
    norm += static_cast<double>(reference[i]) * reference[i];
  }
  if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
  if (norm == 0.0) return difference == 0.0 ? 0.0 : std::numeric_limits<double>::infinity();
  return std::sqrt(difference / norm);
}

}  // namespace gantry::cli
