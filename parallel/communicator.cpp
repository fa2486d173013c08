#include "parallel/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "parallel/parallel_config.h"
#include "parallel/transfer_parts.h"

// Collectives out of groups of sends and receives. What is added up is added here and in rank
// order, so the bits do not depend on the transport.

namespace gantry {
namespace {

void add_in_rank_order(std::span<const float> addends, std::span<float> sum) {
  std::copy_n(addends.begin(), sum.size(), sum.begin());
  for (size_t begin = sum.size(); begin < addends.size(); begin += sum.size()) {
    const float* values = addends.data() + begin;
    for (size_t i = 0; i < sum.size(); ++i)
      sum[i] += values[i];
  }
}

}  // namespace

// Says which operation runs, for people who look from outside.
class Communicator::Scope {
 public:
  Scope(Communicator& communicator, const char* name) : communicator_(&communicator) {
    communicator_->current_.store(name, std::memory_order_relaxed);
    ++communicator_->traffic_.operations;
    communicator_->beat();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() {
    communicator_->current_.store(nullptr, std::memory_order_relaxed);
    communicator_->beat();
  }

 private:
  Communicator* communicator_;
};

Communicator::Communicator()
    : parts_(std::make_unique<TransferParts>()), remote_(std::make_unique<TransferParts>()) {}
Communicator::~Communicator() = default;

void Communicator::refuse(const std::string& message) {
  abort(message.c_str(), ErrorCode::kInvalidArgument);
  fail_with(ErrorCode::kInvalidArgument, message);
}

bool Communicator::reduce_natively(const Operation& /*operation*/, std::span<float> /*data*/) {
  return false;
}

void Communicator::reduce_scatter_natively(const Operation& operation,
                                           std::span<const float> /*send*/,
                                           std::span<float> /*receive*/,
                                           std::span<const int64_t> /*counts*/) {
  fail(ErrorCode::kUnsupported, "{}: this transport has no reduction of its own", operation.name);
}

void Communicator::check_sizes(const char* what, std::span<const int64_t> sizes, size_t total) {
  const std::string problem = size_problem(sizes, index(size()), total);
  if (!problem.empty()) refuse(fmt::format("{}: {}", what, problem));
}

void Communicator::run(const Operation& operation, std::span<const SendPart> sends,
                       std::span<const ReceivePart> receives) {
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
  const std::string problem = remote_->take_remote(
      sends, receives, rank(), size(),
      [](const SendPart& from, const ReceivePart& to) {
        std::memcpy(to.data.data(), from.data.data(), from.data.size());
      },
      bytes_sent, bytes_received);
  if (!problem.empty()) refuse(fmt::format("{}: {}", operation.name, problem));
  exchange(operation, remote_->sends, remote_->receives);
  traffic_.bytes_sent += bytes_sent;
  traffic_.bytes_received += bytes_received;
}

void Communicator::barrier() {
  const Scope scope(*this, "barrier");
  run({.name = "barrier"}, {}, {});
}

void Communicator::send_receive(std::span<const SendPart> sends,
                                std::span<const ReceivePart> receives) {
  const Scope scope(*this, "send_receive");
  run({.name = "send_receive"}, sends, receives);
}

void Communicator::gather(const Operation& operation, std::span<const std::byte> send,
                          std::span<std::byte> receive, std::span<const int64_t> receive_bytes) {
  parts_->set_all_gather(send, receive, receive_bytes);
  run(operation, parts_->sends, parts_->receives);
}

void Communicator::all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                              std::span<const int64_t> receive_bytes) {
  const Scope scope(*this, "all_gather");
  check_sizes("all_gather", receive_bytes, receive.size());
  if (send.size() != static_cast<size_t>(receive_bytes[index(rank())])) {
    refuse(fmt::format("all_gather: rank {} sends {} bytes, expected {}", rank(), send.size(),
                       receive_bytes[index(rank())]));
  }
  gather({.name = "all_gather"}, send, receive, receive_bytes);
}

void Communicator::broadcast(std::span<std::byte> data, int root) {
  const Scope scope(*this, "broadcast");
  if (root < 0 || root >= size()) refuse(fmt::format("broadcast: root {} of {}", root, size()));
  parts_->set_broadcast(data, root, rank(), size());
  run({.name = "broadcast", .root = root}, parts_->sends, parts_->receives);
}

void Communicator::all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                              std::span<std::byte> receive,
                              std::span<const int64_t> receive_bytes) {
  const Scope scope(*this, "all_to_all");
  check_sizes("all_to_all (send)", send_bytes, send.size());
  check_sizes("all_to_all (receive)", receive_bytes, receive.size());
  parts_->set_all_to_all(send, send_bytes, receive, receive_bytes);
  run({.name = "all_to_all"}, parts_->sends, parts_->receives);
}

void Communicator::reduce_scatter(const Operation& operation, std::span<const float> send,
                                  std::span<float> receive, std::span<const int64_t> counts) {
  const size_t own = receive.size();
  addends_.resize(own * index(size()));
  parts_->set_reduce_scatter(send, counts, addends_, own);
  run(operation, parts_->sends, parts_->receives);
  if (own > 0) add_in_rank_order(addends_, receive);
}

void Communicator::check_reduce_scatter(const char* what, std::span<const float> send,
                                        std::span<float> receive, std::span<const int64_t> counts) {
  check_sizes(what, counts, send.size());
  if (receive.size() != static_cast<size_t>(counts[index(rank())])) {
    refuse(fmt::format("{}: rank {} receives {} values, expected {}", what, rank(), receive.size(),
                       counts[index(rank())]));
  }
}

void Communicator::reduce_scatter_sum_native(std::span<const float> send, std::span<float> receive,
                                             std::span<const int64_t> counts) {
  constexpr Operation kOperation{.name = "reduce_scatter_sum_native"};
  const Scope scope(*this, kOperation.name);
  check_reduce_scatter(kOperation.name, send, receive, counts);
  reduce_scatter_natively(kOperation, send, receive, counts);
}

void Communicator::reduce_scatter_sum(std::span<const float> send, std::span<float> receive,
                                      std::span<const int64_t> counts) {
  const Scope scope(*this, "reduce_scatter_sum");
  check_reduce_scatter("reduce_scatter_sum", send, receive, counts);
  reduce_scatter({.name = "reduce_scatter_sum"}, send, receive, counts);
}

void Communicator::all_reduce_sum(std::span<float> data) {
  const Scope scope(*this, "all_reduce_sum");
  constexpr Operation kOperation{.name = "all_reduce_sum"};
  const size_t ranks = index(size());
  if (data.size_bytes() <= kSumEverywhereBytes) {
    addends_.resize(data.size() * ranks);
    bytes_.assign(ranks, static_cast<int64_t>(data.size_bytes()));
    gather(kOperation, std::as_bytes(data), std::as_writable_bytes(std::span(addends_)), bytes_);
    if (!data.empty()) add_in_rank_order(addends_, data);
    return;
  }
  counts_.clear();
  bytes_.clear();
  for (int other = 0; other < size(); ++other) {
    const int64_t count = split_evenly(static_cast<long>(data.size()), size(), other).size();
    counts_.push_back(count);
    bytes_.push_back(count * static_cast<int64_t>(sizeof(float)));
  }
  own_part_.resize(static_cast<size_t>(counts_[index(rank())]));
  reduce_scatter(kOperation, data, own_part_, counts_);
  gather(kOperation, std::as_bytes(std::span(own_part_)), std::as_writable_bytes(data), bytes_);
}

void Communicator::all_reduce_sum_native(std::span<float> data) {
  {
    const Scope scope(*this, "all_reduce_sum_native");
    if (size() == 1 || reduce_natively({.name = "all_reduce_sum_native"}, data)) return;
  }
  all_reduce_sum(data);
}

}  // namespace gantry
