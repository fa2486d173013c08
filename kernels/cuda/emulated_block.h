#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "kernels/cuda/launch_shape.h"
#include "kernels/cuda/wgmma_descriptor.h"

namespace gantry GANTRY_API {

class EmulatedBlock;

/// 16 bytes, as one thread loads and stores them.
struct alignas(16) Bits128 {
  uint32_t words[4];
};

/// What a kernel's body sees of the GPU, as one emulated thread. The device's twin is DeviceMachine
/// (device_machine.cuh): a body is a template over the two.
///
/// Threads are fibers of one host thread, run in an order that a seed shuffles between any two
/// synchronisations: a body that forgets one gives different results. Shared memory starts as NaN;
/// asynchronous copies land when they are waited for and not before, or at any moment where that
/// is all the hardware promises (emulated_barriers.h, emulated_wgmma.h).
class EmulatedMachine {
 public:
  EmulatedMachine(EmulatedBlock& block, int thread) : block_(&block), thread_(thread) {}

  [[nodiscard]] int thread() const noexcept { return thread_; }
  [[nodiscard]] int num_threads() const noexcept;
  [[nodiscard]] int64_t block() const noexcept;
  [[nodiscard]] int64_t num_blocks() const noexcept;
  [[nodiscard]] std::byte* shared() const noexcept;

  /// Waits for all threads of the block.
  void sync();
  /// Waits for all lanes of the warp.
  void sync_warp();
  /// The value of lane `lane ^ mask`. All lanes of the warp take part.
  float shuffle_xor(float value, int mask);
  int32_t shuffle_xor(int32_t value, int mask);

  /// c += a * b, the warp's m16n8k16 product; fragments as in the PTX manual (mma_fragments.h).
  void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
  void mma_f16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

  /// Element by element on two bf16, rounded to nearest even.
  static uint32_t mul_bf16x2(uint32_t a, uint32_t b) noexcept;
  static uint32_t sub_bf16x2(uint32_t a, uint32_t b) noexcept;

  /// Reads that bypass the L1 cache: weights, which nothing on this SM reads again.
  static Bits128 load_stream(const void* source) noexcept {
    Bits128 value;
    std::memcpy(&value, source, sizeof value);
    return value;
  }

  /// Copies 16 bytes to shared memory, asynchronously.
  void copy16_async(void* shared, const void* source);
  void commit_copies();
  /// Waits until all but the newest `newest` groups of this thread's copies have landed.
  void wait_copies(int newest);

  // From here on: sm_90a only (Sm90Machine).

  /// What descriptors call an address in shared memory.
  [[nodiscard]] uint32_t shared_address(const void* shared) const noexcept;
  /// An mbarrier whose phases end after `count` arrivals, and the bytes that they expect.
  void init_barrier(uint64_t* barrier, uint32_t count);
  /// Makes initialised barriers visible to other threads (after the next sync) and to copies.
  void publish_barriers();
  void arrive(uint64_t* barrier);
  void arrive_expecting(uint64_t* barrier, uint32_t bytes);
  /// Waits for the end of the phase of this parity; the phase before the first one has parity 1.
  void wait_barrier(uint64_t* barrier, uint32_t parity);
  /// Copies multiples of 16 bytes to shared memory, asynchronously; they count at `barrier`.
  void copy_bulk(void* shared, const void* source, uint32_t bytes, uint64_t* barrier);
  /// Makes what this thread wrote to shared memory visible to wgmma (after the next sync).
  void publish_shared() noexcept {}
  /// Gives back, or asks for, registers of the warpgroup.
  template <int kRegisters>
  void fewer_registers() noexcept {}
  template <int kRegisters>
  void more_registers() noexcept {}

  /// Between other uses of registers and the products that use them: before every group.
  void wgmma_fence();
  /// d = a * b (+ d), asynchronously, of the warpgroup: 64 rows (16 a warp) x 2 kRegisters columns.
  template <WgmmaType kType, int kRegisters>
  void wgmma(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    issue_wgmma(kType, d, a, b, accumulate);
  }
  void wgmma_commit();
  /// Waits until all but the newest groups have landed.
  template <int kNewest>
  void wgmma_wait() {
    wait_wgmma(kNewest);
  }

 private:
  void issue_wgmma(WgmmaType type, std::span<float> d, const uint32_t (&a)[4], uint64_t b,
                   bool accumulate);
  void wait_wgmma(int newest);

  EmulatedBlock* block_;
  int thread_;
};

/// Runs `body` for every thread of every block.
/// @param seed shuffles the order of threads and blocks
/// @throws Error kInternal if threads wait for each other for ever, leave a block while others wait
///         at a barrier, or meet in different collectives; and whatever a body throws
void run_emulated(const LaunchShape& shape, uint64_t seed,
                  const std::function<void(EmulatedMachine&)>& body);

}  // namespace gantry
