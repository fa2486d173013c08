#include "kernels/cuda/emulated_barriers.h"

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"

namespace gantry {

void EmulatedBarriers::reset(std::byte* shared, size_t bytes) {
  shared_ = shared;
  shared_bytes_ = bytes;
  barriers_.clear();
  copies_.clear();
}

void EmulatedBarriers::init(const void* barrier, uint32_t count) {
  GANTRY_CHECK(inside(barrier, 8) && reinterpret_cast<uintptr_t>(barrier) % 8 == 0 && count > 0,
               ErrorCode::kInternal,
               "emulated mbarrier: expected 8 aligned bytes of shared memory and a count");
  GANTRY_CHECK(!barriers_.contains(barrier), ErrorCode::kInternal,
               "emulated mbarrier: initialised twice");
  barriers_[barrier] = {.count = count, .pending = count};
}

void EmulatedBarriers::publish() {
  for (auto& [address, barrier] : barriers_)
    barrier.published = true;
}

EmulatedBarriers::Barrier& EmulatedBarriers::find(const void* barrier) {
  const auto found = barriers_.find(barrier);
  GANTRY_CHECK(found != barriers_.end() && found->second.published, ErrorCode::kInternal,
               "emulated mbarrier: used before it was initialised and published");
  return found->second;
}

void EmulatedBarriers::end_phase(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes > 0) return;
  barrier.phase ^= 1u;
  barrier.pending = barrier.count;
}

void EmulatedBarriers::arrive(const void* barrier, uint32_t bytes) {
  Barrier& b = find(barrier);
  GANTRY_CHECK(b.pending > 0, ErrorCode::kInternal,
               "emulated mbarrier: more arrivals in a phase than the {} it was made for", b.count);
  b.bytes += bytes;
  --b.pending;
  end_phase(b);
}

bool EmulatedBarriers::passed(const void* barrier, uint32_t parity) const {
  const auto found = barriers_.find(barrier);
  GANTRY_CHECK(found != barriers_.end(), ErrorCode::kInternal,
               "emulated mbarrier: waited for before it was initialised");
  return found->second.phase != parity;
}

void EmulatedBarriers::copy(void* target, const void* source, uint32_t bytes, const void* barrier) {
  const Barrier& b = find(barrier);
  GANTRY_CHECK(reinterpret_cast<uintptr_t>(target) % 16 == 0 &&
                   reinterpret_cast<uintptr_t>(source) % 16 == 0 && bytes % 16 == 0 && bytes > 0,
               ErrorCode::kInternal,
               "emulated bulk copy: addresses and size must be multiples of 16, found {} bytes",
               bytes);
  GANTRY_CHECK(inside(target, bytes), ErrorCode::kInternal,
               "emulated bulk copy: {} bytes end outside shared memory", bytes);
  GANTRY_CHECK(b.bytes >= bytes, ErrorCode::kInternal,
               "emulated bulk copy: {} bytes, the barrier expects {}", bytes, b.bytes);
  std::memset(target, 0xff, bytes);
  copies_.push_back({target, source, bytes, barrier});
}

bool EmulatedBarriers::idle() const noexcept {
  return copies_.empty() && std::all_of(barriers_.begin(), barriers_.end(),
                                        [](const auto& entry) { return entry.second.bytes == 0; });
}

bool EmulatedBarriers::land_some(std::mt19937_64& engine, bool at_least_one) {
  if (copies_.empty()) return false;
  std::vector<Copy> later;
  const size_t certain = at_least_one ? engine() % copies_.size() : copies_.size();
  bool landed = false;
  for (size_t i = 0; i < copies_.size(); ++i) {
    const Copy& copy = copies_[i];
    if (i != certain && engine() % 2 == 0) {
      later.push_back(copy);
      continue;
    }
    std::memcpy(copy.target, copy.source, copy.bytes);
    Barrier& b = find(copy.barrier);
    GANTRY_CHECK(b.bytes >= copy.bytes, ErrorCode::kInternal,
                 "emulated bulk copy: more bytes than the barrier expects");
    b.bytes -= copy.bytes;
    end_phase(b);
    landed = true;
  }
  copies_ = std::move(later);
  return landed;
}

bool EmulatedBarriers::inside(const void* address, size_t bytes) const {
  const auto* begin = static_cast<const std::byte*>(address);
  return begin >= shared_ && begin + bytes <= shared_ + shared_bytes_;
}

}  // namespace gantry
