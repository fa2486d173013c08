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
  transfer(write_messages(batch, scratch),
           first(scratch.first_receive_, sum(scratch.receive_bytes_)), scratch,
           bytes_.dispatch_sent, bytes_.dispatch_received);
  if (!read_headers(scratch, more)) return;
  note_overflow(scratch);
  count_held(batch, scratch);
  exchange_rest(batch, scratch);
}

// Tokens beyond the slots, in two parts a message: hidden states, which are received where they are
// computed on (and, where every rank gets the same, sent from where they are), and routing.
void TokenExchange::exchange_rest(const TokenBatch& batch, ExchangeScratch& scratch) {
  const auto ranks = static_cast<int64_t>(scratch.sent_.size());
  GANTRY_CHECK(sum(scratch.received_) <= max_all_tokens(scratch.max_num_tokens_),
               ErrorCode::kInternal, "dispatch: {} tokens come, there is room for {}",
               sum(scratch.received_), max_all_tokens(scratch.max_num_tokens_));
  const int64_t hidden_bytes = 4 * shape_.hidden_size;
  const int64_t routing_bytes = payload_bytes() - hidden_bytes;
  write_rest(batch, scratch);
  scratch.send_parts_.clear();
  scratch.receive_parts_.clear();
  int64_t send_begin = 0;  // in rest_send_
  int64_t token_begin = 0;
  int64_t routing_begin = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const auto peer = static_cast<int>(rank);
    const int64_t sent = beyond_slots(scratch.sent_, rank);
    const int64_t received = beyond_slots(scratch.received_, rank);
    const auto bytes = [](int64_t count) { return static_cast<size_t>(count); };
    if (sent > 0) {
      const std::byte* const first = scratch.rest_send_.data() + send_begin;
      const std::byte* hidden = first;
      const std::byte* routing = first + sent * hidden_bytes;
      if (sends_everything()) {
        const int64_t token = scratch.own_first_ + options_.slots;
        hidden =
            reinterpret_cast<const std::byte*>(batch.hidden_states.data()) + token * hidden_bytes;
        routing = scratch.rest_send_.data();
      } else {
        send_begin += sent * payload_bytes();
      }
      scratch.send_parts_.push_back({peer, {hidden, bytes(sent * hidden_bytes)}});
      scratch.send_parts_.push_back({peer, {routing, bytes(sent * routing_bytes)}});
    }
    if (received > 0) {
      auto* const hidden = reinterpret_cast<std::byte*>(scratch.hidden_states_.data()) +
                           (token_begin + options_.slots) * hidden_bytes;
      scratch.receive_parts_.push_back({peer, {hidden, bytes(received * hidden_bytes)}});
      scratch.receive_parts_.push_back(
          {peer, {scratch.rest_receive_.data() + routing_begin, bytes(received * routing_bytes)}});
    }
    token_begin += scratch.received_[static_cast<size_t>(rank)];
    routing_begin += received * routing_bytes;
    bytes_.dispatch_sent += sent * payload_bytes();
    bytes_.dispatch_received += received * payload_bytes();
  }
  ++bytes_.collectives;
  world_->send_receive(scratch.send_parts_, scratch.receive_parts_);
}

// Of the tokens to or from a rank, those that travel in the second collective.
int64_t TokenExchange::beyond_slots(std::span<const int64_t> tokens, int64_t rank) const noexcept {
  const bool travels = rank != config_.rank && (sends_everything() || !holds(rank));
  return travels ? std::max<int64_t>(0, tokens[static_cast<size_t>(rank)] - options_.slots) : 0;
}

// Routing of the own tokens, one after the other, if every rank gets the same; else the hidden
// states and the routing for one rank after the other.
void TokenExchange::write_rest(const TokenBatch& batch, ExchangeScratch& scratch) const {
  const int64_t hidden_bytes = 4 * shape_.hidden_size;
  const int64_t routing_bytes = payload_bytes() - hidden_bytes;
  std::byte* const buffer = scratch.rest_send_.data();
  if (sends_everything()) {
    for (int64_t token = options_.slots; token < scratch.own_tokens_; ++token) {
      write_routing(batch, scratch.own_first_ + token, 0,
                    buffer + (token - options_.slots) * routing_bytes);
    }
    return;
  }
  int64_t end = 0;
  for (size_t rank = 0; rank < scratch.sent_.size(); ++rank) {
    scratch.send_cursor_[rank] = end;
    scratch.receive_cursor_[rank] = 0;  // tokens seen
    end += beyond_slots(scratch.sent_, static_cast<int64_t>(rank)) * payload_bytes();
  }
  for_each_message(scratch, [&](int64_t token, int64_t rank) {
    const auto i = static_cast<size_t>(rank);
    const int64_t row = scratch.receive_cursor_[i]++ - options_.slots;
    if (row < 0) return;
    std::byte* const first = buffer + scratch.send_cursor_[i];
    const int64_t batch_token = scratch.own_first_ + token;
    write_hidden(batch, batch_token, first + row * hidden_bytes);
    write_routing(batch, batch_token, rank,
                  first + beyond_slots(scratch.sent_, rank) * hidden_bytes + row * routing_bytes);
  });
}

// Calls visit(own token, rank) for each copy of a token that travels to one rank alone.
template <typename Visit>
void TokenExchange::for_each_message(const ExchangeScratch& scratch, Visit visit) const {
  for (int64_t token = 0; token < scratch.own_tokens_; ++token) {
    for (const int32_t ep_rank : destinations(scratch, token)) {
      for (int64_t tp_rank = 0; tp_rank < config_.tp_size; ++tp_rank) {
        const int64_t rank = ep_rank * config_.tp_size + tp_rank;
        if (!holds(rank)) visit(token, rank);
      }
    }
  }
}

// The messages to all ranks, one after the other (to all at once: one message): a header and as
// many tokens as there are slots.
std::span<std::byte> TokenExchange::write_messages(const TokenBatch& batch,
                                                   ExchangeScratch& scratch) const {
  const auto ranks = static_cast<int64_t>(sends_everything() ? 1 : scratch.sent_.size());
  const bool overflows = [&] {
    for (size_t rank = 0; rank < scratch.sent_.size(); ++rank) {
      const bool travels = sends_everything() || !holds(static_cast<int64_t>(rank));
      if (travels && scratch.sent_[rank] > options_.slots) return true;
    }
    return false;
  }();
  ByteBuffer& buffer = scratch.first_send_;
  // Cursors: bytes from the start of the buffer to where the next token of a rank goes.
  int64_t end = 0;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const auto i = static_cast<size_t>(rank);
    scratch.send_cursor_[i] = end;
    scratch.receive_cursor_[i] = 0;  // tokens seen
    ExchangeHeader header;
    header.num_tokens = static_cast<int64_t>(batch.hidden_states.size()) / shape_.hidden_size;
    header.remaining = batch.remaining;
    header.max_num_tokens = scratch.max_num_tokens_;
    header.count = static_cast<int32_t>(scratch.sent_[i]);
    header.overflows = overflows ? 1 : 0;
    std::memcpy(buffer.data() + end, &header, sizeof(header));
    scratch.send_cursor_[i] += static_cast<int64_t>(sizeof(header));
    end += scratch.send_bytes_[i];
  }
  const auto add = [&](int64_t token, int64_t rank) {
    const auto i = static_cast<size_t>(rank);
    if (scratch.receive_cursor_[i]++ >= options_.slots) return;
    std::byte* const to = buffer.data() + scratch.send_cursor_[i];
    write_hidden(batch, scratch.own_first_ + token, to);
    write_routing(batch, scratch.own_first_ + token, rank, to + 4 * shape_.hidden_size);
    scratch.send_cursor_[i] += payload_bytes();
  };
  if (sends_everything()) {
    for (int64_t token = 0; token < std::min<int64_t>(scratch.own_tokens_, options_.slots); ++token)
      add(token, 0);
  } else if (options_.slots > 0) {
    for_each_message(scratch, add);
  }
  return {buffer.data(), static_cast<size_t>(end)};
}

void TokenExchange::write_hidden(const TokenBatch& batch, int64_t token, std::byte* to) const {
  const auto h = static_cast<size_t>(shape_.hidden_size);
  std::memcpy(to, batch.hidden_states.data() + static_cast<size_t>(token) * h, h * 4);
}

// Ids, weights. A rank learns of the choices that it computes only.
void TokenExchange::write_routing(const TokenBatch& batch, int64_t token, int64_t rank,
                                  std::byte* to) const {
  const auto k = static_cast<size_t>(shape_.top_k);
  auto* const ids = reinterpret_cast<int32_t*>(to);
  const int32_t* const from = batch.topk_ids.data() + static_cast<size_t>(token) * k;
  for (size_t i = 0; i < k; ++i) {
    const bool computed =
        from[i] >= 0 &&
        (sends_everything() || batch.id_to_rank[static_cast<size_t>(from[i])] == ep_rank_of(rank));
    ids[i] = computed ? from[i] : -1;
  }
  std::memcpy(to + k * 4, batch.topk_weights.data() + static_cast<size_t>(token) * k, k * 4);
}

// The first collective, by send_bytes_ and receive_bytes_.
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

}  // namespace gantry
