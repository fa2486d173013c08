#include "tools/linear_modules.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/encoded_job.h"
#include "loader/encodings/bnb_scales.h"
#include "loader/encodings/encoded_matrix.h"
#include "loader/encodings/matrix_structure.h"
#include "loader/encodings/scale_grid.h"
#include "loader/expected_tensors.h"

namespace gantry::cli {
namespace {

// What stands beside codes, or holds them, in the checkpoints that are read.
constexpr std::array<std::string_view, 23> kSuffixes = {"weight_packed",
                                                        "weight_scale",
                                                        "weight_scale_inv",
                                                        "weight_scale_2",
                                                        "weight_shape",
                                                        "weight_global_scale",
                                                        "weight_zero_point",
                                                        "weight_g_idx",
                                                        "qweight",
                                                        "qzeros",
                                                        "scales",
                                                        "g_idx",
                                                        "input_scale",
                                                        "input_global_scale",
                                                        "pre_quant_scale",
                                                        "weight.absmax",
                                                        "weight.quant_map",
                                                        "weight.nested_absmax",
                                                        "weight.nested_quant_map",
                                                        "weight.quant_state.bitsandbytes__nf4",
                                                        "weight.quant_state.bitsandbytes__fp4",
                                                        "SCB",
                                                        "weight_format"};

// Of tensors in blocks of GGUF, each of which says how it is written.
const QuantScheme& gguf_scheme() {
  static const QuantScheme scheme = [] {
    QuantScheme blocks;
    blocks.method = "gguf";
    return blocks;
  }();
  return scheme;
}

// "a.b.weight" -> {"a.b", "weight"}; "a.b.weight.absmax" -> {"a.b", "weight.absmax"}
std::pair<std::string_view, std::string_view> split(std::string_view name) {
  for (const std::string_view suffix : kSuffixes) {
    if (suffix.find('.') == std::string_view::npos || !name.ends_with(suffix)) continue;
    const size_t dot = name.size() - suffix.size() - 1;
    if (dot < name.size() && name[dot] == '.') return {name.substr(0, dot), suffix};
  }
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return {name, {}};
  return {name.substr(0, dot), name.substr(dot + 1)};
}

EncodedMatrix read_tensors(const Checkpoint& checkpoint, const LinearModule& module,
                           std::vector<std::vector<std::byte>>& storage) {
  EncodedMatrix matrix;
  for (const auto& [suffix, tensor] : module.tensors) {
    const TensorInfo& info = tensor->info;
    std::vector<std::byte>& bytes = storage.emplace_back(static_cast<size_t>(info.num_bytes()));
    checkpoint.files()[static_cast<size_t>(tensor->file)].read(info.begin, bytes.data(),
                                                               info.num_bytes());
    matrix.tensors.emplace(
        suffix, EncodedTensor{info.name, info.dtype, info.shape, bytes.data(), info.block_type});
  }
  return matrix;
}

const TensorInfo& require(const LinearModule& module, const std::string& suffix) {
  const auto found = module.tensors.find(suffix);
  GANTRY_CHECK(found != module.tensors.end() && found->second->info.shape.size() == 2,
               ErrorCode::kFormat, "{}: expected a matrix {}", module.name, suffix);
  return found->second->info;
}

}  // namespace

int64_t LinearModule::bytes() const noexcept {
  int64_t sum = 0;
  for (const auto& [suffix, tensor] : tensors)
    sum += tensor->info.num_bytes();
  return sum;
}

bool is_embedding(std::string_view name) {
  return name.find("embd") != std::string_view::npos ||
         name.find("embed") != std::string_view::npos || name.ends_with("wte");
}

OtherTensors find_other_tensors(const Checkpoint& checkpoint, const MoeModelConfig& config,
                                const TensorMap& tensors) {
  std::map<std::string, LinearModule, std::less<>> modules;
  OtherTensors other;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    const ParsedName parsed = tensors.names().parse(name);
    // Experts that nothing reads (identity experts' matrices) are copied with the rest.
    const bool expert = parsed.name_class == NameClass::kMoe && is_expert_part(parsed.ref.part);
    const MoeLayerSpec* layer = config.find_layer(parsed.ref.layer);
    if (expert && layer != nullptr && parsed.ref.expert < layer->num_experts) continue;
    const auto [module, suffix] = split(name);
    const bool encoded =
        config.quant && std::find(kSuffixes.begin(), kSuffixes.end(), suffix) != kSuffixes.end();
    if (!encoded && suffix != "weight") {
      other.rest.push_back(&tensor);
      continue;
    }
    LinearModule& found = modules[std::string(module)];
    found.name = module;
    found.tensors.emplace(suffix, &tensor);
  }
  for (auto& [name, module] : modules) {
    const auto weight = module.tensors.find("weight");
    const bool plain = module.tensors.size() == 1 && weight != module.tensors.end() &&
                       is_plain_float(weight->second->info.dtype);
    if (!plain) {
      const bool says_itself =
          weight != module.tensors.end() && !weight->second->info.block_type.empty();
      module.scheme = says_itself    ? &gguf_scheme()
                      : config.quant ? config.quant->scheme_for(name)
                                     : nullptr;
      GANTRY_CHECK(module.scheme != nullptr, ErrorCode::kUnsupported,
                   "{}: it is quantized, and the config does not say how", name);
      other.linear.push_back(std::move(module));
    } else if (weight->second->info.shape.size() == 2 && !is_embedding(name)) {
      other.linear.push_back(std::move(module));
    } else {
      other.rest.push_back(weight->second);
    }
  }
  return other;
}

MatrixSize linear_size(const Checkpoint& checkpoint, const LinearModule& module) {
  if (const auto shape = module.tensors.find("weight_shape"); shape != module.tensors.end()) {
    LinearModule only{module.name, {*shape}, module.scheme};
    std::vector<std::vector<std::byte>> storage;
    const EncodedMatrix matrix = read_tensors(checkpoint, only, storage);
    const EncodedTensor& tensor = matrix.require("weight_shape");
    require_tensor(tensor, DType::kI64, {2});
    int64_t size[2];
    std::memcpy(size, tensor.data, sizeof(size));
    return {size[0], size[1]};
  }
  if (module.tensors.contains("weight.absmax")) {
    std::vector<std::vector<std::byte>> storage;
    return declared_bnb_size(read_tensors(checkpoint, module, storage));
  }
  const bool packs = module.tensors.contains("weight_packed");
  if (module.tensors.contains("weight") || packs) {
    const TensorInfo& info = require(module, packs ? "weight_packed" : "weight");
    if (!info.block_type.empty()) return {info.shape[0], info.shape[1]};  // in elements
    if (info.dtype == DType::kI32) {
      GANTRY_CHECK(module.scheme->bits > 0, ErrorCode::kFormat, "{}: words of {} bits", info.name,
                   module.scheme->bits);
      return {info.shape[0], info.shape[1] * 32 / module.scheme->bits};
    }
    if (info.dtype != DType::kU8) return {info.shape[0], info.shape[1]};
    // ModelOpt's INT4: pairs of rows share a byte.
    if (!packs && module.scheme->bits == 4) return {info.shape[0] * 2, info.shape[1]};
    return {info.shape[0], info.shape[1] * 2};
  }
  const TensorInfo& info = require(module, "qweight");
  if (module.scheme->int_packing == IntPacking::kAwq) return {info.shape[1] * 8, info.shape[0]};
  GANTRY_CHECK(module.scheme->bits > 0, ErrorCode::kFormat, "{}: words of {} bits", info.name,
               module.scheme->bits);
  return {info.shape[1], info.shape[0] * 32 / module.scheme->bits};
}

std::vector<float> read_linear(const Checkpoint& checkpoint, const LinearModule& module) {
  std::vector<std::vector<std::byte>> storage;
  storage.reserve(module.tensors.size());
  EncodedMatrix matrix = read_tensors(checkpoint, module, storage);
  if (module.scheme == nullptr) return scale_values(matrix.require("weight"));
  matrix.size = linear_size(checkpoint, module);
  if (const auto missing = missing_companion(*module.scheme, matrix))
    fail(ErrorCode::kFormat, "{}: expected a {}, found none", module.name, *missing);
  check_declared_shape(matrix);
  std::vector<float> decoded = decode_matrix(*module.scheme, matrix);
  fold_input_scale(matrix, decoded);
  return decoded;
}

}  // namespace gantry::cli
