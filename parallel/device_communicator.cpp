#include "parallel/device_communicator.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/device_kernels.h"
#include "parallel/back_off.h"
#include "parallel/parallel_config.h"
#include "parallel/transfer_parts.h"

// Collectives on device memory out of groups of sends and receives, where the transport has none of
// its own. Sums in rank order are made here by a kernel, so the bits do not depend on the
// transport.

namespace gantry {
namespace {

// Polls of a stream between two looks at the group.
constexpr int kPollsOfStream = 64;

}  // namespace

std::string_view to_string(SumOrder order) noexcept {
  return order == SumOrder::kRank ? "rank" : "native";
}

SumOrder parse_sum_order(std::string_view name) {
  if (name == "rank") return SumOrder::kRank;
  if (name == "native") return SumOrder::kNative;
  fail(ErrorCode::kInvalidArgument, "order of sums: expected rank or native, found '{}'", name);
}

// Says which operation runs, for people who look from outside.
class DeviceCommunicator::Scope {
 public:
  Scope(DeviceCommunicator& communicator, const char* name) : communicator_(&communicator) {
    communicator_->current_.store(name, std::memory_order_relaxed);
    ++communicator_->traffic_.operations;
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() { communicator_->current_.store(nullptr, std::memory_order_relaxed); }

 private:
  DeviceCommunicator* communicator_;
};

DeviceCommunicator::DeviceCommunicator(std::shared_ptr<Device> device,
                                       const CommunicatorOptions& options)
    : device_(std::move(device)),
      options_(options),
      parts_(std::make_unique<TransferParts>()),
      remote_(std::make_unique<TransferParts>()) {}
DeviceCommunicator::~DeviceCommunicator() = default;

bool DeviceCommunicator::gather_evenly(std::span<const std::byte> /*send*/,
                                       std::span<std::byte> /*receive*/, StreamHandle /*stream*/) {
  return false;
}

bool DeviceCommunicator::all_reduce_natively(std::span<float> /*data*/, StreamHandle /*stream*/) {
  return false;
}

bool DeviceCommunicator::reduce_scatter_natively(std::span<const float> /*send*/,
                                                 std::span<float> /*receive*/,
                                                 std::span<const int64_t> /*counts*/,
                                                 StreamHandle /*stream*/) {
  return false;
}

const char* DeviceCommunicator::operation_name() const noexcept {
  const char* name = current_operation();
  return name == nullptr ? "wait" : name;
}

void DeviceCommunicator::refuse(const std::string& message) {
  fail_group(ErrorCode::kInvalidArgument, message);
}

void DeviceCommunicator::check_sizes(const char* what, std::span<const int64_t> sizes,
                                     size_t total) {
  const std::string problem = size_problem(sizes, index(size()), total);
  if (!problem.empty()) refuse(fmt::format("{}: {}", what, problem));
}

void DeviceCommunicator::count_traffic(int64_t sent, int64_t received) noexcept {
  traffic_.bytes_sent += sent;
  traffic_.bytes_received += received;
}

void DeviceCommunicator::run(std::span<const SendPart> sends, std::span<const ReceivePart> receives,
                             StreamHandle stream) {
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
  const std::string problem = remote_->take_remote(
      sends, receives, rank(), size(),
      [&](const SendPart& from, const ReceivePart& to) {
        if (from.data.data() == to.data.data()) return;  // gathered in place
        device_->copy_within(to.data.data(), from.data.data(), from.data.size(), stream);
      },
      bytes_sent, bytes_received);
  if (!problem.empty()) refuse(fmt::format("{}: {}", operation_name(), problem));
  exchange(remote_->sends, remote_->receives, stream);
  count_traffic(bytes_sent, bytes_received);
}

void DeviceCommunicator::barrier(StreamHandle stream) {
  const Scope scope(*this, "barrier");
  // Four bytes of everyone: also a transport that moves nothing for no bytes waits.
  std::byte* data = reinterpret_cast<std::byte*>(addends(index(size())));
  bytes_.assign(index(size()), sizeof(float));
  const std::span<std::byte> all(data, index(size()) * sizeof(float));
  gather(all.subspan(index(rank()) * sizeof(float), sizeof(float)), all, bytes_, stream);
  wait(stream);
}

void DeviceCommunicator::send_receive(std::span<const SendPart> sends,
                                      std::span<const ReceivePart> receives, StreamHandle stream) {
  const Scope scope(*this, "send_receive");
  run(sends, receives, stream);
}

void DeviceCommunicator::gather(std::span<const std::byte> send, std::span<std::byte> receive,
                                std::span<const int64_t> receive_bytes, StreamHandle stream) {
  const bool even = std::all_of(receive_bytes.begin(), receive_bytes.end(),
                                [&](int64_t bytes) { return bytes == receive_bytes[0]; });
  if (even && gather_evenly(send, receive, stream)) {
    const auto others = static_cast<int64_t>(send.size()) * (size() - 1);
    return count_traffic(others, others);
  }
  parts_->set_all_gather(send, receive, receive_bytes);
  run(parts_->sends, parts_->receives, stream);
}

void DeviceCommunicator::all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                                    std::span<const int64_t> receive_bytes, StreamHandle stream) {
  const Scope scope(*this, "all_gather");
  check_sizes("all_gather", receive_bytes, receive.size());
  if (send.size() != static_cast<size_t>(receive_bytes[index(rank())])) {
    refuse(fmt::format("all_gather: rank {} sends {} bytes, expected {}", rank(), send.size(),
                       receive_bytes[index(rank())]));
  }
  gather(send, receive, receive_bytes, stream);
}

void DeviceCommunicator::broadcast(std::span<std::byte> data, int root, StreamHandle stream) {
  const Scope scope(*this, "broadcast");
  if (root < 0 || root >= size()) refuse(fmt::format("broadcast: root {} of {}", root, size()));
  parts_->set_broadcast(data, root, rank(), size());
  run(parts_->sends, parts_->receives, stream);
}

void DeviceCommunicator::all_to_all(std::span<const std::byte> send,
                                    std::span<const int64_t> send_bytes,
                                    std::span<std::byte> receive,
                                    std::span<const int64_t> receive_bytes, StreamHandle stream) {
  const Scope scope(*this, "all_to_all");
  check_sizes("all_to_all (send)", send_bytes, send.size());
  check_sizes("all_to_all (receive)", receive_bytes, receive.size());
  parts_->set_all_to_all(send, send_bytes, receive, receive_bytes);
  run(parts_->sends, parts_->receives, stream);
}

float* DeviceCommunicator::addends(size_t count) {
  if (addends_.size() < count * sizeof(float)) {
    addends_ = DeviceBuffer();  // first gone, then larger
    addends_ = DeviceBuffer(device_, count * sizeof(float));
  }
  return addends_.as<float>();
}

void DeviceCommunicator::reserve_sums(int64_t count) {
  const auto values = static_cast<size_t>(count);
  const size_t everywhere = std::min(values, kSumEverywhereBytes / sizeof(float)) * index(size());
  (void)addends(std::max({everywhere, values + index(size()) * index(size()), index(size())}));
}

void DeviceCommunicator::sum_parts(std::span<const float> send, std::span<float> receive,
                                   std::span<const int64_t> counts, StreamHandle stream) {
  const size_t own = receive.size();
  float* rows = addends(own * index(size()));
  parts_->set_reduce_scatter(send, counts, {rows, own * index(size())}, own);
  run(parts_->sends, parts_->receives, stream);
  if (own == 0) return;
  device_->kernels().add_rows(
      {.addends = rows, .sum = receive.data(), .count = static_cast<int64_t>(own), .rows = size()},
      device_->attributes(), stream);
}

void DeviceCommunicator::reduce_scatter_sum(std::span<const float> send, std::span<float> receive,
                                            std::span<const int64_t> counts, SumOrder order,
                                            StreamHandle stream) {
  const Scope scope(*this, "reduce_scatter_sum");
  check_sizes("reduce_scatter_sum", counts, send.size());
  if (receive.size() != static_cast<size_t>(counts[index(rank())])) {
    refuse(fmt::format("reduce_scatter_sum: rank {} receives {} values, expected {}", rank(),
                       receive.size(), counts[index(rank())]));
  }
  if (order == SumOrder::kNative && reduce_scatter_natively(send, receive, counts, stream)) return;
  sum_parts(send, receive, counts, stream);
}

void DeviceCommunicator::all_reduce_sum(std::span<float> data, SumOrder order,
                                        StreamHandle stream) {
  const Scope scope(*this, "all_reduce_sum");
  if (order == SumOrder::kNative && (size() == 1 || all_reduce_natively(data, stream))) return;
  const size_t ranks = index(size());
  if (data.size_bytes() <= kSumEverywhereBytes) {
    float* rows = addends(data.size() * ranks);
    bytes_.assign(ranks, static_cast<int64_t>(data.size_bytes()));
    gather(std::as_bytes(data), std::as_writable_bytes(std::span(rows, data.size() * ranks)),
           bytes_, stream);
    if (data.empty()) return;
    return device_->kernels().add_rows({.addends = rows,
                                        .sum = data.data(),
                                        .count = static_cast<int64_t>(data.size()),
                                        .rows = size()},
                                       device_->attributes(), stream);
  }
  counts_.clear();
  bytes_.clear();
  Slice own;
  for (int other = 0; other < size(); ++other) {
    const Slice part = split_evenly(static_cast<long>(data.size()), size(), other);
    if (other == rank()) own = part;
    counts_.push_back(part.size());
    bytes_.push_back(part.size() * static_cast<int64_t>(sizeof(float)));
  }
  // The stream's order makes this safe: all parts have left before the sum is written.
  const std::span<float> own_part =
      data.subspan(static_cast<size_t>(own.begin), static_cast<size_t>(own.size()));
  sum_parts(data, own_part, counts_, stream);
  gather(std::as_bytes(own_part), std::as_writable_bytes(data), bytes_, stream);
}

void DeviceCommunicator::wait(StreamHandle stream) {
  const auto end = Clock::now() + options_.timeout;
  for (int polls = 0;; ++polls) {
    try {
      if (device_->idle(stream)) return check_alive();
    } catch (const GroupAborted&) {
      throw;
    } catch (const Error& error) {
      fail_group(error.code(), fmt::format("{}: {}", operation_name(), error.what()));
    }
    if (polls % kPollsOfStream == kPollsOfStream - 1) check_alive();
    if (Clock::now() > end) {
      fail_group(ErrorCode::kTimeout,
                 fmt::format("{}: the device of rank {} of {} was not done within {:.1f} s",
                             operation_name(), rank(), size(),
                             std::chrono::duration<double>(options_.timeout).count()));
    }
    back_off(polls);
  }
}

}  // namespace gantry
