#include "parallel/token_exchange.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// Gathers `own` from the ranks whose entry in `counts` (elements) is not 0.
template <typename T>
void gather(Communicator& world, std::span<const T> own, std::span<const int64_t> counts,
            std::vector<T>& all) {
  std::vector<int64_t> bytes(counts.size());
  std::transform(counts.begin(), counts.end(), bytes.begin(),
                 [](int64_t count) { return count * static_cast<int64_t>(sizeof(T)); });
  all.resize(static_cast<size_t>(std::accumulate(counts.begin(), counts.end(), int64_t{0})));
  const auto contributed = static_cast<size_t>(counts[static_cast<size_t>(world.rank())]);
  world.all_gather(std::as_bytes(own.first(contributed)), std::as_writable_bytes(std::span(all)),
                   bytes);
}

}  // namespace

TokenExchange::TokenExchange(const ParallelConfig& config, Communicator& world, int64_t hidden_size,
                             int64_t top_k)
    : config_(config), world_(&world), hidden_size_(hidden_size), top_k_(top_k) {
  validate(config);
  GANTRY_CHECK(world.size() == config.world_size() && world.rank() == config.rank,
               ErrorCode::kInvalidArgument,
               "token exchange: expected rank {} of {}, the communicator is rank {} of {}",
               config.rank, config.world_size(), world.rank(), world.size());
  GANTRY_CHECK(hidden_size >= 1 && top_k >= 1, ErrorCode::kInvalidArgument,
               "token exchange: hidden size {}, top-k {}", hidden_size, top_k);
}

ExchangedTokens TokenExchange::dispatch(std::span<const float> hidden_states,
                                        std::span<const int32_t> topk_ids,
                                        std::span<const float> topk_weights) {
  const auto num_tokens = static_cast<int64_t>(hidden_states.size()) / hidden_size_;
  const auto num_choices = static_cast<size_t>(num_tokens * top_k_);
  GANTRY_CHECK(hidden_states.size() == static_cast<size_t>(num_tokens * hidden_size_) &&
                   topk_ids.size() == num_choices && topk_weights.size() == num_choices,
               ErrorCode::kInvalidArgument,
               "dispatch: {} hidden values, {} ids and {} weights for H {} and top-{}",
               hidden_states.size(), topk_ids.size(), topk_weights.size(), hidden_size_, top_k_);
  if (config_.dp_size == 1) {
    own_begin_ = 0;
    own_tokens_ = num_tokens_ = num_tokens;
    return {num_tokens, 0, hidden_states, topk_ids, topk_weights};
  }
  // Every rank says how many tokens it holds, so that all find the same mistake and none waits for
  // a rank that threw. Then one rank of each token group speaks for it.
  std::vector<int64_t> tokens(static_cast<size_t>(world_->size()));
  const std::vector<int64_t> one_each(tokens.size(), sizeof(int64_t));
  world_->all_gather(std::as_bytes(std::span(&num_tokens, 1)),
                     std::as_writable_bytes(std::span(tokens)), one_each);
  const auto group_size = static_cast<size_t>(config_.ep_ranks_per_dp_group() * config_.tp_size);
  for (size_t rank = 0; rank < tokens.size(); ++rank) {
    const size_t leader = rank / group_size * group_size;
    if (rank == leader) continue;
    GANTRY_CHECK(tokens[rank] == tokens[leader], ErrorCode::kInvalidArgument,
                 "dispatch: rank {} has {} tokens, the leader of its token group has {}", rank,
                 tokens[rank], tokens[leader]);
    tokens[rank] = 0;
  }
  const auto own_leader = static_cast<ptrdiff_t>(group_size) * config_.dp_rank();
  own_begin_ = std::accumulate(tokens.begin(), tokens.begin() + own_leader, int64_t{0});
  const auto scaled = [&](int64_t width) {
    std::vector<int64_t> counts = tokens;
    for (int64_t& count : counts)
      count *= width;
    return counts;
  };
  gather(*world_, hidden_states, scaled(hidden_size_), hidden_states_);
  gather(*world_, topk_ids, scaled(top_k_), topk_ids_);
  gather(*world_, topk_weights, scaled(top_k_), topk_weights_);
  const int64_t total = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  own_tokens_ = num_tokens;
  num_tokens_ = total;
  const int64_t contributed = tokens[static_cast<size_t>(config_.rank)];
  bytes_received_ += (total - contributed) * (hidden_size_ + 2 * top_k_) * 4;
  return {total, own_begin_, hidden_states_, topk_ids_, topk_weights_};
}

void TokenExchange::max_over_tp(std::span<float> values) {
  const auto tp = static_cast<size_t>(config_.tp_size);
  std::vector<int64_t> bytes(static_cast<size_t>(world_->size()), 0);
  const auto first = static_cast<size_t>(config_.rank - config_.tp_rank());
  std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(first), tp,
              static_cast<int64_t>(values.size_bytes()));
  tp_sent_.resize(tp * values.size());
  tp_received_.resize(tp * values.size());
  for (size_t rank = 0; rank < tp; ++rank) {
    std::copy(values.begin(), values.end(),
              tp_sent_.begin() + static_cast<ptrdiff_t>(rank * values.size()));
  }
  world_->all_to_all(std::as_bytes(std::span(tp_sent_)), bytes,
                     std::as_writable_bytes(std::span(tp_received_)), bytes);
  for (size_t i = 0; i < tp_received_.size(); ++i) {
    float& most = values[i % values.size()];
    const float other = tp_received_[i];
    if (other > most || std::isnan(other)) most = other;
  }
  bytes_received_ += static_cast<int64_t>((tp - 1) * values.size_bytes());
}

void TokenExchange::combine(std::span<float> partial, std::span<float> out) {
  const auto begin = static_cast<size_t>(own_begin_ * hidden_size_);
  GANTRY_CHECK(partial.size() == static_cast<size_t>(num_tokens_ * hidden_size_) &&
                   out.size() == static_cast<size_t>(own_tokens_ * hidden_size_),
               ErrorCode::kInvalidArgument,
               "combine: expected {} x {} partial and {} x {} own values, found {} and {}",
               num_tokens_, hidden_size_, own_tokens_, hidden_size_, partial.size(), out.size());
  if (world_->size() > 1) {
    world_->all_reduce_sum(partial);
    bytes_received_ += static_cast<int64_t>(partial.size_bytes()) * (world_->size() - 1);
  }
  std::copy_n(partial.begin() + static_cast<ptrdiff_t>(begin), out.size(), out.begin());
}

}  // namespace gantry
