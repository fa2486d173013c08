#include <algorithm>
#include <numeric>

#include "kernels/base/check.h"
#include "parallel/token_exchange.h"

// Combine: rows travel to the owners of their tokens in one all-to-all (both sides know how many),
// owners add them in an order that is written down here, groups gather the sums.

namespace gantry {
namespace {

void add_row(const float* row, float factor, int64_t width, float* sum) {
  for (int64_t i = 0; i < width; ++i)
    sum[i] += factor * row[i];
}

// +0 + row: a row of -0 does not tell which ranks took part.
void set_row(const float* row, int64_t width, float* sum) {
  for (int64_t i = 0; i < width; ++i)
    sum[i] = 0.0F + row[i];
}

void add_row(const float* row, int64_t width, float* sum) {
  for (int64_t i = 0; i < width; ++i)
    sum[i] += row[i];
}

}  // namespace

// Sends rows, which stand by owner, and returns those that came, which stand by sender. Without
// copies_own this rank's own rows stay where they are: there is no row of theirs in the result.
std::span<const float> TokenExchange::return_rows(std::span<const float> rows, int64_t width,
                                                  std::span<const int64_t> send_rows,
                                                  std::span<const int64_t> receive_rows,
                                                  ExchangeScratch& scratch, bool copies_own) {
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(float));
  int64_t sent = 0;
  int64_t received = 0;
  for (size_t rank = 0; rank < send_rows.size(); ++rank) {
    scratch.send_bytes_[rank] = send_rows[rank] * row_bytes;
    scratch.receive_bytes_[rank] = receive_rows[rank] * row_bytes;
    sent += send_rows[rank];
    received += receive_rows[rank];
  }
  GANTRY_CHECK(static_cast<int64_t>(rows.size()) == sent * width, ErrorCode::kInvalidArgument,
               "combine: expected {} rows of {} to return, found {} values", sent, width,
               rows.size());
  GANTRY_CHECK(received * width <= static_cast<int64_t>(scratch.returned_.size()),
               ErrorCode::kInvalidArgument, "combine: {} rows of {} return, there is room for {}",
               received, width, scratch.returned_.size());
  const std::span<float> returned =
      scratch.returned_.span().first(static_cast<size_t>(received * width));
  const auto self = static_cast<size_t>(config_.rank);
  bytes_.combine_sent += sent * row_bytes - scratch.send_bytes_[self];
  bytes_.combine_received += received * row_bytes - scratch.receive_bytes_[self];
  ++bytes_.collectives;
  // Where the rows of each sender begin.
  std::exclusive_scan(receive_rows.begin(), receive_rows.end(), scratch.receive_cursor_.begin(),
                      int64_t{0});
  if (copies_own) {
    world_->all_to_all(std::as_bytes(rows), scratch.send_bytes_, std::as_writable_bytes(returned),
                       scratch.receive_bytes_);
    return returned;
  }
  scratch.send_parts_.clear();
  scratch.receive_parts_.clear();
  int64_t begin = 0;  // bytes
  for (size_t rank = 0; rank < send_rows.size(); ++rank) {
    const auto bytes = static_cast<size_t>(scratch.send_bytes_[rank]);
    const auto to = static_cast<size_t>(scratch.receive_cursor_[rank] * row_bytes);
    const auto expected = static_cast<size_t>(scratch.receive_bytes_[rank]);
    if (rank != self) {
      scratch.send_parts_.push_back(
          {static_cast<int>(rank), std::as_bytes(rows).subspan(static_cast<size_t>(begin), bytes)});
      scratch.receive_parts_.push_back(
          {static_cast<int>(rank), std::as_writable_bytes(returned).subspan(to, expected)});
    } else {
      scratch.receive_cursor_[self] = begin / row_bytes;
    }
    begin += static_cast<int64_t>(bytes);
  }
  world_->send_receive(scratch.send_parts_, scratch.receive_parts_);
  return returned;
}

// Every rank has a row of every token, by owner.
void TokenExchange::reduce_natively(std::span<const float> partial, int64_t width,
                                    std::span<float> own, ExchangeScratch& scratch) {
  std::transform(scratch.received_.begin(), scratch.received_.end(),
                 scratch.receive_cursor_.begin(), [&](int64_t tokens) { return tokens * width; });
  ++bytes_.collectives;
  world_->reduce_scatter_sum_native(partial, own, scratch.receive_cursor_);
}

void TokenExchange::reduce(std::span<const float> partial, int64_t width, std::span<float> own,
                           ExchangeScratch& scratch) {
  GANTRY_CHECK(own.size() == static_cast<size_t>(scratch.own_tokens_ * width),
               ErrorCode::kInvalidArgument, "combine: expected {} x {} own values, found {}",
               scratch.own_tokens_, width, own.size());
  if (options_.reduce == ReduceOrder::kNative) return reduce_natively(partial, width, own, scratch);
  const std::span<const float> rows =
      return_rows(partial, width, scratch.received_, scratch.sent_, scratch, /*copies_own=*/false);
  const auto self = static_cast<size_t>(config_.rank);
  for (int64_t token = 0; token < scratch.own_tokens_; ++token) {
    float* const sum = own.data() + token * width;
    bool first = true;
    for (const int32_t ep_rank : destinations(scratch, token)) {
      for (int64_t tp_rank = 0; tp_rank < config_.tp_size; ++tp_rank) {
        const auto rank = static_cast<size_t>(ep_rank * config_.tp_size + tp_rank);
        const float* const from = rank == self ? partial.data() : rows.data();
        const float* const row = from + scratch.receive_cursor_[rank]++ * width;
        if (first) {
          set_row(row, width, sum);
        } else {
          add_row(row, width, sum);
        }
        first = false;
      }
    }
    if (first) std::fill_n(sum, width, 0.0F);
  }
}

void TokenExchange::reduce_ordered(std::span<const float> rows, int64_t width, bool weighted,
                                   std::span<float> own, ExchangeScratch& scratch) {
  GANTRY_CHECK(ordered(), ErrorCode::kInvalidArgument,
               "combine: the exchange was made for sums in rank order");
  GANTRY_CHECK(own.size() == static_cast<size_t>(scratch.own_tokens_ * width),
               ErrorCode::kInvalidArgument, "combine: expected {} x {} own values, found {}",
               scratch.own_tokens_, width, own.size());
  const int64_t k = shape_.top_k;
  // Every TP rank of an EP rank returns its part of the same rows, in the same order.
  std::vector<int64_t>& expected = scratch.send_cursor_;
  std::fill(expected.begin(), expected.end(), 0);
  for (size_t choice = 0; choice < scratch.own_ids_.size(); ++choice) {
    const int32_t id = scratch.own_ids_[choice];
    if (id < 0) continue;
    const int64_t first =
        static_cast<int64_t>(scratch.id_to_rank_[static_cast<size_t>(id)]) * config_.tp_size;
    scratch.own_choice_[choice] = expected[static_cast<size_t>(first)];
    for (int64_t tp_rank = 0; tp_rank < config_.tp_size; ++tp_rank)
      ++expected[static_cast<size_t>(first + tp_rank)];
  }
  const std::span<const float> returned =
      return_rows(rows, width, scratch.rows_, expected, scratch);
  std::fill(own.begin(), own.end(), 0.0F);
  const auto logical = [&](int32_t choice) {
    const auto id = static_cast<size_t>(scratch.own_ids_[static_cast<size_t>(choice)]);
    return scratch.id_to_logical_.empty() ? static_cast<int32_t>(id) : scratch.id_to_logical_[id];
  };
  int32_t* const order = scratch.choice_order_.data();
  for (int64_t token = 0; token < scratch.own_tokens_; ++token) {
    int64_t count = 0;
    // By insertion: stable, and K is small.
    for (auto choice = static_cast<int32_t>(token * k); choice < (token + 1) * k; ++choice) {
      if (scratch.own_ids_[static_cast<size_t>(choice)] < 0) continue;
      int64_t at = count++;
      for (; at > 0 && logical(order[at - 1]) > logical(choice); --at)
        order[at] = order[at - 1];
      order[at] = choice;
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto choice = static_cast<size_t>(order[i]);
      const float weight = weighted ? scratch.own_weights_[choice] : 1.0F;
      const auto first =
          static_cast<size_t>(scratch.id_to_rank_[static_cast<size_t>(scratch.own_ids_[choice])]) *
          static_cast<size_t>(config_.tp_size);
      const auto row_of = [&](size_t tp_rank) {
        return (scratch.receive_cursor_[first + tp_rank] + scratch.own_choice_[choice]) * width;
      };
      // returned_ is this scratch's own: the first rank's row takes the sum of the others.
      float* const row = scratch.returned_.data() + row_of(0);
      for (size_t tp_rank = 1; tp_rank < static_cast<size_t>(config_.tp_size); ++tp_rank)
        add_row(returned.data() + row_of(tp_rank), width, row);
      add_row(row, weight, width, own.data() + token * width);
    }
  }
}

void TokenExchange::add_shared(std::span<const float> rows, std::span<float> own,
                               ExchangeScratch& scratch) {
  const int64_t h = shape_.hidden_size;
  const bool leads = config_.ep_rank() == leading_ep_rank();
  GANTRY_CHECK(rows.size() == static_cast<size_t>(leads ? scratch.group_tokens_ * h : 0) &&
                   own.size() == static_cast<size_t>(scratch.own_tokens_ * h),
               ErrorCode::kInvalidArgument,
               "combine: {} shared values for {} tokens, {} values for {} own tokens", rows.size(),
               scratch.group_tokens_, own.size(), scratch.own_tokens_);
  if (config_.token_group_size() == 1) {
    add_row(rows.data(), static_cast<int64_t>(rows.size()), own.data());
    return;
  }
  std::vector<int64_t>& sent = scratch.send_cursor_;
  std::vector<int64_t>& expected = scratch.receive_cursor_;
  const int64_t first = static_cast<int64_t>(leading_ep_rank()) * config_.tp_size;
  for (size_t i = 0; i < sent.size(); ++i) {
    const auto rank = static_cast<int64_t>(i);
    const bool to = leads && in_group(rank);
    sent[i] = to ? scratch.received_[i] : 0;
    const bool from = rank >= first && rank < first + config_.tp_size;
    expected[i] = from ? scratch.own_tokens_ : 0;
  }
  const std::span<const float> returned = return_rows(rows, h, sent, expected, scratch);
  float* const total = scratch.returned_.data();
  const int64_t values = scratch.own_tokens_ * h;
  for (int64_t tp_rank = 1; tp_rank < config_.tp_size; ++tp_rank)
    add_row(returned.data() + tp_rank * values, values, total);
  add_row(total, values, own.data());
}

void TokenExchange::gather(std::span<const float> own, std::span<float> out,
                           ExchangeScratch& scratch) {
  const int64_t h = shape_.hidden_size;
  GANTRY_CHECK(own.size() == static_cast<size_t>(scratch.own_tokens_ * h) &&
                   out.size() == static_cast<size_t>(scratch.group_tokens_ * h),
               ErrorCode::kInvalidArgument,
               "combine: expected {} own tokens of {} with {} values, found {} and {}",
               scratch.own_tokens_, scratch.group_tokens_, h, own.size(), out.size());
  for (size_t rank = 0; rank < scratch.receive_bytes_.size(); ++rank) {
    const auto owner = static_cast<int64_t>(rank);
    scratch.receive_bytes_[rank] =
        in_group(owner) ? part_of_group(scratch.group_tokens_, owner).size() * h * 4 : 0;
  }
  gather_over(config_.first_of_token_group(), config_.token_group_size(), std::as_bytes(own),
              std::as_writable_bytes(out), scratch, bytes_.combine_sent, bytes_.combine_received);
}

}  // namespace gantry
