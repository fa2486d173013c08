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
/// initial state, so that whoever comes first makes it.
class Segment {
 public:
  Segment() = default;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  /// @return false if the system refuses
  bool open(const char* name, int rank, int num_ranks);
  [[nodiscard]] Channel& channel(int from, int to) const noexcept;
  [[nodiscard]] bool everyone_is_here() const noexcept;

 private:
  struct Head {
    std::atomic<int32_t> arrived;
  };
  static constexpr size_t kHeadBytes = 64;

  std::string name_;
  int rank_ = 0;
  int num_ranks_ = 0;
  size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace gantry::nccl_double
