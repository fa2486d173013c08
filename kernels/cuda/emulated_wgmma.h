#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "kernels/cuda/wgmma_descriptor.h"

namespace gantry {

inline constexpr int kWarpgroup = 128;
/// Where emulated shared memory begins, as descriptors see it.
inline constexpr uint32_t kEmulatedSharedBase = 1024;

/// Byte `byte` of row `row` of an operand in shared memory: the descriptor read back as the PTX ISA
/// documents it, knowing nothing of who made it.
/// @return address in shared memory
uint32_t descriptor_address(uint64_t descriptor, int row, int byte);

/// The asynchronous products of one emulated thread. Internal.
///
/// From issue to wait the accumulators are 0xff and nobody may touch them or the registers of A, or
/// the bytes of B: each is checked when the product lands.
class EmulatedWgmma {
 public:
  void reset() { *this = {}; }
  void fence() noexcept { fenced_ = true; }
  void issue(WgmmaType type, std::span<float> d, const uint32_t (&a)[4], uint64_t b,
             bool accumulate, std::span<const std::byte> shared, bool first_of_warpgroup);
  void commit();
  [[nodiscard]] bool idle() const noexcept { return groups_.empty() && open_.empty(); }

  /// Lands all but the newest groups of the 128 threads of a warpgroup.
  static void land(const std::array<EmulatedWgmma*, kWarpgroup>& threads, int newest,
                   std::span<const std::byte> shared);

 private:
  struct Call {
    WgmmaType type;
    std::span<float> d;
    const uint32_t* a;
    std::array<uint32_t, 4> bits;
    uint64_t b;
    bool accumulate;
    uint64_t b_hash;  // of the warpgroup's first thread
  };
  struct Sums {
    std::span<float> d;
    std::vector<float> values;
    int in_flight = 0;
  };
  Sums& sums_of(std::span<float> d);
  void finish(const Call& call);

  bool fenced_ = false;
  std::vector<Call> open_;
  std::deque<std::vector<Call>> groups_;
  std::vector<Sums> sums_;
};

}  // namespace gantry
