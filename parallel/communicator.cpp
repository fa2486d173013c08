#include "parallel/communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "parallel/parallel_config.h"

// Collectives out of groups of sends and receives. What is added up is added here and in rank
// order, so the bits do not depend on the transport.

namespace gantry {
namespace {

// Up to this many bytes every rank sums everything: one round of messages instead of two.
constexpr size_t kSumEverywhereBytes = size_t{16} << 10;

size_t index(int rank) { return static_cast<size_t>(rank); }

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
  if (sizes.size() != index(size())) {
    refuse(fmt::format("{}: expected {} sizes, found {}", what, size(), sizes.size()));
  }
  // Subtracted, not added: a sum of any sizes could overflow.
  size_t rest = total;
  for (const int64_t one : sizes) {
    if (one < 0 || static_cast<size_t>(one) > rest) {
      refuse(fmt::format("{}: a size of {} does not fit, the buffer has {}", what, one, total));
    }
    rest -= static_cast<size_t>(one);
  }
  if (rest != 0) {
    refuse(fmt::format("{}: sizes sum to {}, the buffer has {}", what, total - rest, total));
  }
}

void Communicator::run(const Operation& operation, std::span<const SendPart> sends,
                       std::span<const ReceivePart> receives) {
  const auto is_rank = [&](int peer) { return peer >= 0 && peer < size(); };
  remote_sends_.clear();
  remote_receives_.clear();
  auto own_receive = receives.begin();
  int64_t bytes_sent = 0;
  int64_t bytes_received = 0;
  for (const SendPart& part : sends) {
    if (!is_rank(part.peer)) {
      refuse(fmt::format("{}: sends to rank {} of {}", operation.name, part.peer, size()));
    }
    if (part.peer != rank()) {
      remote_sends_.push_back(part);
      bytes_sent += static_cast<int64_t>(part.data.size());
      continue;
    }
    own_receive = std::find_if(own_receive, receives.end(),
                               [&](const ReceivePart& other) { return other.peer == rank(); });
    if (own_receive == receives.end() || own_receive->data.size() != part.data.size()) {
      refuse(fmt::format("{}: rank {} sends {} bytes to itself, but does not receive as many",
                         operation.name, rank(), part.data.size()));
    }
    if (!part.data.empty()) {
      std::memcpy(own_receive->data.data(), part.data.data(), part.data.size());
    }
    ++own_receive;
  }
  for (auto part = receives.begin(); part != receives.end(); ++part) {
    if (!is_rank(part->peer)) {
      refuse(fmt::format("{}: receives from rank {} of {}", operation.name, part->peer, size()));
    }
    if (part->peer == rank()) {
      if (part >= own_receive) {
        refuse(fmt::format("{}: rank {} receives {} bytes from itself that it does not send",
                           operation.name, rank(), part->data.size()));
      }
      continue;
    }
    remote_receives_.push_back(*part);
    bytes_received += static_cast<int64_t>(part->data.size());
  }
  exchange(operation, remote_sends_, remote_receives_);
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
  sends_.clear();
  receives_.clear();
  size_t offset = 0;
  for (int other = 0; other < size(); ++other) {
    const auto bytes = static_cast<size_t>(receive_bytes[index(other)]);
    sends_.push_back({other, send});
    receives_.push_back({other, receive.subspan(offset, bytes)});
    offset += bytes;
  }
  run(operation, sends_, receives_);
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
  sends_.clear();
  receives_.clear();
  if (rank() == root) {
    for (int other = 0; other < size(); ++other) {
      if (other != root) sends_.push_back({other, data});
    }
  } else {
    receives_.push_back({root, data});
  }
  run({.name = "broadcast", .root = root}, sends_, receives_);
}

void Communicator::all_to_all(std::span<const std::byte> send, std::span<const int64_t> send_bytes,
                              std::span<std::byte> receive,
                              std::span<const int64_t> receive_bytes) {
  const Scope scope(*this, "all_to_all");
  check_sizes("all_to_all (send)", send_bytes, send.size());
  check_sizes("all_to_all (receive)", receive_bytes, receive.size());
  sends_.clear();
  receives_.clear();
  size_t send_offset = 0;
  size_t receive_offset = 0;
  for (int other = 0; other < size(); ++other) {
    const auto to = static_cast<size_t>(send_bytes[index(other)]);
    const auto from = static_cast<size_t>(receive_bytes[index(other)]);
    sends_.push_back({other, send.subspan(send_offset, to)});
    receives_.push_back({other, receive.subspan(receive_offset, from)});
    send_offset += to;
    receive_offset += from;
  }
  run({.name = "all_to_all"}, sends_, receives_);
}

void Communicator::reduce_scatter(const Operation& operation, std::span<const float> send,
                                  std::span<float> receive, std::span<const int64_t> counts) {
  const size_t own = receive.size();
  addends_.resize(own * index(size()));
  sends_.clear();
  receives_.clear();
  size_t offset = 0;
  for (int other = 0; other < size(); ++other) {
    const auto count = static_cast<size_t>(counts[index(other)]);
    sends_.push_back({other, std::as_bytes(send.subspan(offset, count))});
    receives_.push_back(
        {other, std::as_writable_bytes(std::span(addends_).subspan(index(other) * own, own))});
    offset += count;
  }
  run(operation, sends_, receives_);
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
