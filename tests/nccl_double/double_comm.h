#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/nccl_abi.h"
#include "tests/nccl_double/double_plan.h"
#include "tests/nccl_double/double_segment.h"

namespace gantry::nccl_double {

/// Bytes on their way through one channel, behind a header that says how many they are.
struct Transfer {
  std::byte* data = nullptr;  // of a send: only read
  uint64_t bytes = 0;
  size_t done = 0;  // of header and data
  uint64_t header = 0;
};

/// What one call enqueues: transfers, and what is done with them when they are there.
struct Operation {
  struct Part {
    int peer;
    bool sends;
    std::byte* data;
    size_t bytes;
  };
  std::vector<Part> parts;
  std::vector<float> addends;  // [num_ranks, count] of sums
  std::function<void()> finish;
};

/// ncclComm: nothing moves but in polls, so a test decides what happens when.
class DoubleComm {
 public:
  DoubleComm(int rank, int num_ranks, bool blocking);

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return num_ranks_; }

  nccl::Result initialize(const char* name);
  /// Adds to the group that is being put together.
  void add(std::unique_ptr<Operation> operation) { group_.push_back(std::move(operation)); }
  [[nodiscard]] bool has_group() const noexcept { return !group_.empty(); }
  /// Begins what was added.
  nccl::Result submit();
  nccl::Result finalize();
  /// Moves what can be moved. @return kInProgress, kSuccess or what went wrong
  nccl::Result poll();

 private:
  struct Lane {
    std::deque<Transfer> sends;
    std::deque<Transfer> receives;
  };

  nccl::Result begin(const Fault& fault);
  [[nodiscard]] bool move();
  [[nodiscard]] bool move_sends(Lane& lane, Channel& channel) const;
  [[nodiscard]] bool move_receives(Lane& lane, Channel& channel);

  int rank_;
  int num_ranks_;
  bool blocking_;
  Plan plan_;
  Segment segment_;
  std::vector<Lane> lanes_;
  std::vector<std::unique_ptr<Operation>> group_;
  std::vector<std::unique_ptr<Operation>> running_;
  int groups_ = 0;
  bool waits_for_all_ = false;
  Fault fault_;
  nccl::Result failure_ = nccl::kSuccess;
};

}  // namespace gantry::nccl_double
