#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <random>
#include <vector>

namespace gantry {

/// The mbarriers of an emulated block and the bulk copies that arrive at them. Internal.
///
/// A copy lands at some moment between its start and the end of the phase that counts its bytes;
/// until then its target is 0xff.
/// @source PTX ISA, "mbarrier" and "cp.async.bulk"
class EmulatedBarriers {
 public:
  void reset(std::byte* shared, size_t bytes);
  void init(const void* barrier, uint32_t count);
  /// Makes what was initialised visible to other threads and to copies.
  void publish();
  /// One arrival, which also says that `bytes` more have to land in this phase.
  void arrive(const void* barrier, uint32_t bytes);
  /// Whether the phase of this parity has ended.
  [[nodiscard]] bool passed(const void* barrier, uint32_t parity) const;
  void copy(void* target, const void* source, uint32_t bytes, const void* barrier);

  /// Nothing is under way, nothing is expected.
  [[nodiscard]] bool idle() const noexcept;
  /// Lets some of the copies land, or one at least. @return whether there was one
  bool land_some(std::mt19937_64& engine, bool at_least_one);

 private:
  struct Barrier {
    uint32_t count = 0;
    uint32_t pending = 0;
    int64_t bytes = 0;  // that have to land still
    uint32_t phase = 0;
    bool published = false;
  };
  struct Copy {
    void* target;
    const void* source;
    uint32_t bytes;
    const void* barrier;
  };

  Barrier& find(const void* barrier);
  static void end_phase(Barrier& barrier);
  [[nodiscard]] bool inside(const void* address, size_t bytes) const;

  std::byte* shared_ = nullptr;
  size_t shared_bytes_ = 0;
  std::map<const void*, Barrier> barriers_;
  std::vector<Copy> copies_;
};

}  // namespace gantry
