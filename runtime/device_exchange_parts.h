#pragma once

// What the files of DeviceExchange share. Internal.

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/cuda/exchange_kernels.h"
#include "parallel/device_communicator.h"
#include "runtime/device_weights.h"

namespace gantry {

template <typename T>
std::span<const std::byte> bytes_of(const T* values, int64_t count) {
  return std::as_bytes(std::span(values, static_cast<size_t>(count)));
}
template <typename T>
std::span<std::byte> room_of(T* values, int64_t count) {
  return std::as_writable_bytes(std::span(values, static_cast<size_t>(count)));
}

inline IdRanks ranks_of(const DeviceExperts::IdMap& ids) {
  return {ids.ep_rank.as<int32_t>(), ids.num_ids};
}

/// Adds what operations moved during its life to sums of ExchangeBytes.
class Count {
 public:
  Count(const DeviceCommunicator& world, int64_t& sent, int64_t& received, int64_t& collectives)
      : world_(world), sent_(sent), received_(received), collectives_(collectives) {}
  Count(const Count&) = delete;
  Count& operator=(const Count&) = delete;
  ~Count() {
    sent_ += world_.traffic().bytes_sent - before_.bytes_sent;
    received_ += world_.traffic().bytes_received - before_.bytes_received;
    collectives_ += world_.traffic().operations - before_.operations;
  }

 private:
  const DeviceCommunicator& world_;
  int64_t& sent_;
  int64_t& received_;
  int64_t& collectives_;
  Traffic before_ = world_.traffic();
};

}  // namespace gantry
