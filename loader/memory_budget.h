#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

class MemoryBudget;

/// Memory that counts against a budget until it is given back by the destructor.
class BudgetedBuffer {
 public:
  BudgetedBuffer() = default;
  BudgetedBuffer(BudgetedBuffer&& other) noexcept { swap(other); }
  BudgetedBuffer& operator=(BudgetedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  BudgetedBuffer(const BudgetedBuffer&) = delete;
  BudgetedBuffer& operator=(const BudgetedBuffer&) = delete;
  ~BudgetedBuffer();

  [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
  [[nodiscard]] int64_t size() const noexcept { return size_; }

 private:
  friend class MemoryBudget;
  void swap(BudgetedBuffer& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  MemoryBudget* budget_ = nullptr;
  std::unique_ptr<std::byte[]> data_;
  int64_t size_ = 0;
};

/// Bounds the buffers that threads hold at once. Thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  [[nodiscard]] int64_t limit_bytes() const noexcept { return limit_bytes_; }

  /// A buffer of `size` bytes, not cleared. Waits until other threads have given enough back, so a
  /// thread must not ask for a second buffer while it holds one that others wait for.
  /// @throws Error kOutOfMemory naming both sizes if it could never fit
  BudgetedBuffer take(int64_t size);

  /// The most that was held at once.
  [[nodiscard]] int64_t peak_bytes() const;

 private:
  friend class BudgetedBuffer;
  void give_back(int64_t size) noexcept;

  const int64_t limit_bytes_;
  mutable std::mutex mutex_;
  std::condition_variable freed_;
  int64_t held_bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

}  // namespace gantry
