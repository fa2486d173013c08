#include "loader/slot_pool.h"

#include <algorithm>
#include <new>

namespace gantry {

SlotBuffer::~SlotBuffer() {
  if (pool_ != nullptr) pool_->give_back(layout_, std::move(bytes_));
}

SlotBuffer SlotPool::take(const SlotLayout& layout, size_t bytes) {
  SlotBuffer buffer;
  std::vector<Kept> unfit;  // freed without the lock
  {
    const std::scoped_lock lock(mutex_);
    const auto found = std::find_if(kept_.begin(), kept_.end(), [&](const Kept& kept) {
      return kept.bytes.size() == bytes && kept.layout == layout;
    });
    if (found != kept_.end()) {
      buffer.bytes_ = std::move(found->bytes);
      kept_.erase(found);
    } else {
      unfit.swap(kept_);
    }
  }
  unfit.clear();  // before the new memory is wanted
  if (buffer.size() != bytes) buffer.bytes_ = ByteBuffer(bytes);
  buffer.layout_ = layout;
  buffer.pool_ = shared_from_this();
  return buffer;
}

size_t SlotPool::bytes_kept() const {
  const std::scoped_lock lock(mutex_);
  size_t bytes = 0;
  for (const Kept& kept : kept_)
    bytes += kept.bytes.size();
  return bytes;
}

void SlotPool::give_back(const SlotLayout& layout, ByteBuffer bytes) noexcept {
  try {
    const std::scoped_lock lock(mutex_);
    kept_.push_back({layout, std::move(bytes)});
  } catch (const std::bad_alloc&) {  // nothing to remember it with: it is freed
  }
}

}  // namespace gantry
