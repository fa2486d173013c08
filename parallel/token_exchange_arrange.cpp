#include <algorithm>
#include <cstring>

#include "parallel/token_exchange.h"

// The end of dispatch: tokens that came, and those that this rank had, in one array by owner.

namespace gantry {

bool TokenExchange::computes(const TokenBatch& batch, int64_t token) const noexcept {
  if (sends_everything()) return true;
  if (shape_.shared_rows && config_.ep_rank() == leading_ep_rank()) return true;
  const auto k = static_cast<size_t>(shape_.top_k);
  for (const int32_t id : batch.topk_ids.subspan(static_cast<size_t>(token) * k, k)) {
    if (id >= 0 && batch.id_to_rank[static_cast<size_t>(id)] == config_.ep_rank()) return true;
  }
  return false;
}

// received_ of the owners whose tokens this rank's batch has anyway.
void TokenExchange::count_held(const TokenBatch& batch, ExchangeScratch& scratch) const {
  for (size_t rank = 0; rank < scratch.received_.size(); ++rank) {
    if (!holds(static_cast<int64_t>(rank))) continue;
    const Slice part = config_.sequence_parallel
                           ? Slice{0, scratch.own_tokens_}
                           : part_of_group(scratch.group_tokens_, static_cast<int64_t>(rank));
    int64_t count = 0;
    for (long token = part.begin; token < part.end; ++token)
      count += computes(batch, token) ? 1 : 0;
    scratch.received_[rank] = count;
  }
}

// Copies the tokens into arrays by owner: from messages, or from the own batch.
void TokenExchange::arrange(const TokenBatch& batch, ExchangeScratch& scratch) const {
  const auto h = static_cast<size_t>(shape_.hidden_size);
  const auto k = static_cast<size_t>(shape_.top_k);
  size_t at = 0;
  const auto place_routing = [&](const std::byte* routing) {
    std::memcpy(scratch.topk_ids_.data() + at * k, routing, k * 4);
    std::memcpy(scratch.topk_weights_.data() + at * k, routing + k * 4, k * 4);
    ++at;
  };
  int64_t first_offset = 0;
  int64_t rest_offset = 0;
  const int64_t routing_bytes = payload_bytes() - 4 * shape_.hidden_size;
  for (size_t rank = 0; rank < scratch.received_.size(); ++rank) {
    const auto owner = static_cast<int64_t>(rank);
    const bool travelled = moves_tokens() && (sends_everything() || !holds(owner));
    if (!holds(owner)) {
      for (int64_t i = 0; i < scratch.received_[rank]; ++i) {
        if (i >= options_.slots) {  // hidden states are in place
          place_routing(scratch.rest_receive_.data() + rest_offset +
                        (i - options_.slots) * routing_bytes);
          continue;
        }
        const std::byte* const payload = scratch.first_receive_.data() + first_offset +
                                         static_cast<int64_t>(sizeof(ExchangeHeader)) +
                                         i * payload_bytes();
        std::memcpy(scratch.hidden_states_.data() + at * h, payload, h * 4);
        place_routing(payload + h * 4);
      }
    } else {
      const Slice part = config_.sequence_parallel ? Slice{0, scratch.own_tokens_}
                                                   : part_of_group(scratch.group_tokens_, owner);
      for (long token = part.begin; token < part.end; ++token) {
        if (!computes(batch, token)) continue;
        const auto from = static_cast<size_t>(token);
        std::copy_n(batch.hidden_states.data() + from * h, h,
                    scratch.hidden_states_.data() + at * h);
        for (size_t i = from * k; i < (from + 1) * k; ++i) {
          const int32_t id = batch.topk_ids[i];
          const bool computed =
              id >= 0 && (sends_everything() ||
                          batch.id_to_rank[static_cast<size_t>(id)] == config_.ep_rank());
          scratch.topk_ids_[at * k + i - from * k] = computed ? id : -1;
          scratch.topk_weights_[at * k + i - from * k] = batch.topk_weights[i];
        }
        ++at;
      }
    }
    if (!travelled) {
      first_offset += static_cast<int64_t>(sizeof(ExchangeHeader));
      continue;
    }
    first_offset += message_bytes(true);
    rest_offset += beyond_slots(scratch.received_, owner) * routing_bytes;
  }
}

// Numbers the choices that this rank computes, in order, and counts them by owner.
void TokenExchange::number_rows(std::span<const int32_t> topk_ids, ExchangeScratch& scratch) const {
  int32_t row = 0;
  size_t choice = 0;
  for (size_t owner = 0; owner < scratch.received_.size(); ++owner) {
    const int32_t before = row;
    const auto end = choice + static_cast<size_t>(scratch.received_[owner] * shape_.top_k);
    for (; choice < end; ++choice) {
      const int32_t id = topk_ids[choice];
      const bool computed =
          id >= 0 && scratch.id_to_rank_[static_cast<size_t>(id)] == config_.ep_rank();
      scratch.choice_row_[choice] = computed ? row++ : -1;
    }
    scratch.rows_[owner] = row - before;
  }
  scratch.num_rows_ = row;
}

}  // namespace gantry
