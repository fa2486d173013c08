#pragma once

#include <string>
#include <string_view>

namespace gantry::cli {

/// Any bytes as text of an XML document.
std::string xml_text(std::string_view text);

}  // namespace gantry::cli
