#include "runtime/activation_files.h"

#include <algorithm>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/tensor_geometry.h"
#include "runtime/reference.h"

namespace gantry {
namespace {

constexpr std::string_view kSuffix = ".input";
constexpr std::string_view kExpertsSuffix = ".experts.input";

int64_t rows_of(const TensorInfo& info, int64_t hidden, const SafetensorsFile& file) {
  const auto rank = info.shape.size();
  GANTRY_CHECK(
      (rank == 2 || rank == 3) && info.shape.back() == hidden && is_plain_float(info.dtype),
      ErrorCode::kFormat, "{}: {}: expected floats [T, {}], found {}", file.path().string(),
      info.name, hidden, describe(info));
  return info.num_elements() / hidden;
}

// Whether the block of "<block>.input" is named as the family's MoE block.
bool is_moe_block(std::string_view block, const FamilySpec& family) {
  return std::any_of(family.blocks.begin(), family.blocks.end(), [&](std::string_view name) {
    return block == name || block.ends_with(fmt::format(".{}", name));
  });
}

}  // namespace

ActivationFiles::ActivationFiles(std::span<const std::filesystem::path> files,
                                 const MoeModelConfig& config) {
  for (const std::filesystem::path& path : files) {
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    add_file(*files_.back(), config);
  }
  GANTRY_CHECK(!captures_.empty(), ErrorCode::kInvalidArgument,
               "no '<block>.input' of a MoE layer of this model in {} file(s){}", files.size(),
               files.empty() ? std::string() : ", " + files[0].string() + " first");
}

void ActivationFiles::add_file(const SafetensorsFile& file, const MoeModelConfig& config) {
  std::map<int, std::vector<const TensorInfo*>> candidates;
  for (const TensorInfo& info : file.header().tensors) {
    if (!info.name.ends_with(kSuffix) || info.name.ends_with(kExpertsSuffix)) continue;
    const std::optional<int> layer = layer_of_block(info.name, config.family->container);
    if (layer && config.find_layer(*layer) != nullptr) candidates[*layer].push_back(&info);
  }
  for (auto& [layer, found] : candidates) {
    const auto block = [](const TensorInfo& info) {
      return info.name.substr(0, info.name.size() - kSuffix.size());
    };
    if (found.size() > 1) {
      std::erase_if(found, [&](const TensorInfo* info) {
        return !is_moe_block(block(*info), *config.family);
      });
    }
    GANTRY_CHECK(found.size() == 1, ErrorCode::kFormat,
                 "{}: layer {}: {} tensors could be the input of its MoE block",
                 file.path().string(), layer, found.size());
    const MoeLayerSpec& spec = *config.find_layer(layer);
    const TensorInfo& input = *found.front();
    Capture capture{&file, &input, &input, rows_of(input, spec.hidden_size, file)};
    if (const TensorInfo* experts = file.find(block(input) + std::string(kExpertsSuffix))) {
      GANTRY_CHECK(rows_of(*experts, spec.hidden_size, file) == capture.num_tokens,
                   ErrorCode::kFormat, "{}: {}: expected {} tokens as {} has, found {}",
                   file.path().string(), experts->name, capture.num_tokens, input.name,
                   gantry::describe(*experts));
      capture.experts = experts;
    }
    captures_[layer].push_back(capture);
  }
}

int64_t ActivationFiles::num_tokens(int layer) const noexcept {
  const auto found = captures_.find(layer);
  if (found == captures_.end()) return 0;
  int64_t count = 0;
  for (const Capture& capture : found->second)
    count += capture.num_tokens;
  return count;
}

void ActivationFiles::read_rows(int layer, int64_t first, int64_t count,
                                const TensorInfo* Capture::*tensor, std::span<float> rows) const {
  const int64_t hidden = count > 0 ? static_cast<int64_t>(rows.size()) / count : 0;
  float* to = rows.data();
  std::vector<uint32_t> raw;
  for (const Capture& capture : captures_.at(layer)) {
    if (first >= capture.num_tokens) {
      first -= capture.num_tokens;
      continue;
    }
    const TensorInfo& info = *(capture.*tensor);
    const int64_t piece = std::min(count, capture.num_tokens - first);
    const int64_t row_bytes = hidden * size_of(info.dtype);
    raw.resize(static_cast<size_t>((piece * row_bytes + 3) / 4));
    capture.file->read(info.begin + first * row_bytes, raw.data(), piece * row_bytes);
    const int64_t bad = find_non_finite(raw.data(), info.dtype, piece * hidden);
    GANTRY_CHECK(bad < 0, ErrorCode::kFormat, "{}: {}: token {}, channel {} is not finite",
                 capture.file->path().string(), info.name,
                 first + bad / std::max<int64_t>(1, hidden), bad % std::max<int64_t>(1, hidden));
    convert_to_f32(raw.data(), info.dtype, piece * hidden, to);
    to += piece * hidden;
    count -= piece;
    first = 0;
    if (count == 0) return;
  }
  GANTRY_CHECK(count == 0, ErrorCode::kInvalidArgument, "layer {}: {} tokens too many", layer,
               count);
}

void ActivationFiles::read(int layer, int64_t first, int64_t count, std::span<float> rows) const {
  read_rows(layer, first, count, &Capture::experts, rows);
}

void ActivationFiles::read_router_input(int layer, int64_t first, int64_t count,
                                        std::span<float> rows) const {
  read_rows(layer, first, count, &Capture::router, rows);
}

std::vector<int32_t> ActivationFiles::token_ids(int layer) const {
  std::vector<int32_t> ids;
  const auto found = captures_.find(layer);
  if (found == captures_.end()) return ids;
  for (const Capture& capture : found->second) {
    const std::vector<int32_t> own = read_token_ids(*capture.file);
    if (static_cast<int64_t>(own.size()) != capture.num_tokens) return {};
    ids.insert(ids.end(), own.begin(), own.end());
  }
  return ids;
}

std::string ActivationFiles::describe(int layer) const {
  std::string text;
  for (const Capture& capture : captures_.at(layer)) {
    text +=
        fmt::format("{}{}:{}", text.empty() ? "" : "; ", capture.file->path().filename().string(),
                    gantry::describe(*capture.experts));
  }
  return text;
}

}  // namespace gantry
