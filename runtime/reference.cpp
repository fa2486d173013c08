#include "runtime/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/safetensors.h"
#include "loader/tensor_geometry.h"

namespace gantry {

std::optional<int> layer_of_block(const std::string& block, std::string_view container) {
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

std::vector<int32_t> read_token_ids(const SafetensorsFile& file) {
  const TensorInfo* info = file.find("input_ids");
  if (info == nullptr || info->dtype != DType::kI64) return {};
  std::vector<int64_t> wide(static_cast<size_t>(info->num_elements()));
  file.read(info->begin, wide.data(), info->num_bytes());
  std::vector<int32_t> ids;
  ids.reserve(wide.size());
  for (const int64_t id : wide)
    ids.push_back(static_cast<int32_t>(id));
  return ids;
}

namespace {

std::vector<float> read_floats(const SafetensorsFile& file, const TensorInfo& info) {
  GANTRY_CHECK(is_plain_float(info.dtype), ErrorCode::kFormat, "{}: {}: expected floats, found {}",
               file.path().string(), info.name, describe(info));
  std::vector<std::byte> raw(static_cast<size_t>(info.num_bytes()));
  file.read(info.begin, raw.data(), info.num_bytes());
  std::vector<float> values(static_cast<size_t>(info.num_elements()));
  convert_to_f32(raw.data(), info.dtype, info.num_elements(), values.data());
  return values;
}

// Two modules of one layer (Granite's MoE block and the shared MLP beside it) that saw the same
// input: the layer is their sum.
void merge(ReferenceBlock& block, const ReferenceBlock& other, const std::string& file) {
  GANTRY_CHECK(block.input == other.input, ErrorCode::kFormat,
               "{}: {} and {} are of one layer but have different inputs", file, block.name,
               other.name);
  GANTRY_CHECK(block.output_act_quant.size() == other.output_act_quant.size(), ErrorCode::kFormat,
               "{}: only one of {} and {} has an output_act_quant", file, block.name, other.name);
  for (size_t i = 0; i < block.output.size(); ++i)
    block.output[i] += other.output[i];
  for (size_t i = 0; i < block.output_act_quant.size(); ++i)
    block.output_act_quant[i] += other.output_act_quant[i];
  block.name += " + " + other.name;
  block.has_shared = true;
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
    const std::optional<int> layer = layer_of_block(block, config.family->container);
    if (output == nullptr || !layer) continue;
    const MoeLayerSpec* spec = config.find_layer(*layer);
    if (spec == nullptr) continue;
    GANTRY_CHECK(input.shape.size() == 2 && input.shape[1] == spec->hidden_size &&
                     output->shape == input.shape,
                 ErrorCode::kFormat,
                 "{}: {}: expected input and output of [T, {}], found {} and {}", path.string(),
                 block, spec->hidden_size, describe(input), describe(*output));
    ReferenceBlock found{block, read_floats(file, input),           read_floats(file, *output), {},
                         {},    !config.family->shared_beside_block};
    if (const TensorInfo* quantized = file.find(block + ".output_act_quant")) {
      GANTRY_CHECK(quantized->shape == input.shape, ErrorCode::kFormat,
                   "{}: {}: expected {}, found {}", path.string(), quantized->name, describe(input),
                   describe(*quantized));
      found.output_act_quant = read_floats(file, *quantized);
    }
    // A block whose experts have an input of their own: the block's input is the router's.
    if (const TensorInfo* experts = file.find(block + ".experts.input")) {
      found.router_input = std::exchange(found.input, read_floats(file, *experts));
    }
    const auto [place, inserted] = reference.blocks.emplace(*layer, found);
    if (!inserted) merge(place->second, found, path.string());
  }
  GANTRY_CHECK(!reference.blocks.empty(), ErrorCode::kInvalidArgument,
               "{}: no '<block>.input' and '<block>.output' of a MoE layer of this model",
               path.string());
  reference.token_ids = read_token_ids(file);
  return reference;
}

bool Reference::has_act_quant() const noexcept {
  return std::any_of(blocks.begin(), blocks.end(),
                     [](const auto& entry) { return !entry.second.output_act_quant.empty(); });
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

}  // namespace gantry
