#pragma once

// Reads one scheme from one JSON object. Internal: nlohmann types.

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "loader/encodings/quant_scheme.h"

namespace gantry {

/// The quantization_config inside a config.json.
struct QuantObject {
  const nlohmann::json* object = nullptr;  ///< into the root; null: there is none
  std::vector<std::string> path;           ///< the keys that lead to it
};

/// @throws Error kFormat if it is no object
QuantObject find_quant_object(const nlohmann::json& root, const std::string& source);

/// The scheme of an object that describes one: a quantization_config with a single config group and
/// without the overrides for single modules, which are not looked at.
/// @throws Error as read_quant_scheme
QuantScheme read_scheme(const nlohmann::json& object, const std::string& source);

}  // namespace gantry
