#include "kernels/base/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

bool is_mapped(size_t size_bytes) { return size_bytes >= kHugePageBytes; }

}  // namespace

ByteBuffer::ByteBuffer(size_t size_bytes) : size_(size_bytes) {
  if (size_bytes == 0) return;
  if (is_mapped(size_bytes)) {
    void* map =
        mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    GANTRY_CHECK(map != MAP_FAILED, ErrorCode::kOutOfMemory, "cannot allocate {} bytes",
                 size_bytes);
    madvise(map, size_bytes, MADV_HUGEPAGE);  // advice only: a refusal changes speed, not results
    data_ = static_cast<std::byte*>(map);
    return;
  }
  const size_t rounded = (size_bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  void* block = std::aligned_alloc(kBufferAlignment, rounded);
  GANTRY_CHECK(block != nullptr, ErrorCode::kOutOfMemory, "cannot allocate {} bytes", size_bytes);
  std::memset(block, 0, rounded);
  data_ = static_cast<std::byte*>(block);
}

ByteBuffer::~ByteBuffer() {
  if (data_ == nullptr) return;
  if (is_mapped(size_)) {
    munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

}  // namespace gantry
