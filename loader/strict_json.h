#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace gantry {

/// Parses JSON text that nobody vouches for: duplicate keys, nesting deeper than 64, bad UTF-8 and
/// text after the value are errors. Internal to the loader and the tools (nlohmann types).
/// @param source name used in messages
/// @throws Error kFormat naming the source and the byte
nlohmann::json parse_strict_json(std::string_view text, const std::string& source);

}  // namespace gantry
