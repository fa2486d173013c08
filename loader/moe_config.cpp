#include "loader/moe_config.h"

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "loader/config_reader.h"
#include "loader/strict_json.h"

// Finds the part of config.json that describes the decoder, its family, and which layers are MoE;
// the family's own reader (family_config.cpp) then fills in each layer.

namespace gantry {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 5> kNestedConfigs = {
    "text_config", "language_config", "llm_config", "thinker_config", "language_model_config"};

constexpr int64_t kMaxLayers = 10000;
// Experts of all layers together. Five times those of the largest models; the tensor map keeps a
// record of each, so a config alone must not be able to ask for gigabytes.
constexpr int64_t kMaxExpertsInAll = int64_t{1} << 18;

struct Decoder {
  const json* object;
  std::string model_type;
  const FamilySpec* family;
};

// The deepest nested config with a known model_type wins: multi-modal models wrap the decoder's.
std::optional<Decoder> find_decoder(const json& object, int depth) {
  if (!object.is_object() || depth > 3) return std::nullopt;
  for (const std::string_view key : kNestedConfigs) {
    const auto nested = object.find(std::string(key));
    if (nested == object.end()) continue;
    if (auto decoder = find_decoder(*nested, depth + 1)) return decoder;
  }
  const auto type = object.find("model_type");
  if (type == object.end() || !type->is_string()) return std::nullopt;
  const auto& name = type->get_ref<const std::string&>();
  const FamilySpec* family = find_family(name);
  if (family == nullptr) return std::nullopt;
  return Decoder{&object, name, family};
}

std::string known_model_types() {
  std::string text;
  for (const FamilySpec& family : family_specs()) {
    for (const std::string_view type : family.model_types) {
      if (!text.empty()) text += ", ";
      text += type;
    }
  }
  return text;
}

// Entries of lists such as mlp_layer_types or layers_block_type that mean a MoE layer.
bool is_moe_entry(const std::string& entry) {
  return entry == "sparse" || entry == "moe" || entry == "hash_moe";
}

std::set<int> indices_of(const std::vector<std::string>& list, const std::string& key,
                         const ConfigReader& config) {
  std::set<int> indices;
  for (const std::string& entry : list) {
    const std::optional<int> index = parse_index(entry);
    GANTRY_CHECK(index.has_value(), ErrorCode::kFormat,
                 "{}: {}: expected layer numbers, found '{}'", config.source(), key, entry);
    indices.insert(*index);
  }
  return indices;
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts;
  std::string part;
  for (const char c : text + ",") {
    if (c == ',') {
      if (!part.empty()) parts.push_back(part);
      part.clear();
    } else if (c != ' ') {
      part += c;
    }
  }
  return parts;
}

// How many leading layers are dense where the config does not say, as in Transformers 5.17.
int64_t default_first_layer(const std::string& model_type) {
  static const std::map<std::string, int64_t, std::less<>> kDefaults = {
      {"deepseek_v3", 3},  {"deepseek_v32", 3}, {"glm_moe_dsa", 3},  {"step3p5", 3},
      {"step3p7", 3},      {"lfm2_moe", 2},     {"ernie4_5_moe", 1}, {"glm4_moe", 1},
      {"glm4v_moe", 1},    {"afmoe", 1},        {"exaone_moe", 1},   {"glm4_moe_lite", 1},
      {"axk1", 1},         {"laguna", 1},       {"hy_v3", 1},        {"kimi_linear", 1},
      {"mimo_v2_flash", 1}};
  const auto found = kDefaults.find(model_type);
  return found == kDefaults.end() ? 0 : found->second;
}

// Layers by one of the rules in use; families do not share key names with different meanings, so
// the keys that are present select the rule. Explicit lists come first.
class LayerRule {
 public:
  LayerRule(const ConfigReader& config, const std::string& model_type) : config_(config) {
    types_ = config.find_list("mlp_layer_types");
    // In other hybrids (Granite) this list names the mixer, and every layer is MoE.
    if (model_type == "nemotron_h" && !types_) types_ = config.find_list("layers_block_type");
    pattern_ = config.string_or({"hybrid_override_pattern"}, "");
    if (auto list = config.find_list("moe_layers"))
      explicit_ = indices_of(*list, "moe_layers", config);
    if (config.has("moe_layers_enum")) {
      const auto list = config.is_list("moe_layers_enum")
                            ? *config.find_list("moe_layers_enum")
                            : split_commas(config.string_or({"moe_layers_enum"}, ""));
      explicit_ = indices_of(list, "moe_layers_enum", config);
    }
    if (auto list = config.find_list("mlp_only_layers")) {
      dense_ = indices_of(*list, "mlp_only_layers", config);
    }
    // Models that leave these keys out mean the default of their configuration class.
    const bool jamba = model_type == "jamba";
    period_ = config.int_or({"expert_layer_period"}, jamba ? 2 : 1);
    offset_ = config.int_or({"expert_layer_offset"}, jamba ? 1 : 0);
    step_ = config.int_or({"decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval",
                           "moe_layer_frequency"},
                          1);
    first_ = config.int_or({"first_k_dense_replace", "num_dense_layers", "moe_layer_start_index",
                            "moe_layer_num_skipped"},
                           default_first_layer(model_type));
    last_ = config.int_or({"moe_layer_end_index"}, -1);
    GANTRY_CHECK(period_ >= 1 && step_ >= 1, ErrorCode::kFormat,
                 "{}: expected MoE layer periods of at least 1, found {} and {}", config.source(),
                 period_, step_);
    frequency_is_list_ = config.is_list("moe_layer_freq");
  }

  [[nodiscard]] bool is_moe(int layer) const {
    const auto index = static_cast<size_t>(layer);
    if (types_) return index < types_->size() && is_moe_entry((*types_)[index]);
    if (!pattern_.empty()) return index < pattern_.size() && pattern_[index] == 'E';
    if (explicit_) return explicit_->contains(layer);
    if (dense_.contains(layer) || layer < first_ || (last_ >= 0 && layer > last_)) return false;
    if (layer % period_ != offset_ % period_) return false;
    if ((layer + 1) % step_ != 0) return false;  // these keys count from 1: layers step-1, 2 step-1
    // moe_layer_freq: a period that counts from layer 0, or one flag a layer.
    const int64_t frequency = config_.at_layer(layer).int_or({"moe_layer_freq"}, 1);
    if (frequency_is_list_) return frequency != 0;
    GANTRY_CHECK(frequency >= 1, ErrorCode::kFormat,
                 "{}: moe_layer_freq: expected at least 1, found {}", config_.source(), frequency);
    return layer % frequency == 0;
  }

 private:
  ConfigReader config_;
  std::optional<std::vector<std::string>> types_;
  std::string pattern_;
  std::optional<std::set<int>> explicit_;
  std::set<int> dense_;
  int64_t period_ = 1;
  int64_t offset_ = 0;
  int64_t step_ = 1;
  int64_t first_ = 0;
  int64_t last_ = -1;
  bool frequency_is_list_ = false;
};

std::optional<DType> parse_torch_dtype(const std::string& name) {
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "float32") return DType::kF32;
  return std::nullopt;
}

int count_layers(const ConfigReader& config) {
  // Hybrids may give only the list of block types.
  const auto blocks = config.find_list("layers_block_type");
  if (blocks && !config.has("num_hidden_layers")) {
    const auto count = static_cast<int64_t>(blocks->size());
    GANTRY_CHECK(count >= 1 && count <= kMaxLayers, ErrorCode::kFormat,
                 "{}: layers_block_type: expected 1 to {} entries, found {}", config.source(),
                 kMaxLayers, count);
    return static_cast<int>(count);
  }
  // LongCat counts its decoder layers in num_layers; num_hidden_layers counts attention blocks.
  if (config.has("num_layers") && config.has("zero_expert_num")) {
    return static_cast<int>(config.require_int({"num_layers"}, 1, kMaxLayers));
  }
  return static_cast<int>(
      config.require_int({"num_hidden_layers", "n_layers", "num_layers"}, 1, kMaxLayers));
}

void add_notes(const ConfigReader& config, const json& root, MoeModelConfig& model) {
  model.num_mtp_layers = static_cast<int>(config.int_in_range_or(
      {"num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"}, 0, 0, kMaxLayers));
  if (model.num_mtp_layers > 0) {
    model.notes.push_back(
        fmt::format("config declares {} multi-token prediction layer(s): they are not loaded",
                    model.num_mtp_layers));
  }
  for (const std::string_view tower : {"vision_config", "audio_config"}) {
    if (root.contains(std::string(tower))) {
      model.notes.push_back(fmt::format("config declares a {}: towers are not loaded", tower));
    }
  }
}

// config.json comes first; without a quantization_config in it, the first sidecar does.
void read_quantization(const std::string& text, const std::string& source,
                       const std::vector<QuantSidecar>& sidecars, MoeModelConfig& model) {
  model.quant = read_quant_config(text, source);
  for (const QuantSidecar& sidecar : sidecars) {
    if (!model.quant) {
      model.quant = read_quant_sidecar(sidecar, sidecar.name);
      model.notes.push_back(
          fmt::format("{} has no quantization_config: it is read from {}", source, sidecar.name));
      continue;
    }
    try {
      model.other_quant.push_back(read_quant_sidecar(sidecar, sidecar.name));
    } catch (const Error& error) {
      model.notes.push_back(fmt::format("{} cannot be read and is not compared with {}: {}",
                                        sidecar.name, model.quant->source(), error.what()));
    }
  }
  if (!model.quant) return;
  log(LogLevel::kInfo, "quantization {} read from {}", model.quant->methods(),
      model.quant->source());
  for (const std::string& note : model.quant->notes())
    model.notes.push_back(note);
}

}  // namespace

const MoeLayerSpec* MoeModelConfig::find_layer(int layer) const noexcept {
  const auto found =
      std::lower_bound(layers.begin(), layers.end(), layer,
                       [](const MoeLayerSpec& spec, int wanted) { return spec.layer < wanted; });
  return found == layers.end() || found->layer != layer ? nullptr : &*found;
}

MoeModelConfig read_moe_config(const std::string& text, const std::string& source,
                               const std::vector<QuantSidecar>& sidecars) {
  const json root = parse_strict_json(text, source);
  GANTRY_CHECK(root.is_object(), ErrorCode::kFormat, "{}: expected a JSON object", source);
  const std::optional<Decoder> decoder = find_decoder(root, 0);
  if (!decoder) {
    const ConfigReader reader(root, source);
    fail(ErrorCode::kUnsupported,
         "{}: model_type '{}' is not a MoE family that Gantry knows; known: {}", source,
         reader.string_or({"model_type"}, ""), known_model_types());
  }
  const ConfigReader config(*decoder->object, source);
  const ConfigReader root_reader(root, source);

  MoeModelConfig model;
  model.family = decoder->family;
  model.model_type = decoder->model_type;
  model.num_layers = count_layers(config);
  model.declared_dtype = parse_torch_dtype(config.string_or(
      {"dtype", "torch_dtype"}, root_reader.string_or({"dtype", "torch_dtype"}, "")));
  add_notes(config, root, model);
  read_quantization(text, source, sidecars, model);

  const LayerRule rule(config, decoder->model_type);
  int64_t num_experts = 0;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    if (!rule.is_moe(layer)) continue;
    MoeLayerSpec spec;
    spec.layer = layer;
    decoder->family->read(config.at_layer(layer), spec);
    validate(spec.activation);
    num_experts += spec.num_named_experts();
    GANTRY_CHECK(num_experts <= kMaxExpertsInAll, ErrorCode::kFormat,
                 "{}: expected at most {} experts in all layers together, found more", source,
                 kMaxExpertsInAll);
    model.layers.push_back(std::move(spec));
  }
  GANTRY_CHECK(!model.layers.empty(), ErrorCode::kFormat,
               "{}: model_type {}: none of its {} layers is a MoE layer", source, model.model_type,
               model.num_layers);
  return model;
}

}  // namespace gantry
