#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/export.h"
#include "loader/expert_slot.h"

namespace gantry GANTRY_API {

class SlotPool;

/// Memory of the slots of one layer. What came from a pool goes back there with its last user.
class SlotBuffer {
 public:
  SlotBuffer() = default;
  SlotBuffer(ByteBuffer bytes) noexcept : bytes_(std::move(bytes)) {}  // NOLINT: any memory will do
  SlotBuffer(SlotBuffer&& other) noexcept { swap(other); }
  SlotBuffer& operator=(SlotBuffer&& other) noexcept {
    SlotBuffer(std::move(other)).swap(*this);
    return *this;
  }
  SlotBuffer(const SlotBuffer&) = delete;
  SlotBuffer& operator=(const SlotBuffer&) = delete;
  ~SlotBuffer();

  [[nodiscard]] std::byte* data() noexcept { return bytes_.data(); }
  [[nodiscard]] const std::byte* data() const noexcept { return bytes_.data(); }
  [[nodiscard]] size_t size() const noexcept { return bytes_.size(); }

 private:
  friend class SlotPool;

  void swap(SlotBuffer& other) noexcept {
    bytes_.swap(other.bytes_);
    std::swap(layout_, other.layout_);
    pool_.swap(other.pool_);
  }

  ByteBuffer bytes_;
  SlotLayout layout_;
  std::shared_ptr<SlotPool> pool_;  // null: the memory is freed
};

/// Keeps the slot memory of layers that are gone for the next layers of the same layout: clearing
/// fresh pages costs about as much as packing a layer into them, and a virtual machine may have to
/// ask its host for them. For whoever loads layer after layer, or loads new weights again and
/// again.
///
/// A load writes every byte of a slot but the padding, which depends on the layout alone and stays
/// zero; the load's ledger proves that nothing of an earlier layer is left. Thread-safe.
class SlotPool : public std::enable_shared_from_this<SlotPool> {
 public:
  /// @return `bytes` of slots of this layout: zeros, or what an earlier layer of the same layout
  ///         and size left. If there is none of those, the pool gives up all that it keeps first.
  /// @throws Error kOutOfMemory
  [[nodiscard]] SlotBuffer take(const SlotLayout& layout, size_t bytes);

  /// Bytes that wait for a layer.
  [[nodiscard]] size_t bytes_kept() const;

 private:
  friend class SlotBuffer;

  struct Kept {
    SlotLayout layout;
    ByteBuffer bytes;
  };

  void give_back(const SlotLayout& layout, ByteBuffer bytes) noexcept;

  mutable std::mutex mutex_;
  std::vector<Kept> kept_;
};

}  // namespace gantry
