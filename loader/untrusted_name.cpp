// Names that come from files: what is allowed in them, and how they are shown.

#include "loader/untrusted_name.h"

#include <fmt/format.h>

#include <algorithm>

namespace gantry {
namespace {

/// Bytes of the UTF-8 character at `text[0]`, or 0 if it is none. Lenient about overlong forms:
/// what comes from JSON was validated there, what comes from a directory listing is only shown.
size_t character_bytes(std::string_view text) noexcept {
  const auto lead = static_cast<unsigned char>(text.front());
  const size_t size = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  if (lead > 0xf4 || size == 0 || size > text.size()) return 0;
  for (const char c : text.substr(1, size - 1)) {
    if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) return 0;
  }
  return size;
}

/// True if `text` begins with a control character: C0, DEL or C1 (U+0080..U+009F, which some
/// terminals obey).
bool begins_with_control(std::string_view text) noexcept {
  const auto byte = static_cast<unsigned char>(text.front());
  if (byte < 0x20 || byte == 0x7f) return true;
  return byte == 0xc2 && text.size() > 1 && static_cast<unsigned char>(text[1]) < 0xa0;
}

bool has_control_character(std::string_view text) noexcept {
  for (; !text.empty(); text.remove_prefix(1)) {
    if (begins_with_control(text)) return true;
  }
  return false;
}

}  // namespace

// Not fmt's {:?}: fmt 9.1 aborts on a text that ends inside a UTF-8 character.
std::string quote_name(std::string_view name) {
  constexpr size_t kMaxShown = 200;
  std::string text = "\"";
  std::string_view rest = name.substr(0, kMaxShown);
  while (!rest.empty()) {
    const size_t bytes = begins_with_control(rest) ? 0 : character_bytes(rest);
    if (bytes == 0) {
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(rest.front()));
    } else {
      if (rest.front() == '"' || rest.front() == '\\') text += '\\';
      text += rest.substr(0, bytes);
    }
    rest.remove_prefix(std::max<size_t>(bytes, 1));
  }
  text += '"';
  if (name.size() > kMaxShown) text += fmt::format("... ({} bytes)", name.size());
  return text;
}

std::string quote_names(std::span<const std::string> names) {
  constexpr size_t kMaxListed = 10;
  std::string text;
  for (const std::string& name : names.first(std::min(names.size(), kMaxListed))) {
    if (!text.empty()) text += ", ";
    text += quote_name(name);
  }
  if (names.size() > kMaxListed) text += fmt::format(", ... ({} in all)", names.size());
  return text;
}

std::string_view tensor_name_problem(std::string_view name) noexcept {
  if (name.empty()) return "the name is empty";
  if (has_control_character(name)) return "the name has a control character";
  return {};
}

std::string_view shard_name_problem(std::string_view name) noexcept {
  if (name.empty()) return "the name is empty";
  if (has_control_character(name)) return "the name has a control character";
  if (name.find_first_of("/\\") != std::string_view::npos) return "the name has a path separator";
  if (name.front() == '.') return "the name begins with '.'";
  if (name.find("..") != std::string_view::npos) return "the name has '..'";
  if (!name.ends_with(".safetensors")) return "only *.safetensors files are read";
  return {};
}

}  // namespace gantry
