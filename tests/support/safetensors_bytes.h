#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace gantry::test {

/// The 8 bytes that a safetensors file begins with.
inline std::string header_length(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

/// A safetensors file of that header and data, right or wrong.
inline std::string safetensors_bytes(std::string_view json, std::string_view data = {}) {
  return header_length(json.size()).append(json).append(data);
}

}  // namespace gantry::test
