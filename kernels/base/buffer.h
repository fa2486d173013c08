#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Alignment of every buffer: a cache line pair, and enough for any CPU vector or a TMA box.
inline constexpr size_t kBufferAlignment = 256;

/// Owns zero-initialised host memory, aligned to `kBufferAlignment`.
///
/// Large blocks (>= 2 MiB) come from anonymous pages that the kernel may back with huge pages, so
/// their memory is touched (and counted as resident) only when first written.
class ByteBuffer {
 public:
  ByteBuffer() = default;
  /// @throws Error kOutOfMemory
  explicit ByteBuffer(size_t size_bytes);
  ByteBuffer(ByteBuffer&& other) noexcept { swap(other); }
  ByteBuffer& operator=(ByteBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ByteBuffer(const ByteBuffer&) = delete;
  ByteBuffer& operator=(const ByteBuffer&) = delete;
  ~ByteBuffer();

  [[nodiscard]] std::byte* data() noexcept { return data_; }
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  [[nodiscard]] size_t size() const noexcept { return size_; }

  void swap(ByteBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Owns `count` zero-initialised elements of a trivial type.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(size_t count) : bytes_(count * sizeof(T)), count_(count) {}

  [[nodiscard]] T* data() noexcept { return reinterpret_cast<T*>(bytes_.data()); }
  [[nodiscard]] const T* data() const noexcept { return reinterpret_cast<const T*>(bytes_.data()); }
  [[nodiscard]] size_t size() const noexcept { return count_; }
  [[nodiscard]] std::span<T> span() noexcept { return {data(), count_}; }
  [[nodiscard]] std::span<const T> span() const noexcept { return {data(), count_}; }
  T& operator[](size_t i) noexcept { return data()[i]; }
  const T& operator[](size_t i) const noexcept { return data()[i]; }

 private:
  ByteBuffer bytes_;
  size_t count_ = 0;
};

}  // namespace gantry
