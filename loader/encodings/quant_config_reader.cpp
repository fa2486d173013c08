// Reads the rules of a quantization config: which modules follow which scheme. Overrides are laid
// over a copy of the object that they change, and the result is read like any other scheme
// (quant_scheme.cpp).

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "kernels/base/check.h"
#include "loader/config_reader.h"
#include "loader/encodings/quant_rules.h"
#include "loader/encodings/quant_scheme_reader.h"
#include "loader/json_key_order.h"
#include "loader/strict_json.h"
#include "loader/untrusted_name.h"

namespace gantry {
namespace {

using nlohmann::json;
using Anchor = ModulePattern::Anchor;
using Rules = QuantConfig::Rules;

constexpr size_t kMaxPatterns = 4096;
constexpr size_t kMaxStepsOfAll = size_t{1} << 18;  // of all patterns of a config
constexpr size_t kMaxSchemes = 4096;                // that differ

// Modules that stay as they are: one exporter or another writes each of these.
constexpr std::array<const char*, 6> kLeftOutKeys = {"ignore",         "exclude_modules",
                                                     "exclude",        "modules_to_not_convert",
                                                     "ignored_layers", "llm_int8_skip_modules"};

class RuleReader {
 public:
  RuleReader(const json& object, const std::string& source, std::string_view text,
             std::vector<std::string> path)
      : object_(object),
        config_(object, source),
        source_(source),
        text_(text),
        path_(std::move(path)) {
    rules_.source = source;
  }

  Rules read() {
    const std::string method = config_.string_or({"quant_method"}, "");
    if (method == "compressed-tensors") {
      read_config_groups();
    } else if (method == "modelopt" && has_quantized_layers()) {
      read_quantized_layers();
    } else {
      rules_.fallback = add_scheme(object_);
      if (method == "gptq" || method == "awq") read_dynamic();
      if (method == "auto-round") read_extra_config();
      if (method == "quark") read_quark_layers();
    }
    for (const char* key : kLeftOutKeys)
      read_left_out(key);
    // A model in which nothing can be read is refused at once.
    if (rules_.fallback >= 0)
      require_readable(rules_.schemes[static_cast<size_t>(rules_.fallback)]);
    return std::move(rules_);
  }

 private:
  static void require_readable(const Rules::Scheme& scheme) {
    GANTRY_CHECK(scheme.problem.empty(), ErrorCode::kUnsupported, "{}", scheme.problem);
  }

  // The index of the scheme that an object describes; equal objects share one.
  int add_scheme(const json& object) {
    const std::string text = object.dump(-1, ' ', false, json::error_handler_t::replace);
    const auto [place, is_new] = known_.try_emplace(text, static_cast<int>(rules_.schemes.size()));
    if (!is_new) return place->second;
    GANTRY_CHECK(known_.size() <= kMaxSchemes, ErrorCode::kUnsupported,
                 "{}: more than {} different schemes", source_, kMaxSchemes);
    Rules::Scheme scheme;
    try {
      scheme.scheme = read_scheme(object, source_);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      scheme.problem = error.what();
    }
    rules_.schemes.push_back(std::move(scheme));
    return place->second;
  }

  // The object with some of its keys replaced.
  int add_override(const json& changes) {
    json object = overridable();
    for (const auto& [key, value] : changes.items())
      object[key] = value;
    return add_scheme(object);
  }

  // The object without what is about single modules: large, and not part of a scheme.
  const json& overridable() {
    if (base_.is_null()) {
      base_ = object_;
      for (const char* key : {"dynamic", "extra_config", "quantized_layers", "config_groups",
                              "layer_quant_config", "layer_type_quant_config"}) {
        base_.erase(key);
      }
      for (const char* key : kLeftOutKeys)
        base_.erase(key);
    }
    return base_;
  }

  const json* find_object(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end() || found->is_null()) return nullptr;
    GANTRY_CHECK(found->is_object(), ErrorCode::kFormat, "{}: {}: expected an object, found {}",
                 source_, key, found->type_name());
    return &*found;
  }

  // Entries as the file orders them.
  std::vector<std::string> keys_of(const char* key) const {
    std::vector<std::string> path = path_;
    path.emplace_back(key);
    return json_key_order(text_, source_, path);
  }

  const json& require_object(const json& value, const std::string& name) const {
    GANTRY_CHECK(value.is_object(), ErrorCode::kFormat, "{}: {}: expected an object, found {}",
                 source_, quote_name(name), value.type_name());
    return value;
  }

  void add_pattern(ModulePattern pattern, const std::string& text, int scheme) {
    count(pattern);
    rules_.by_pattern.push_back({std::move(pattern), text, scheme});
  }

  void count(const ModulePattern& pattern) {
    num_steps_ += pattern.num_steps();
    GANTRY_CHECK(++num_patterns_ <= kMaxPatterns && num_steps_ <= kMaxStepsOfAll,
                 ErrorCode::kUnsupported,
                 "{}: expected at most {} patterns over module names of {} steps together, found "
                 "more",
                 source_, kMaxPatterns, kMaxStepsOfAll);
  }

  void add_name(const std::string& name, int scheme) {
    const auto [place, is_new] = rules_.by_name.try_emplace(name, scheme);
    GANTRY_CHECK(is_new || place->second == scheme, ErrorCode::kFormat,
                 "{}: module {} stands in two config groups that differ", source_,
                 quote_name(name));
  }

  // compressed-tensors: "re:" and a regular expression, a class, or a module's name. The only class
  // that experts have is Linear.
  void read_config_groups() {
    const json* groups = find_object("config_groups");
    GANTRY_CHECK(groups != nullptr && !groups->empty(), ErrorCode::kFormat,
                 "{}: compressed-tensors without config_groups", source_);
    for (const auto& [name, group] : groups->items()) {
      json single = overridable();
      single["config_groups"] = {{"group", require_object(group, name)}};
      const auto weights = group.find("weights");
      const bool plain = weights == group.end() || weights->is_null();
      const int scheme = plain ? Rules::kLeftOut : add_scheme(without_targets(std::move(single)));
      const auto targets = ConfigReader(group, source_).find_list("targets");
      for (const std::string& target : targets.value_or(std::vector<std::string>{"Linear"})) {
        if (target.starts_with("re:")) {
          add_pattern(ModulePattern::regex(target.substr(3), Anchor::kStart), target, scheme);
        } else if (target != "Linear") {
          add_name(target, scheme);
        } else if (!plain) {
          GANTRY_CHECK(rules_.fallback == Rules::kNothing || rules_.fallback == scheme,
                       ErrorCode::kFormat, "{}: two config groups that differ target Linear",
                       source_);
          rules_.fallback = scheme;
        }
      }
    }
  }

  static json without_targets(json object) {
    object["config_groups"]["group"].erase("targets");
    return object;
  }

  // GPTQModel: regular expressions in the order of the file, "-:" for modules that are left out.
  void read_dynamic() {
    const json* dynamic = find_object("dynamic");
    if (dynamic == nullptr) return;
    rules_.first_pattern_counts = true;
    for (const std::string& key : keys_of("dynamic")) {
      const bool negative = key.starts_with("-:");
      const std::string pattern = negative || key.starts_with("+:") ? key.substr(2) : key;
      const json& changes = require_object(dynamic->at(key), key);
      add_pattern(ModulePattern::regex(pattern, Anchor::kStart), key,
                  negative || is_16_bits(changes) ? Rules::kLeftOut : add_override(changes));
    }
  }

  // 16 bits and more are a way to say that a module stays as it is.
  static bool is_16_bits(const json& changes) {
    const auto bits = changes.find("bits");
    return bits != changes.end() && bits->is_number_integer() && bits->get<int64_t>() >= 16;
  }

  // AutoRound: names of modules, or regular expressions that may match anywhere.
  void read_extra_config() {
    const json* extra = find_object("extra_config");
    if (extra == nullptr) return;
    for (const auto& [key, changes] : extra->items()) {
      const int scheme =
          is_16_bits(require_object(changes, key)) ? Rules::kLeftOut : add_override(changes);
      if (key.find_first_of("*+?[](){}|^$\\") == std::string::npos) {
        add_name(key, scheme);
      } else {
        add_pattern(ModulePattern::regex(key, Anchor::kAnywhere), key, scheme);
      }
    }
  }

  bool has_quantized_layers() const {
    return config_.string_or({"quant_algo"}, "") == "MIXED_PRECISION" ||
           find_object("quantized_layers") != nullptr;
  }

  // ModelOpt, mixed precision: an algorithm a module.
  void read_quantized_layers() {
    const json* layers = find_object("quantized_layers");
    GANTRY_CHECK(layers != nullptr && !layers->empty(), ErrorCode::kFormat,
                 "{}: ModelOpt quant_algo MIXED_PRECISION without quantized_layers", source_);
    if (config_.string_or({"quant_algo"}, "MIXED_PRECISION") != "MIXED_PRECISION") {
      rules_.fallback = add_scheme(overridable());
    }
    for (const std::string& key : keys_of("quantized_layers")) {
      const json& changes = require_object(layers->at(key), key);
      const bool plain = ConfigReader(changes, source_).string_or({"quant_algo"}, "").empty();
      const int scheme = plain ? Rules::kLeftOut : add_override(changes);
      if (key.find('*') == std::string::npos) {
        add_name(key, scheme);
      } else {
        add_pattern(ModulePattern::wildcard(key), key, scheme);
      }
    }
  }

  // Quark: wildcards in the order of the file, then classes, then the global config.
  void read_quark_layers() {
    rules_.first_pattern_counts = true;
    if (const json* layers = find_object("layer_quant_config")) {
      for (const std::string& key : keys_of("layer_quant_config")) {
        const json& layer = require_object(layers->at(key), key);
        add_pattern(name_pattern(key), key, add_override({{"global_quant_config", layer}}));
      }
    }
    if (const json* types = find_object("layer_type_quant_config")) {
      for (const auto& [key, layer] : types->items()) {
        if (key != "Linear" && !key.ends_with(".Linear") && !key.ends_with(".Linear'>")) continue;
        rules_.fallback = add_override({{"global_quant_config", require_object(layer, key)}});
      }
    }
  }

  static ModulePattern name_pattern(const std::string& text) {
    return text.starts_with("re:") ? ModulePattern::regex(text.substr(3), Anchor::kStart)
                                   : ModulePattern::wildcard(text);
  }

  // Such lists decide nothing (the tensors do), so a pattern that is not understood is no error.
  void read_left_out(const char* key) {
    if (!config_.is_list(key)) return;
    const std::vector<std::string> entries = config_.find_list(key).value();
    for (const std::string& entry : entries) {
      if (!entry.starts_with("re:") && entry.find_first_of("*?[") == std::string::npos) {
        rules_.left_out_names.insert(entry);
        continue;
      }
      try {
        ModulePattern pattern = name_pattern(entry);
        count(pattern);
        rules_.left_out_patterns.push_back(std::move(pattern));
      } catch (const Error& error) {
        rules_.notes.push_back(
            fmt::format("{}: {}: not looked at: {}", source_, key, error.what()));
      }
    }
  }

  const json& object_;
  ConfigReader config_;
  const std::string& source_;
  std::string_view text_;
  std::vector<std::string> path_;
  json base_;
  std::unordered_map<std::string, int> known_;
  size_t num_patterns_ = 0;
  size_t num_steps_ = 0;
  Rules rules_;
};

QuantConfig read_rules(const json& object, const std::string& source, std::string_view text,
                       std::vector<std::string> path) {
  return QuantConfig(
      std::make_shared<const Rules>(RuleReader(object, source, text, std::move(path)).read()));
}

}  // namespace

std::optional<QuantConfig> read_quant_config(const std::string& config_text,
                                             const std::string& source) {
  const json root = parse_strict_json(config_text, source);
  QuantObject found = find_quant_object(root, source);
  if (found.object == nullptr) return std::nullopt;
  return read_rules(*found.object, source, config_text, std::move(found.path));
}

const std::vector<std::string_view>& quant_sidecar_names() {
  static const std::vector<std::string_view> kNames = {"hf_quant_config.json",
                                                       "quantize_config.json", "quant_config.json",
                                                       "quantization_config.json"};
  return kNames;
}

QuantConfig read_quant_sidecar(const QuantSidecar& sidecar, const std::string& source) {
  json object = parse_strict_json(sidecar.text, source);
  GANTRY_CHECK(object.is_object(), ErrorCode::kFormat, "{}: expected an object, found {}", source,
               object.type_name());
  std::vector<std::string> path;
  if (const auto nested = object.find("quantization"); nested != object.end()) {
    GANTRY_CHECK(nested->is_object(), ErrorCode::kFormat,
                 "{}: quantization: expected an object, found {}", source, nested->type_name());
    json inner = *nested;
    object = std::move(inner);
    if (!object.contains("quant_method")) object["quant_method"] = "modelopt";
    path.emplace_back("quantization");
  }
  // Files by AutoGPTQ and AutoAWQ of before quant_method; AutoAWQ's have these keys.
  if (!object.contains("quant_method")) {
    object["quant_method"] =
        object.contains("w_bit") || object.contains("zero_point") ? "awq" : "gptq";
  }
  return read_rules(object, source, sidecar.text, std::move(path));
}

}  // namespace gantry
