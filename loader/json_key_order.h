#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gantry {

/// The keys of one object of a JSON text in the order in which they are written, which a DOM of
/// sorted objects does not keep and some configs give a meaning (the first pattern that matches).
/// @param path keys from the root down to the object; empty for the root
/// @return nothing if there is no object there
/// @throws Error kFormat as parse_strict_json does, but for duplicate keys
std::vector<std::string> json_key_order(std::string_view text, const std::string& source,
                                        const std::vector<std::string>& path);

}  // namespace gantry
