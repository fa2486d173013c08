#include "tests/nccl_double/double_comm.h"

#include <sched.h>

#include <algorithm>

namespace gantry::nccl_double {

using nccl::Result;

DoubleComm::DoubleComm(int rank, int num_ranks, bool blocking)
    : rank_(rank),
      num_ranks_(num_ranks),
      blocking_(blocking),
      plan_(current_plan()),
      lanes_(static_cast<size_t>(num_ranks)) {
  if (plan_.rank >= 0 && plan_.rank != rank) {
    plan_ = Plan();  // the faults are another rank's
  }
}

Result DoubleComm::initialize(const char* name) {
  if (plan_.init.kind == Fault::kHang) {  // not even here, as a process that was stopped
    fault_ = plan_.init;
    return nccl::kInProgress;
  }
  if (!segment_.open(name, num_ranks_)) return failure_ = nccl::kSystemError;
  waits_for_all_ = true;
  return begin(plan_.init);
}

Result DoubleComm::submit() {
  const bool faulty = groups_++ == plan_.op_index;
  for (auto& operation : group_) {
    for (const Operation::Part& part : operation->parts) {
      Lane& lane = lanes_[static_cast<size_t>(part.peer)];
      Transfer transfer{.data = part.data, .bytes = part.bytes};
      if (part.sends) transfer.header = part.bytes;
      (part.sends ? lane.sends : lane.receives).push_back(transfer);
    }
    running_.push_back(std::move(operation));
  }
  group_.clear();
  return begin(faulty ? plan_.op : Fault());
}

Result DoubleComm::finalize() { return begin(plan_.finalize); }

Result DoubleComm::begin(const Fault& fault) {
  if (failure_ != nccl::kSuccess) return failure_;
  fault_ = fault;
  if (fault.kind == Fault::kCall) return fault.result;
  if (fault.kind == Fault::kError) {
    failure_ = fault.result;
    return nccl::kInProgress;
  }
  Result state = poll();
  while (blocking_ && state == nccl::kInProgress) {
    sched_yield();
    state = poll();
  }
  return state;
}

Result DoubleComm::poll() {
  if (failure_ != nccl::kSuccess) return failure_;
  if (fault_.kind == Fault::kHang) return nccl::kInProgress;
  if (fault_.kind == Fault::kProgress && fault_.polls-- > 0) return nccl::kInProgress;
  if (waits_for_all_) {
    if (!segment_.everyone_is_here()) return nccl::kInProgress;
    waits_for_all_ = false;
  }
  if (!move()) return failure_ != nccl::kSuccess ? failure_ : nccl::kInProgress;
  for (const auto& operation : running_) {
    if (operation->finish) operation->finish();
  }
  running_.clear();
  return nccl::kSuccess;
}

// @return true when everything has moved
bool DoubleComm::move() {
  bool all = true;
  for (int peer = 0; peer < num_ranks_; ++peer) {
    Lane& lane = lanes_[static_cast<size_t>(peer)];
    all &= move_sends(lane, segment_.channel(rank_, peer));
    all &= move_receives(lane, segment_.channel(peer, rank_));
  }
  return all;
}

bool DoubleComm::move_sends(Lane& lane, Channel& channel) const {
  constexpr size_t kHeader = sizeof(Transfer::header);
  while (!lane.sends.empty()) {
    Transfer& transfer = lane.sends.front();
    if (transfer.done < kHeader) {
      transfer.done += channel.write(reinterpret_cast<std::byte*>(&transfer.header) + transfer.done,
                                     kHeader - transfer.done);
      if (transfer.done < kHeader) return false;
    }
    const size_t at = transfer.done - kHeader;
    transfer.done += channel.write(transfer.data + at, transfer.bytes - at);
    if (transfer.done < kHeader + transfer.bytes) return false;
    lane.sends.pop_front();
  }
  return true;
}

bool DoubleComm::move_receives(Lane& lane, Channel& channel) {
  constexpr size_t kHeader = sizeof(Transfer::header);
  while (!lane.receives.empty()) {
    Transfer& transfer = lane.receives.front();
    if (transfer.done < kHeader) {
      transfer.done += channel.take(reinterpret_cast<std::byte*>(&transfer.header) + transfer.done,
                                    kHeader - transfer.done);
      if (transfer.done < kHeader) return false;
      if (transfer.header != transfer.bytes) {  // where NCCL itself would hang or overwrite memory
        failure_ = nccl::kInvalidUsage;
        return false;
      }
    }
    const size_t at = transfer.done - kHeader;
    transfer.done += channel.take(transfer.data + at, transfer.bytes - at);
    if (transfer.done < kHeader + transfer.bytes) return false;
    lane.receives.pop_front();
  }
  return true;
}

}  // namespace gantry::nccl_double
