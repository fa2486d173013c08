#pragma once

#include <span>
#include <string>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// A name from a file as it may stand in a message: quoted, control characters and bad UTF-8
/// escaped, cut after 200 bytes.
std::string quote_name(std::string_view name);

/// Up to ten names and how many there are: `"a", "b"` or `"a", "b", ... (12 in all)`.
std::string quote_names(std::span<const std::string> names);

/// What is wrong with a tensor name (it is empty, or has NUL or another control character), or an
/// empty text. Control characters are refused because names end up in terminals, logs and C
/// strings.
std::string_view tensor_name_problem(std::string_view name) noexcept;

/// What is wrong with the name of a shard, or an empty text. A shard is a plain *.safetensors name
/// inside the checkpoint's directory: no separators, no "..", not hidden.
std::string_view shard_name_problem(std::string_view name) noexcept;

}  // namespace gantry
