#include "allocation_count.h"

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {
thread_local int64_t count = 0;

void* counted(size_t size, size_t alignment) {
  ++count;
  const size_t rounded = (size + alignment) / alignment * alignment;
  void* block = std::aligned_alloc(alignment, rounded);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
}  // namespace

int64_t allocation_count() noexcept { return count; }

void* operator new(size_t size) { return counted(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return counted(size, static_cast<size_t>(alignment));
}
// Sanitizers have a form of their own for this one, whose memory must not meet our delete.
void* operator new(size_t size, const std::nothrow_t& /*tag*/) noexcept {
  try {
    return counted(size, alignof(std::max_align_t));
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t /*size*/) noexcept { std::free(block); }
void operator delete(void* block, std::align_val_t /*alignment*/) noexcept { std::free(block); }
void operator delete(void* block, size_t /*size*/, std::align_val_t /*alignment*/) noexcept {
  std::free(block);
}
