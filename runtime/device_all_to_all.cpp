// DeviceExchange: all_to_all. Lists of tokens by rank, numbers of tokens that only devices know,
// one payload a (token, rank), one row back.

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/cuda/device_kernels.h"
#include "runtime/device_exchange.h"
#include "runtime/device_exchange_parts.h"

namespace gantry {

// For every EP rank the own tokens that it computes; for every rank of the group those of its
// tokens that this rank computes, which nobody has to send.
void DeviceExchange::list_tokens(const RoutedTokens& input, DeviceScratch& scratch,
                                 StreamHandle stream) {
  Device& device = *world_->device();
  const Slice own = own_tokens();
  const auto group = static_cast<size_t>(config_.dp_rank());
  device.kernels().rank_lists({.topk_ids = input.topk_ids,
                               .ids = ranks_of(*input.ids),
                               .top_k = static_cast<int32_t>(top_k_),
                               .first = own.begin,
                               .count = own.size(),
                               .num_ranks = config_.ep_size,
                               .tokens = group_begin_[group + 1] - group_begin_[group],
                               .num_parts = config_.token_group_size(),
                               .own_rank = config_.ep_rank(),
                               .always_rank = always_rank(),
                               .room = exact_ ? -1 : options_.slots,
                               .stride = scratch.max_own,
                               .lists = scratch.lists,
                               .rows = scratch.list_rows,
                               .counts = scratch.list_counts,
                               .lost = scratch.lost},
                              device.attributes(), stream);
}

// Every rank tells every other (and itself) how many of its tokens, and of their choices, the other
// computes.
void DeviceExchange::exchange_counts(bool tokens, DeviceScratch& scratch, StreamHandle stream) {
  Device& device = *world_->device();
  const int64_t ep_ranks = config_.ep_size;
  const int64_t ranks = config_.world_size();
  int32_t* const own = scratch.pair_counts;                    // [2, ep_size]
  int32_t* const theirs = scratch.pair_counts + 2 * ep_ranks;  // [2, ranks]
  if (tokens) device.copy_within(own, scratch.list_counts, ep_ranks * 4, stream);
  if (ordered()) {
    device.copy_within(own + ep_ranks, scratch.own_choices.counts(ep_ranks), ep_ranks * 4, stream);
  }
  sends_.clear();
  receives_.clear();
  for (int64_t number = tokens ? 0 : 1; number < (ordered() ? 2 : 1); ++number) {
    for (int rank = 0; rank < ranks; ++rank) {
      sends_.push_back({rank, bytes_of(own + number * ep_ranks + rank / config_.tp_size, 1)});
      receives_.push_back({rank, room_of(theirs + number * ranks + rank, 1)});
    }
  }
  world_->send_receive(sends_, receives_, stream);
  device.copy_out(counts_read_.data(), scratch.pair_counts, counts_read_.size() * 4, stream);
  world_->wait(stream);
  const auto take = [&](int64_t begin, std::vector<int64_t>& counts) {
    const auto first = counts_read_.begin() + begin;
    std::copy_n(first, counts.size(), counts.begin());
  };
  if (tokens) {
    take(0, sent_);
    take(2 * ep_ranks, received_);
  }
  if (ordered()) {
    take(ep_ranks, sent_choices_);
    take(2 * ep_ranks + ranks, received_choices_);
  }
  for (int rank = 0; rank < ranks; ++rank) {
    const auto r = static_cast<size_t>(rank);
    const int64_t most = owned(rank).size();
    GANTRY_CHECK(
        (!tokens || (received_[r] >= 0 && received_[r] <= most)) &&
            (!ordered() || (received_choices_[r] >= 0 && received_choices_[r] <= most * top_k_)),
        ErrorCode::kInternal,
        "layer {}: dispatch: rank {} owns {} tokens of top-{} and says that it sends {}, "
        "with {} choices",
        layer_, rank, most, top_k_, received_[r], received_choices_[r]);
  }
}

DispatchedTokens DeviceExchange::send_listed_tokens(const RoutedTokens& input,
                                                    DeviceScratch& scratch, StreamHandle stream) {
  Device& device = *world_->device();
  const int64_t stride = scratch.max_own;
  const int first_of_group = config_.first_of_token_group();
  const GatherTokens common{.x = input.hidden_states,
                            .topk_ids = input.topk_ids,
                            .topk_weights = input.topk_weights,
                            .ids = ranks_of(*input.ids),
                            .stride = stride,
                            .rank = config_.ep_rank(),
                            .top_k = static_cast<int32_t>(top_k_),
                            .n = hidden_size_};
  GatherTokens sent = common;
  sent.lists = scratch.lists;
  sent.counts = scratch.list_counts;
  sent.num_lists = config_.ep_size;
  sent.out_x = scratch.send_x;
  sent.out_ids = scratch.send_ids;
  sent.out_weights = scratch.send_weights;
  if (config_.dp_size > 1) device.kernels().gather_tokens(sent, device.attributes(), stream);

  sends_.clear();
  receives_.clear();
  int64_t row = 0;
  int64_t group_begin = 0;
  for (int rank = 0; rank < config_.world_size(); ++rank) {
    if (rank == first_of_group) group_begin = row;
    const int64_t received = received_[static_cast<size_t>(rank)];
    if (!in_group(rank)) {
      const int64_t ep_rank = rank / config_.tp_size;
      const int64_t from = ep_rank * stride;
      const int64_t count = sent_[static_cast<size_t>(ep_rank)];
      const auto add = [&](const auto* send, auto* receive, int64_t width) {
        sends_.push_back({rank, bytes_of(send + from * width, count * width)});
        receives_.push_back({rank, room_of(receive + row * width, received * width)});
      };
      add(scratch.send_x, scratch.all_x, hidden_size_);
      add(scratch.send_ids, scratch.all_ids, top_k_);
      add(scratch.send_weights, scratch.all_weights, top_k_);
    }
    row += received;
  }
  GatherTokens held = common;
  held.lists = scratch.lists + config_.ep_size * stride;
  held.counts = scratch.list_counts + config_.ep_size;
  held.num_lists = config_.token_group_size();
  held.packed = true;
  held.out_x = scratch.all_x + group_begin * hidden_size_;
  held.out_ids = scratch.all_ids + group_begin * top_k_;
  held.out_weights = scratch.all_weights + group_begin * top_k_;
  device.kernels().gather_tokens(held, device.attributes(), stream);
  if (config_.dp_size > 1) world_->send_receive(sends_, receives_, stream);
  return {.num_tokens = row,
          .hidden_states = scratch.all_x,
          .topk_ids = scratch.all_ids,
          .topk_weights = scratch.all_weights,
          .group_begin = group_begin};
}

void DeviceExchange::reduce_listed(const float* partial, const float* bias, DeviceScratch& scratch,
                                   float* out, StreamHandle stream) {
  Device& device = *world_->device();
  const int64_t h = hidden_size_;
  sends_.clear();
  receives_.clear();
  int64_t row = 0;
  for (int rank = 0; rank < config_.world_size(); ++rank) {
    const int64_t computed = received_[static_cast<size_t>(rank)];
    const int64_t returned = sent_[static_cast<size_t>(rank / config_.tp_size)];
    sends_.push_back({rank, bytes_of(partial + row * h, computed * h)});
    receives_.push_back(
        {rank, room_of(scratch.returned + rank * scratch.max_own * h, returned * h)});
    row += computed;
  }
  world_->send_receive(sends_, receives_, stream);
  device.kernels().sum_returned({.returned = scratch.returned,
                                 .rows = scratch.list_rows,
                                 .bias = bias,
                                 .ep_size = config_.ep_size,
                                 .tp_size = config_.tp_size,
                                 .stride = scratch.max_own,
                                 .num_tokens = own_tokens().size(),
                                 .n = h,
                                 .out = scratch.own_sum},
                                device.attributes(), stream);
  gather_group(scratch.own_sum, out, stream);
}

int64_t DeviceExchange::lost_tokens(DeviceScratch& scratch, StreamHandle stream) {
  if (exact_ || group_begin_.back() == 0) return 0;
  std::vector<int32_t> lost(static_cast<size_t>(config_.ep_size));
  world_->device()->copy_out(lost.data(), scratch.lost, lost.size() * 4, stream);
  world_->wait(stream);
  return *std::max_element(lost.begin(), lost.end());
}

bool DeviceExchange::overflows(DeviceScratch& scratch, StreamHandle stream) {
  if (exact_ || group_begin_.back() == 0) return false;
  const std::vector<int64_t> lost = gather_values(lost_tokens(scratch, stream), scratch, stream);
  const int64_t most = *std::max_element(lost.begin(), lost.end());
  if (most == 0) return false;
  ++bytes_.overflows;
  log(bytes_.overflows == 1 ? LogLevel::kInfo : LogLevel::kDebug,
      "layer {}: a message has {} tokens more than the {} slots: the batch runs again with as much "
      "room as it needs (time {})",
      layer_, most, options_.slots, bytes_.overflows);
  return true;
}

}  // namespace gantry
