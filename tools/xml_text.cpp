#include "tools/xml_text.h"

#include <nlohmann/json.hpp>

namespace gantry::cli {

std::string xml_text(std::string_view text) {
  // JSON's writer repairs what is not UTF-8, and its reader undoes the escapes.
  const auto replace = nlohmann::json::error_handler_t::replace;
  const std::string json = nlohmann::json(text).dump(-1, ' ', false, replace);
  const std::string repaired = nlohmann::json::parse(json).get<std::string>();
  std::string escaped;
  for (const char c : repaired) {
    if (c == '&') {
      escaped += "&amp;";
    } else if (c == '<') {
      escaped += "&lt;";
    } else if (c == '>') {
      escaped += "&gt;";
    } else if (c == '"') {
      escaped += "&quot;";
    } else {
      escaped += c >= 0 && c < ' ' ? ' ' : c;  // XML has no control characters
    }
  }
  return escaped;
}

}  // namespace gantry::cli
