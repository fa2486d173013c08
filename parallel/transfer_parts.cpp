#include "parallel/transfer_parts.h"

#include <fmt/format.h>

#include <algorithm>

namespace gantry {

void TransferParts::set_all_gather(std::span<const std::byte> send, std::span<std::byte> receive,
                                   std::span<const int64_t> receive_bytes) {
  sends.clear();
  receives.clear();
  size_t offset = 0;
  for (size_t other = 0; other < receive_bytes.size(); ++other) {
    const auto bytes = static_cast<size_t>(receive_bytes[other]);
    sends.push_back({static_cast<int>(other), send});
    receives.push_back({static_cast<int>(other), receive.subspan(offset, bytes)});
    offset += bytes;
  }
}

void TransferParts::set_broadcast(std::span<std::byte> data, int root, int rank, int size) {
  sends.clear();
  receives.clear();
  if (rank != root) {
    receives.push_back({root, data});
    return;
  }
  for (int other = 0; other < size; ++other) {
    if (other != root) sends.push_back({other, data});
  }
}

void TransferParts::set_all_to_all(std::span<const std::byte> send,
                                   std::span<const int64_t> send_bytes,
                                   std::span<std::byte> receive,
                                   std::span<const int64_t> receive_bytes) {
  sends.clear();
  receives.clear();
  size_t send_offset = 0;
  size_t receive_offset = 0;
  for (size_t other = 0; other < send_bytes.size(); ++other) {
    const auto to = static_cast<size_t>(send_bytes[other]);
    const auto from = static_cast<size_t>(receive_bytes[other]);
    sends.push_back({static_cast<int>(other), send.subspan(send_offset, to)});
    receives.push_back({static_cast<int>(other), receive.subspan(receive_offset, from)});
    send_offset += to;
    receive_offset += from;
  }
}

void TransferParts::set_reduce_scatter(std::span<const float> send, std::span<const int64_t> counts,
                                       std::span<float> rows, size_t own) {
  sends.clear();
  receives.clear();
  size_t offset = 0;
  for (size_t other = 0; other < counts.size(); ++other) {
    const auto count = static_cast<size_t>(counts[other]);
    sends.push_back({static_cast<int>(other), std::as_bytes(send.subspan(offset, count))});
    receives.push_back(
        {static_cast<int>(other), std::as_writable_bytes(rows.subspan(other * own, own))});
    offset += count;
  }
}

std::string TransferParts::take_remote(
    std::span<const SendPart> all_sends, std::span<const ReceivePart> all_receives, int rank,
    int size, const std::function<void(const SendPart&, const ReceivePart&)>& copy,
    int64_t& bytes_sent, int64_t& bytes_received) {
  const auto is_rank = [&](int peer) { return peer >= 0 && peer < size; };
  sends.clear();
  receives.clear();
  bytes_sent = 0;
  bytes_received = 0;
  auto own_receive = all_receives.begin();
  for (const SendPart& part : all_sends) {
    if (!is_rank(part.peer)) return fmt::format("sends to rank {} of {}", part.peer, size);
    if (part.peer != rank) {
      sends.push_back(part);
      bytes_sent += static_cast<int64_t>(part.data.size());
      continue;
    }
    own_receive = std::find_if(own_receive, all_receives.end(),
                               [&](const ReceivePart& other) { return other.peer == rank; });
    if (own_receive == all_receives.end() || own_receive->data.size() != part.data.size()) {
      return fmt::format("rank {} sends {} bytes to itself, but does not receive as many", rank,
                         part.data.size());
    }
    if (!part.data.empty()) copy(part, *own_receive);
    ++own_receive;
  }
  for (auto part = all_receives.begin(); part != all_receives.end(); ++part) {
    if (!is_rank(part->peer)) return fmt::format("receives from rank {} of {}", part->peer, size);
    if (part->peer != rank) {
      receives.push_back(*part);
      bytes_received += static_cast<int64_t>(part->data.size());
    } else if (part >= own_receive) {
      return fmt::format("rank {} receives {} bytes from itself that it does not send", rank,
                         part->data.size());
    }
  }
  return "";
}

std::string size_problem(std::span<const int64_t> sizes, size_t count, size_t total) {
  if (sizes.size() != count) {
    return fmt::format("expected {} sizes, found {}", count, sizes.size());
  }
  // Subtracted, not added: a sum of any sizes could overflow.
  size_t rest = total;
  for (const int64_t one : sizes) {
    if (one < 0 || static_cast<size_t>(one) > rest) {
      return fmt::format("a size of {} does not fit, the buffer has {}", one, total);
    }
    rest -= static_cast<size_t>(one);
  }
  if (rest == 0) return "";
  return fmt::format("sizes sum to {}, the buffer has {}", total - rest, total);
}

}  // namespace gantry
