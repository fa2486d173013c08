#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace gantry::nccl_double {

/// A pipe from one rank to another in shared memory: one writer, one reader.
struct Channel {
  static constexpr size_t kBytes = size_t{32} << 10;

  std::atomic<uint64_t> written;
  std::atomic<uint64_t> read;
  std::byte data[kBytes];

  /// @return how many of the bytes there was room for
  size_t write(const std::byte* bytes, size_t count) noexcept;
  /// @return how many bytes there were
  size_t take(std::byte* bytes, size_t count) noexcept;
};

/// Memory that the ranks of a communicator share, threads and processes alike. Zeros are its
/// initial state, so that whoever comes first makes it. Its name goes as soon as all ranks have it:
/// ranks that are killed afterwards leave nothing behind. What is left of ranks that were killed
/// before is removed by the next process that makes a name.
class Segment {
 public:
  Segment() = default;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  /// @return false if the system refuses
  bool open(const char* name, int num_ranks);
  [[nodiscard]] Channel& channel(int from, int to) const noexcept;
  [[nodiscard]] bool everyone_is_here() const noexcept;

  /// A name that no other communicator has; removes those whose maker is gone.
  static std::string make_name();

 private:
  struct Head {
    std::atomic<int32_t> arrived;
  };
  static constexpr size_t kHeadBytes = 64;

  std::string name_;
  int num_ranks_ = 0;
  size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace gantry::nccl_double
