#include "loader/memory_budget.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {

BudgetedBuffer::~BudgetedBuffer() {
  if (budget_ != nullptr) budget_->give_back(size_);
}

BudgetedBuffer MemoryBudget::take(int64_t size) {
  GANTRY_CHECK(size >= 0 && size <= limit_bytes_, ErrorCode::kOutOfMemory,
               "a buffer of {} bytes is needed at once, the memory limit is {} bytes", size,
               limit_bytes_);
  {
    std::unique_lock lock(mutex_);
    freed_.wait(lock, [&] { return held_bytes_ + size <= limit_bytes_; });
    held_bytes_ += size;
    peak_bytes_ = std::max(peak_bytes_, held_bytes_);
  }
  BudgetedBuffer buffer;
  buffer.budget_ = this;  // first: if the allocation throws, the bytes are given back
  buffer.size_ = size;
  buffer.data_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(size));
  return buffer;
}

int64_t MemoryBudget::peak_bytes() const {
  const std::scoped_lock lock(mutex_);
  return peak_bytes_;
}

void MemoryBudget::give_back(int64_t size) noexcept {
  {
    const std::scoped_lock lock(mutex_);
    held_bytes_ -= size;
  }
  freed_.notify_all();
}

}  // namespace gantry
