#include "loader/gguf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

using nlohmann::json;
using Metadata = std::map<std::string, GgufValue, std::less<>>;

constexpr std::string_view kModelTypePrefix = "gguf.";

// The keys below "{arch}." that say something about MoE layers.
constexpr std::array<std::string_view, 15> kKeys = {
    "embedding_length",
    "feed_forward_length",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "expert_weights_norm",
    "expert_weights_scale",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "swiglu_clamp_exp",
    "swiglu_clamp_shexp",
    "moe_latent_size",
};

// JSON has no NaN or infinity, and a null would count as a missing key.
bool is_representable(const GgufValue& value) {
  if (const auto* number = std::get_if<double>(&value)) return std::isfinite(*number);
  if (const auto* list = std::get_if<std::vector<double>>(&value)) {
    return std::all_of(list->begin(), list->end(),
                       [](double number) { return std::isfinite(number); });
  }
  return !std::holds_alternative<std::monostate>(value);
}

json to_json(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> json {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>) {
          return nullptr;
        } else {
          return held;
        }
      },
      value);
}

class Translation {
 public:
  Translation(const Metadata& metadata, const std::string& file)
      : metadata_(metadata), file_(file) {
    const auto found = metadata.find("general.architecture");
    const std::string* name =
        found == metadata.end() ? nullptr : std::get_if<std::string>(&found->second);
    GANTRY_CHECK(name != nullptr, ErrorCode::kFormat,
                 "{}: expected the model's name in general.architecture, found none", file);
    architecture_ = *name;
    const std::string model_type = std::string(kModelTypePrefix) + architecture_;
    const auto known = gguf_model_types();
    GANTRY_CHECK(std::find(known.begin(), known.end(), model_type) != known.end(),
                 ErrorCode::kUnsupported,
                 "{}: general.architecture {} is not a MoE architecture that Gantry knows; known: "
                 "{}",
                 file, quote_name(architecture_), known_architectures());
    config_["model_type"] = model_type;
  }

  json config() {
    for (const std::string_view key : kKeys) {
      const GgufValue* value = find(key);
      if (value == nullptr) continue;
      GANTRY_CHECK(
          is_representable(*value), ErrorCode::kFormat,
          "{}: {}.{}: expected a number of ordinary size, found NaN, infinity or something "
          "too large",
          file_, architecture_, key);
      config_[std::string(key)] = to_json(*value);
    }
    // Layers of multi-token prediction are counted as blocks.
    const int64_t blocks = integer("block_count", std::nullopt);
    const int64_t mtp = integer("nextn_predict_layers", 0);
    GANTRY_CHECK(mtp >= 0 && mtp < blocks, ErrorCode::kFormat,
                 "{}: {}.nextn_predict_layers: expected less than the {} blocks, found {}", file_,
                 architecture_, blocks, mtp);
    config_["num_hidden_layers"] = blocks - mtp;
    config_["num_nextn_predict_layers"] = mtp;
    config_["first_k_dense_replace"] = integer("leading_dense_block_count", 0);
    config_["interleave_moe_layer_step"] = integer("interleave_moe_layer_step", 1);
    return std::move(config_);
  }

 private:
  [[nodiscard]] const GgufValue* find(std::string_view key) const {
    const auto found = metadata_.find(fmt::format("{}.{}", architecture_, key));
    return found == metadata_.end() ? nullptr : &found->second;
  }

  [[nodiscard]] int64_t integer(std::string_view key, std::optional<int64_t> fallback) const {
    const GgufValue* value = find(key);
    if (value == nullptr && fallback) return *fallback;
    const auto* number = value == nullptr ? nullptr : std::get_if<int64_t>(value);
    GANTRY_CHECK(number != nullptr, ErrorCode::kFormat, "{}: {}.{}: expected an integer, found {}",
                 file_, architecture_, key, value == nullptr ? "nothing" : "something else");
    return *number;
  }

  static std::string known_architectures() {
    std::string text;
    for (const std::string_view type : gguf_model_types()) {
      if (!text.empty()) text += ", ";
      text += type.substr(kModelTypePrefix.size());
    }
    return text;
  }

  const Metadata& metadata_;
  const std::string& file_;
  std::string architecture_;
  json config_ = json::object();
};

bool is_expert_tensor(const TensorInfo& info) {
  return info.name.find("_exps.") != std::string::npos;
}

}  // namespace

std::string gguf_config_text(const Metadata& metadata, std::span<const TensorInfo* const> tensors,
                             const std::string& file) {
  json config = Translation(metadata, file).config();
  for (const TensorInfo* info : tensors) {
    if (info->name.find(".exp_probs_b") != std::string::npos) config["has_exp_probs_b"] = true;
    if (is_expert_tensor(*info) && !info->block_type.empty()) {
      config["quantization_config"] = {{"quant_method", "gguf"}};
    }
  }
  return config.dump(1, ' ', false, json::error_handler_t::replace);
}

}  // namespace gantry
