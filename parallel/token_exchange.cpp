#include "parallel/token_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"

// What both strategies share: sizes, destinations of tokens, gathering among some of the ranks.

namespace gantry {

ExchangeBytes& ExchangeBytes::operator+=(const ExchangeBytes& other) noexcept {
  dispatch_sent += other.dispatch_sent;
  dispatch_received += other.dispatch_received;
  combine_sent += other.combine_sent;
  combine_received += other.combine_received;
  magnitudes_sent += other.magnitudes_sent;
  magnitudes_received += other.magnitudes_received;
  collectives += other.collectives;
  overflows += other.overflows;
  return *this;
}

TokenExchange::TokenExchange(const ParallelConfig& config, Communicator& world, const Shape& shape,
                             const ExchangeOptions& options)
    : config_(config), world_(&world), shape_(shape), options_(options) {
  validate(config);
  GANTRY_CHECK(world.size() == config.world_size() && world.rank() == config.rank,
               ErrorCode::kInvalidArgument,
               "token exchange: expected rank {} of {}, the communicator is rank {} of {}",
               config.rank, config.world_size(), world.rank(), world.size());
  GANTRY_CHECK(shape.hidden_size >= 1 && shape.top_k >= 1 && shape.row_width >= 0,
               ErrorCode::kInvalidArgument, "token exchange: hidden size {}, top-{}, rows of {}",
               shape.hidden_size, shape.top_k, shape.row_width);
  constexpr int kMaxSlots = 1 << 20;
  GANTRY_CHECK(options.slots >= 0 && options.slots <= kMaxSlots, ErrorCode::kInvalidArgument,
               "token exchange: expected 0 to {} slots, found {}", kMaxSlots, options.slots);
  if (shape_.row_width == 0) shape_.row_width = shape_.hidden_size;
  const std::string infeasible = infeasible_reduction(options, /*batch_invariant=*/false);
  GANTRY_CHECK(infeasible.empty(), ErrorCode::kUnsupported, "token exchange: reduce 'native': {}",
               infeasible);
  GANTRY_CHECK(
      options.reduce == ReduceOrder::kRank || world.has_native_reduction(), ErrorCode::kUnsupported,
      "token exchange: reduce 'native': these ranks' transport has no reduction of its own");
  choice_ = choose_exchange(options.kind, config, shape.top_k, options.reduce);
  all_ep_ranks_.resize(static_cast<size_t>(config.ep_size));
  std::iota(all_ep_ranks_.begin(), all_ep_ranks_.end(), 0);
  if (config.rank == 0) {
    log(LogLevel::kDebug, "layer {}: exchange {} ({}), combine {}, {} slots{}", shape.layer,
        to_string(choice_.kind), choice_.reason, to_string(options.combine), options.slots,
        config.sequence_parallel ? ", sequence parallel" : "");
  }
}

int64_t TokenExchange::max_group_tokens(int64_t max_num_tokens) const noexcept {
  return config_.sequence_parallel ? max_num_tokens * config_.token_group_size() : max_num_tokens;
}

int64_t TokenExchange::max_all_tokens(int64_t max_num_tokens) const noexcept {
  return config_.dp_size * max_group_tokens(max_num_tokens);
}

int64_t TokenExchange::max_own_tokens(int64_t max_num_tokens) const noexcept {
  if (config_.sequence_parallel) return max_num_tokens;
  const int64_t group = config_.token_group_size();
  return (max_num_tokens + group - 1) / group;
}

int64_t TokenExchange::max_destinations() const noexcept {
  if (sends_everything()) return config_.ep_size;
  return std::min<int64_t>(config_.ep_size, shape_.top_k + (shape_.shared_rows ? 1 : 0));
}

ExchangeScratch TokenExchange::make_scratch(int64_t max_num_tokens,
                                            int64_t magnitude_values) const {
  GANTRY_CHECK(max_num_tokens > 0 && magnitude_values >= 0, ErrorCode::kInvalidArgument,
               "token exchange: scratch for {} tokens and {} magnitudes", max_num_tokens,
               magnitude_values);
  const int64_t ranks = config_.world_size();
  const int64_t own = max_own_tokens(max_num_tokens);
  const int64_t all = max_all_tokens(max_num_tokens);
  const int64_t ranks_of_a_token = max_destinations() * config_.tp_size;
  ExchangeScratchSize size{.num_ranks = ranks,
                           .max_num_tokens = max_num_tokens,
                           .own_tokens = own,
                           .all_tokens = all,
                           .destinations = max_destinations(),
                           .top_k = shape_.top_k,
                           .hidden_size = shape_.hidden_size,
                           .arranges = moves_tokens() || !sends_everything(),
                           .orders = ordered(),
                           .magnitude_values = magnitude_values,
                           .tp_size = config_.tp_size};
  if (moves_tokens()) {
    const int64_t copies = sends_everything() ? 1 : ranks;
    size.first_send_bytes = copies * message_bytes(true);
    size.first_receive_bytes = ranks * message_bytes(true);
    const int64_t routing_bytes = payload_bytes() - 4 * shape_.hidden_size;
    size.rest_send_bytes =
        own * (sends_everything() ? routing_bytes : payload_bytes() * ranks_of_a_token);
    size.rest_receive_bytes = all * routing_bytes;
  }
  size.returned_values = ordered()
                             ? own * config_.tp_size *
                                   std::max(shape_.top_k * shape_.row_width,
                                            shape_.shared_rows ? shape_.hidden_size : int64_t{0})
                             : own * ranks_of_a_token * shape_.row_width;
  if (gathers() && config_.dp_size > 1) {
    size.gather_values = config_.token_group_size() * own * shape_.hidden_size;
  }
  if (config_.ep_size > 1) {
    size.gather_values = std::max(size.gather_values, config_.tp_size * magnitude_values);
  }
  return ExchangeScratch(size);
}

Slice TokenExchange::part_of_group(int64_t group_tokens, int64_t rank) const {
  return split_evenly(group_tokens, config_.token_group_size(),
                      static_cast<int>(rank % config_.token_group_size()));
}

std::span<const int32_t> TokenExchange::destinations(const ExchangeScratch& scratch,
                                                     int64_t token) const noexcept {
  if (sends_everything()) return all_ep_ranks_;
  const int64_t most = max_destinations();
  const int32_t* first = scratch.destinations_.data() + token * most;
  return {first, std::find(first, first + most, -1)};
}

// All-gather among the ranks [first, first + count), this one among them. Every rank of the world
// takes part, with its own `first`.
void TokenExchange::gather_over(int first, int count, std::span<const std::byte> own,
                                std::span<std::byte> receive, ExchangeScratch& scratch,
                                int64_t& sent, int64_t& received) {
  // receive_bytes_ of those ranks is set by the caller.
  const auto bytes = static_cast<int64_t>(own.size());
  sent += (count - 1) * bytes;
  received += static_cast<int64_t>(receive.size()) - bytes;
  ++bytes_.collectives;
  if (count == world_->size()) {
    world_->all_gather(own, receive, scratch.receive_bytes_);
    return;
  }
  // To a part of the ranks: the same bytes for each of them.
  std::fill(scratch.send_bytes_.begin(), scratch.send_bytes_.end(), 0);
  std::fill_n(scratch.send_bytes_.begin() + first, count, bytes);
  const auto all = std::as_writable_bytes(scratch.gather_send_.span())
                       .first(static_cast<size_t>(count) * own.size());
  for (int i = 0; i < count; ++i)
    std::copy(own.begin(), own.end(), all.begin() + i * bytes);
  world_->all_to_all(all, scratch.send_bytes_, receive, scratch.receive_bytes_);
}

void TokenExchange::max_over_tp(std::span<float> values, ExchangeScratch& scratch) {
  const auto tp = static_cast<size_t>(config_.tp_size);
  GANTRY_CHECK(tp * values.size() <= scratch.magnitudes_.size(), ErrorCode::kInvalidArgument,
               "max_over_tp: {} magnitudes of {} ranks, the scratch has {}", values.size(), tp,
               scratch.magnitudes_.size());
  const int first = config_.rank - config_.tp_rank();
  std::fill(scratch.receive_bytes_.begin(), scratch.receive_bytes_.end(), 0);
  std::fill_n(scratch.receive_bytes_.begin() + first, tp,
              static_cast<int64_t>(values.size_bytes()));
  const std::span<float> all = scratch.magnitudes_.span().first(tp * values.size());
  gather_over(first, config_.tp_size, std::as_bytes(values), std::as_writable_bytes(all), scratch,
              bytes_.magnitudes_sent, bytes_.magnitudes_received);
  for (size_t i = 0; i < all.size(); ++i) {
    float& most = values[i % values.size()];
    const float other = all[i];
    if (other > most || std::isnan(other)) most = other;
  }
}

}  // namespace gantry
