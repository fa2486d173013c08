#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gantry::test {

/// Writes GGUF files, right or wrong, from ggml's specification alone.
class GgufBuilder {
 public:
  struct Tensor {
    std::string name;
    std::vector<uint64_t> ne;  ///< fastest axis first: [in, out, experts]
    uint32_t type = 0;
    std::string data;
    std::optional<uint64_t> offset = {};  ///< else where the tensor before it ends
  };

  uint32_t magic = 0x46554747;
  uint32_t version = 3;
  uint64_t alignment = 32;  ///< of the data; the key is the test's business
  std::optional<uint64_t> num_tensors;
  std::optional<uint64_t> num_keys;
  std::vector<Tensor> tensors;

  template <typename T>
  static std::string bytes_of(const T& value) {
    return {reinterpret_cast<const char*>(&value), sizeof(value)};
  }
  static std::string text(std::string_view value) {
    return bytes_of<uint64_t>(value.size()).append(value);
  }

  /// A key whose value are these bytes.
  GgufBuilder& raw(std::string_view key, uint32_t type, std::string_view value) {
    keys_.emplace_back(text(key) + bytes_of(type) + std::string(value));
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return raw(key, 4, bytes_of(value)); }
  GgufBuilder& f32(std::string_view key, float value) { return raw(key, 6, bytes_of(value)); }
  GgufBuilder& flag(std::string_view key, bool value) { return raw(key, 7, bytes_of(value)); }
  GgufBuilder& string(std::string_view key, std::string_view value) {
    return raw(key, 8, text(value));
  }
  GgufBuilder& list(std::string_view key, uint32_t type, uint64_t count, std::string_view values) {
    return raw(key, 9, bytes_of(type) + bytes_of(count) + std::string(values));
  }
  GgufBuilder& tensor(Tensor tensor) {
    tensors.push_back(std::move(tensor));
    return *this;
  }
  /// An f32 tensor of zeros.
  GgufBuilder& zeros(std::string name, std::vector<uint64_t> ne) {
    uint64_t count = 1;
    for (const uint64_t size : ne)
      count *= size;
    return tensor({std::move(name), std::move(ne), 0, std::string(count * 4, '\0')});
  }

  [[nodiscard]] std::string bytes() const {
    std::string head = bytes_of(magic) + bytes_of(version) +
                       bytes_of(num_tensors.value_or(tensors.size())) +
                       bytes_of(num_keys.value_or(keys_.size()));
    for (const std::string& key : keys_)
      head += key;
    std::string data;
    for (const Tensor& tensor : tensors) {
      data.resize(aligned(data.size()));
      head += text(tensor.name) + bytes_of(static_cast<uint32_t>(tensor.ne.size()));
      for (const uint64_t size : tensor.ne)
        head += bytes_of(size);
      head += bytes_of(tensor.type) + bytes_of<uint64_t>(tensor.offset.value_or(data.size()));
      data += tensor.data;
    }
    head.resize(aligned(head.size()));
    return head + data;
  }

 private:
  [[nodiscard]] uint64_t aligned(uint64_t size) const {
    return (size + alignment - 1) / alignment * alignment;
  }
  std::vector<std::string> keys_;
};

}  // namespace gantry::test
