#pragma once

// What a QuantConfig holds. Internal: quant_config_reader.cpp writes it, quant_config.cpp reads it.

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "loader/encodings/module_pattern.h"
#include "loader/encodings/quant_config.h"

namespace gantry {

struct QuantConfig::Rules {
  /// Instead of an index into `schemes`.
  static constexpr int kLeftOut = -1;  ///< the config says: not quantized
  static constexpr int kNothing = -2;  ///< the config says nothing

  struct NameHash {
    using is_transparent = void;
    size_t operator()(std::string_view name) const noexcept {
      return std::hash<std::string_view>()(name);
    }
  };

  struct Scheme {
    QuantScheme scheme;
    std::string problem;  ///< why it could not be read: an error only if a matrix needs it
  };

  struct PatternRule {
    ModulePattern pattern;
    std::string text;  ///< in messages
    int scheme = kNothing;
  };

  std::string source;
  std::vector<Scheme> schemes;
  /// Modules by name; a name stands for the modules below it also. The longest one counts.
  std::unordered_map<std::string, int, NameHash, std::equal_to<>> by_name;
  /// Looked at where no name is known.
  std::vector<PatternRule> by_pattern;
  /// Of several patterns that match, the first counts. Otherwise they must say the same.
  bool first_pattern_counts = false;
  int fallback = kNothing;  ///< for every other module

  /// Runs of whole segments of module names: "lm_head", "mlp.gate".
  std::unordered_set<std::string, NameHash, std::equal_to<>> left_out_names;
  std::vector<ModulePattern> left_out_patterns;
  std::vector<std::string> notes;

  /// What the rules for single modules say: an index, kLeftOut or kNothing.
  [[nodiscard]] int find_rule(std::string_view module) const;
};

}  // namespace gantry
