#include <algorithm>
#include <cstring>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "parallel/token_exchange.h"

// Dispatch: one collective with headers and the tokens that fit into the slots, a second one with
// the rest where some rank has more. Headers reach every rank, so that all take the same decisions
// and find the same mistakes.

namespace gantry {
namespace {

int64_t sum(std::span<const int64_t> values) {
  int64_t total = 0;
  for (const int64_t value : values)
    total += value;
  return total;
}

}  // namespace

ExchangedTokens TokenExchange::dispatch(const TokenBatch& batch, ExchangeScratch& scratch) {
  begin(batch, scratch);
  find_destinations(scratch);
  ExchangedTokens tokens;
  tokens.more = batch.remaining > 0;
  if (moves_tokens()) exchange_tokens(batch, scratch, tokens.more);
  count_held(batch, scratch);
  scratch.num_tokens_ = sum(scratch.received_);

  tokens.num_tokens = scratch.num_tokens_;
  if (moves_tokens() || !sends_everything()) {
    arrange(batch, scratch);
    const auto count = static_cast<size_t>(scratch.num_tokens_);
    const auto choices = count * static_cast<size_t>(shape_.top_k);
    tokens.hidden_states =
        scratch.hidden_states_.span().first(count * static_cast<size_t>(shape_.hidden_size));
    tokens.topk_ids = scratch.topk_ids_.span().first(choices);
    tokens.topk_weights = scratch.topk_weights_.span().first(choices);
  } else {
    tokens.hidden_states = batch.hidden_states;
    tokens.topk_ids = batch.topk_ids;
    tokens.topk_weights = batch.topk_weights;
  }
  if (ordered()) {
    number_rows(tokens.topk_ids, scratch);
    tokens.choice_row = scratch.choice_row_.span().first(tokens.topk_ids.size());
    tokens.num_rows = scratch.num_rows_;
  }
  const bool has_group =
      sends_everything() || (shape_.shared_rows && config_.ep_rank() == leading_ep_rank());
  if (has_group) {
    tokens.group_begin = sum(
        std::span(scratch.received_).first(static_cast<size_t>(config_.first_of_token_group())));
  }
  tokens.group_tokens = scratch.group_tokens_;
  tokens.own_first = scratch.own_first_;
  tokens.own_tokens = scratch.own_tokens_;
  return tokens;
}

// Checks the batch and finds out which of its tokens this rank owns.
void TokenExchange::begin(const TokenBatch& batch, ExchangeScratch& scratch) const {
  const auto num_tokens = static_cast<int64_t>(batch.hidden_states.size()) / shape_.hidden_size;
  const auto num_choices = static_cast<size_t>(num_tokens * shape_.top_k);
  GANTRY_CHECK(batch.hidden_states.size() == static_cast<size_t>(num_tokens * shape_.hidden_size) &&
                   batch.topk_ids.size() == num_choices && batch.topk_weights.size() == num_choices,
               ErrorCode::kInvalidArgument,
               "dispatch: {} hidden values, {} ids and {} weights for H {} and top-{}",
               batch.hidden_states.size(), batch.topk_ids.size(), batch.topk_weights.size(),
               shape_.hidden_size, shape_.top_k);
  GANTRY_CHECK(num_tokens <= scratch.max_num_tokens_, ErrorCode::kInvalidArgument,
               "dispatch: {} tokens, the scratch was made for {}", num_tokens,
               scratch.max_num_tokens_);
  const auto num_ids = static_cast<int32_t>(batch.id_to_rank.size());
  for (size_t choice = 0; choice < num_choices; ++choice) {
    GANTRY_CHECK(batch.topk_ids[choice] >= -1 && batch.topk_ids[choice] < num_ids,
                 ErrorCode::kInvalidArgument,
                 "dispatch: token {}: expected an expert id from -1 to {}, found {}",
                 choice / static_cast<size_t>(shape_.top_k), num_ids - 1, batch.topk_ids[choice]);
  }
  Slice own{0, num_tokens};
  if (!config_.sequence_parallel) own = part_of_group(num_tokens, config_.rank);
  scratch.group_tokens_ = num_tokens;
  scratch.own_first_ = own.begin;
  scratch.own_tokens_ = own.size();
  const auto first = static_cast<size_t>(own.begin * shape_.top_k);
  const auto count = static_cast<size_t>(own.size() * shape_.top_k);
  scratch.own_ids_ = batch.topk_ids.subspan(first, count);
  scratch.own_weights_ = batch.topk_weights.subspan(first, count);
  scratch.id_to_rank_ = batch.id_to_rank;
  scratch.id_to_logical_ = batch.id_to_logical;
}

// The EP ranks of every own token in ascending order, and how many tokens each rank gets.
void TokenExchange::find_destinations(ExchangeScratch& scratch) const {
  std::fill(scratch.sent_.begin(), scratch.sent_.end(), 0);
  const int64_t most = max_destinations();
  const auto k = static_cast<size_t>(shape_.top_k);
  for (int64_t token = 0; token < scratch.own_tokens_; ++token) {
    if (!sends_everything()) {
      int32_t* const list = scratch.destinations_.data() + token * most;
      int64_t count = 0;
      const auto add = [&](int32_t rank) {
        int32_t* const at = std::lower_bound(list, list + count, rank);
        if (at < list + count && *at == rank) return;
        std::copy_backward(at, list + count, list + count + 1);
        *at = rank;
        ++count;
      };
      if (shape_.shared_rows) add(leading_ep_rank());
      for (const int32_t id : scratch.own_ids_.subspan(static_cast<size_t>(token) * k, k)) {
        if (id >= 0) add(scratch.id_to_rank_[static_cast<size_t>(id)]);
      }
      std::fill(list + count, list + most, -1);
    }
    for (const int32_t ep_rank : destinations(scratch, token)) {
      for (int64_t tp_rank = 0; tp_rank < config_.tp_size; ++tp_rank)
        ++scratch.sent_[static_cast<size_t>(ep_rank * config_.tp_size + tp_rank)];
    }
  }
}

void TokenExchange::exchange_tokens(const TokenBatch& batch, ExchangeScratch& scratch, bool& more) {
  const auto ranks = static_cast<int64_t>(scratch.sent_.size());
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t bytes = message_bytes(sends_everything() || !holds(rank));
    scratch.send_bytes_[static_cast<size_t>(rank)] = bytes;
    scratch.receive_bytes_[static_cast<size_t>(rank)] = bytes;
  }
  const auto first = [&](ByteBuffer& buffer, int64_t bytes) {
    return std::span(buffer.data(), static_cast<size_t>(bytes));
  };
  transfer(write_messages(batch, scratch, /*rest=*/false),
           first(scratch.first_receive_, sum(scratch.receive_bytes_)), scratch,
           bytes_.dispatch_sent, bytes_.dispatch_received);
  if (!read_headers(scratch, more)) return;
  note_overflow(scratch);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const auto i = static_cast<size_t>(rank);
    const auto beyond = [&](int64_t tokens) {
      if (holds(rank) && !sends_everything()) return int64_t{0};
      return std::max<int64_t>(0, tokens - options_.slots) * payload_bytes();
    };
    scratch.send_bytes_[i] = beyond(scratch.sent_[i]);
    scratch.receive_bytes_[i] = beyond(scratch.received_[i]);
  }
  transfer(write_messages(batch, scratch, /*rest=*/true),
           first(scratch.rest_receive_, sum(scratch.receive_bytes_)), scratch, bytes_.dispatch_sent,
           bytes_.dispatch_received);
}

// The messages to all ranks, one after the other (to all at once: one message): a header and the
// first tokens, or the tokens beyond the slots.
std::span<std::byte> TokenExchange::write_messages(const TokenBatch& batch,
                                                   ExchangeScratch& scratch, bool rest) const {
  const auto ranks = static_cast<int64_t>(sends_everything() ? 1 : scratch.sent_.size());
  const bool overflows = [&] {
    for (size_t rank = 0; rank < scratch.sent_.size(); ++rank) {
      const bool travels = sends_everything() || !holds(static_cast<int64_t>(rank));
      if (travels && scratch.sent_[rank] > options_.slots) return true;
    }
    return false;
  }();
  ByteBuffer& buffer = rest ? scratch.rest_send_ : scratch.first_send_;
  // Cursors: bytes from the start of the buffer to where the next token of a rank goes.
  int64_t end = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const auto i = static_cast<size_t>(rank);
    scratch.send_cursor_[i] = end;
    scratch.receive_cursor_[i] = 0;  // tokens seen
    if (!rest) {
      ExchangeHeader header;
      header.num_tokens = static_cast<int64_t>(batch.hidden_states.size()) / shape_.hidden_size;
      header.remaining = batch.remaining;
      header.max_num_tokens = scratch.max_num_tokens_;
      header.count = static_cast<int32_t>(scratch.sent_[i]);
      header.overflows = overflows ? 1 : 0;
      std::memcpy(buffer.data() + end, &header, sizeof(header));
      scratch.send_cursor_[i] += static_cast<int64_t>(sizeof(header));
    }
    end += scratch.send_bytes_[i];
  }
  const auto add = [&](int64_t token, int64_t rank) {
    const auto i = static_cast<size_t>(rank);
    const bool beyond = scratch.receive_cursor_[i]++ >= options_.slots;
    if (beyond != rest) return;
    write_payload(batch, scratch.own_first_ + token, rank, buffer.data() + scratch.send_cursor_[i]);
    scratch.send_cursor_[i] += payload_bytes();
  };
  for (int64_t token = 0; token < scratch.own_tokens_; ++token) {
    if (sends_everything()) {
      add(token, 0);
      continue;
    }
    for (const int32_t ep_rank : destinations(scratch, token)) {
      for (int64_t tp_rank = 0; tp_rank < config_.tp_size; ++tp_rank) {
        const int64_t rank = ep_rank * config_.tp_size + tp_rank;
        if (!holds(rank)) add(token, rank);
      }
    }
  }
  return {buffer.data(), static_cast<size_t>(end)};
}

// Hidden state, ids, weights. A rank learns of the choices that it computes only.
void TokenExchange::write_payload(const TokenBatch& batch, int64_t token, int64_t rank,
                                  std::byte* to) const {
  const auto h = static_cast<size_t>(shape_.hidden_size);
  const auto k = static_cast<size_t>(shape_.top_k);
  std::memcpy(to, batch.hidden_states.data() + static_cast<size_t>(token) * h, h * 4);
  auto* const ids = reinterpret_cast<int32_t*>(to + h * 4);
  const int32_t* const from = batch.topk_ids.data() + static_cast<size_t>(token) * k;
  for (size_t i = 0; i < k; ++i) {
    const bool computed =
        from[i] >= 0 &&
        (sends_everything() || batch.id_to_rank[static_cast<size_t>(from[i])] == ep_rank_of(rank));
    ids[i] = computed ? from[i] : -1;
  }
  std::memcpy(to + (h + k) * 4, batch.topk_weights.data() + static_cast<size_t>(token) * k, k * 4);
}

// One of the two collectives, by send_bytes_ and receive_bytes_.
void TokenExchange::transfer(std::span<const std::byte> send, std::span<std::byte> receive,
                             ExchangeScratch& scratch, int64_t& sent, int64_t& received) {
  const auto self = static_cast<size_t>(config_.rank);
  received += static_cast<int64_t>(receive.size()) - scratch.receive_bytes_[self];
  ++bytes_.collectives;
  if (sends_everything()) {
    sent += static_cast<int64_t>(send.size()) * (world_->size() - 1);
    world_->all_gather(send, receive, scratch.receive_bytes_);
  } else {
    sent += static_cast<int64_t>(send.size()) - scratch.send_bytes_[self];
    world_->all_to_all(send, scratch.send_bytes_, receive, scratch.receive_bytes_);
  }
}

// Fills received_; returns whether tokens beyond the slots follow.
bool TokenExchange::read_headers(ExchangeScratch& scratch, bool& more) const {
  const auto ranks = static_cast<int64_t>(scratch.received_.size());
  const int64_t group_size = config_.token_group_size();
  const int64_t most_own = max_own_tokens(scratch.max_num_tokens_);
  bool overflows = false;
  int64_t offset = 0;
  int64_t leader_tokens = 0;
  int64_t own_group_tokens = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    ExchangeHeader header;
    std::memcpy(&header, scratch.first_receive_.data() + offset, sizeof(header));
    offset += scratch.receive_bytes_[static_cast<size_t>(rank)];
    GANTRY_CHECK(header.max_num_tokens == scratch.max_num_tokens_, ErrorCode::kInvalidArgument,
                 "dispatch: the scratch of rank {} was made for {} tokens, that of rank {} for {}",
                 rank, header.max_num_tokens, config_.rank, scratch.max_num_tokens_);
    if (rank % group_size == 0) leader_tokens = header.num_tokens;
    GANTRY_CHECK(config_.sequence_parallel || header.num_tokens == leader_tokens,
                 ErrorCode::kInvalidArgument,
                 "dispatch: rank {} has {} tokens, the leader of its token group has {}", rank,
                 header.num_tokens, leader_tokens);
    GANTRY_CHECK(header.num_tokens >= 0 && header.num_tokens <= scratch.max_num_tokens_ &&
                     header.count >= 0 && header.count <= most_own,
                 ErrorCode::kInternal, "dispatch: rank {} says it has {} tokens and sends {}", rank,
                 header.num_tokens, header.count);
    scratch.received_[static_cast<size_t>(rank)] = header.count;
    if (in_group(rank)) own_group_tokens += header.num_tokens;
    overflows |= header.overflows != 0;
    more |= header.remaining > 0;
  }
  if (config_.sequence_parallel) scratch.group_tokens_ = own_group_tokens;
  return overflows;
}

void TokenExchange::note_overflow(const ExchangeScratch& scratch) {
  if (options_.slots == 0) return;  // asked for
  ++bytes_.overflows;
  int64_t most = 0;
  for (size_t rank = 0; rank < scratch.sent_.size(); ++rank) {
    if (sends_everything() || !holds(static_cast<int64_t>(rank)))
      most = std::max(most, scratch.sent_[rank]);
  }
  if (most <= options_.slots) return;  // other ranks tell
  log(bytes_.overflows == 1 ? LogLevel::kInfo : LogLevel::kDebug,
      "layer {}: rank {}: more tokens than the {} slots (here {} for one rank): the rest follows "
      "in "
      "a second collective (time {})",
      shape_.layer, config_.rank, options_.slots, most, bytes_.overflows);
}

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
  const auto place = [&](const std::byte* payload) {
    std::memcpy(scratch.hidden_states_.data() + at * h, payload, h * 4);
    std::memcpy(scratch.topk_ids_.data() + at * k, payload + h * 4, k * 4);
    std::memcpy(scratch.topk_weights_.data() + at * k, payload + (h + k) * 4, k * 4);
    ++at;
  };
  int64_t first_offset = 0;
  int64_t rest_offset = 0;
  for (size_t rank = 0; rank < scratch.received_.size(); ++rank) {
    const auto owner = static_cast<int64_t>(rank);
    const bool travelled = moves_tokens() && (sends_everything() || !holds(owner));
    if (!holds(owner)) {
      for (int64_t i = 0; i < scratch.received_[rank]; ++i) {
        place(i < options_.slots
                  ? scratch.first_receive_.data() + first_offset +
                        static_cast<int64_t>(sizeof(ExchangeHeader)) + i * payload_bytes()
                  : scratch.rest_receive_.data() + rest_offset +
                        (i - options_.slots) * payload_bytes());
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
    rest_offset += std::max<int64_t>(0, scratch.received_[rank] - options_.slots) * payload_bytes();
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
