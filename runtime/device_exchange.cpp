#include "runtime/device_exchange.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "runtime/device_exchange_parts.h"

namespace gantry {
namespace {

// What does not go together on devices, or empty.
std::string problem_with(const ExchangeOptions& options, SumOrder order) {
  const bool ordered = options.combine == CombineOrder::kOrdered;
  const bool all_to_all = options.kind == ExchangeKind::kAllToAll;
  if (order == SumOrder::kNative && (ordered || all_to_all)) {
    return infeasible_reduction({.kind = options.kind,
                                 .combine = options.combine,
                                 .reduce = ReduceOrder::kNative,
                                 .slots = 0},
                                /*batch_invariant=*/false);
  }
  if (options.slots != 0 && !all_to_all) {
    return "slots belong to messages of all_to_all; those of allgather_reducescatter have fixed "
           "sizes";
  }
  if (options.slots != 0 && ordered) {
    return "combine 'ordered' returns one row a choice, whose number only the devices know, so "
           "slots would not keep the host from waiting";
  }
  return {};
}

}  // namespace

DeviceExchange::DeviceExchange(const DeviceWeights& weights, const DeviceMoeOptions& options,
                               DeviceCommunicator& world)
    : config_(weights.parallel),
      world_(&world),
      options_(options.exchange),
      order_(options.reduce),
      layer_(weights.spec.layer),
      hidden_size_(weights.spec.hidden_size),
      top_k_(weights.spec.routing.num_slots()),
      shared_rows_(weights.spec.shared.intermediate_size > 0 && !options.skip_shared_experts),
      group_begin_(static_cast<size_t>(config_.dp_size) + 1) {
  GANTRY_CHECK(world.size() == config_.world_size() && world.rank() == config_.rank,
               ErrorCode::kInvalidArgument,
               "{} does not belong to rank {} of {} of the device communicator", describe(config_),
               world.rank(), world.size());
  GANTRY_CHECK(options_.slots >= 0, ErrorCode::kInvalidArgument,
               "layer {}: expected 0 slots or more, found {}", layer_, options_.slots);
  const std::string problem = problem_with(options_, order_);
  GANTRY_CHECK(problem.empty(), ErrorCode::kUnsupported, "layer {}: GPUs: {}", layer_, problem);
  // Of the two, the one in which no host waits.
  if (options_.kind == ExchangeKind::kAuto) options_.kind = ExchangeKind::kAllGatherReduceScatter;
  const auto ranks = static_cast<size_t>(config_.world_size());
  const auto ep_ranks = static_cast<size_t>(config_.ep_size);
  sent_.resize(ep_ranks);
  sent_choices_.resize(ep_ranks);
  received_.resize(ranks);
  received_choices_.resize(ranks);
  counts_read_.resize(2 * (ep_ranks + ranks));
}

void DeviceExchange::reserve(int64_t max_num_tokens) {
  if (by_lists() || ordered()) return;  // sums of rows that returned are made elsewhere
  const int64_t ranks = config_.world_size();
  world_->reserve_sums((max_num_tokens * config_.dp_size + ranks) * hidden_size_);
}

std::vector<int64_t> DeviceExchange::gather_values(int64_t value, DeviceScratch& scratch,
                                                   StreamHandle stream) {
  Device& device = *world_->device();
  const int64_t ranks = config_.world_size();
  std::vector<int64_t> of_rank(static_cast<size_t>(ranks));
  int64_t* own = scratch.token_counts + config_.rank;
  device.copy_in(own, &value, sizeof(value), stream);
  counts_.assign(of_rank.size(), sizeof(int64_t));
  world_->all_gather(bytes_of(own, 1), room_of(scratch.token_counts, ranks), counts_, stream);
  device.copy_out(of_rank.data(), scratch.token_counts, of_rank.size() * sizeof(int64_t), stream);
  world_->wait(stream);
  return of_rank;
}

std::vector<int64_t> DeviceExchange::gather_counts(int64_t num_tokens, DeviceScratch& scratch,
                                                   StreamHandle stream) {
  const std::vector<int64_t> of_rank = gather_values(num_tokens, scratch, stream);
  std::vector<int64_t> of_group;
  const int group_size = config_.token_group_size();
  for (int rank = 0; rank < config_.world_size(); ++rank) {
    const int64_t count = of_rank[static_cast<size_t>(rank)];
    if (rank % group_size == 0) of_group.push_back(count);
    GANTRY_CHECK(count == of_group.back(), ErrorCode::kInvalidArgument,
                 "token group {}: rank {} has {} tokens, rank {} has {}", rank / group_size,
                 rank - rank % group_size, of_group.back(), rank, count);
  }
  return of_group;
}

Slice DeviceExchange::owned(int rank) const {
  const int group_size = config_.token_group_size();
  const auto group = static_cast<size_t>(rank / group_size);
  const long begin = group_begin_[group];
  const Slice part = split_evenly(group_begin_[group + 1] - begin, group_size, rank % group_size);
  return {begin + part.begin, begin + part.end};
}

Slice DeviceExchange::own_tokens() const {
  const Slice own = owned(config_.rank);
  const long begin = group_begin_[static_cast<size_t>(config_.dp_rank())];
  return {own.begin - begin, own.end - begin};
}

// This rank's own rows to everyone, everyone's rows to their places.
template <typename T>
void DeviceExchange::add_parts(const T* group_values, T* all_values, int64_t width) {
  const Slice own = owned(config_.rank);
  const long first = group_begin_[static_cast<size_t>(config_.dp_rank())];
  for (int other = 0; other < config_.world_size(); ++other) {
    const Slice theirs = owned(other);
    sends_.push_back(
        {other, bytes_of(group_values + (own.begin - first) * width, own.size() * width)});
    receives_.push_back({other, room_of(all_values + theirs.begin * width, theirs.size() * width)});
  }
}

DispatchedTokens DeviceExchange::dispatch(const RoutedTokens& input, int64_t num_tokens,
                                          std::span<const int64_t> group_tokens, bool exact,
                                          DeviceScratch& scratch, StreamHandle stream) {
  for (size_t group = 0; group + 1 < group_begin_.size(); ++group) {
    group_begin_[group + 1] =
        group_begin_[group] + (config_.dp_size == 1 ? num_tokens : group_tokens[group]);
  }
  exact_ = exact || options_.slots == 0;
  DispatchedTokens tokens;
  if (group_begin_.back() == 0) return tokens;
  const Count count(*world_, bytes_.dispatch_sent, bytes_.dispatch_received, bytes_.collectives);
  if (by_lists()) list_tokens(input, scratch, stream);
  if (ordered()) list_own_choices(input, scratch, stream);
  const bool asks_tokens = by_lists() && exact_;
  if (asks_tokens || ordered()) exchange_counts(asks_tokens, scratch, stream);
  if (!asks_tokens) fix_counts();
  if (by_lists()) {
    tokens = send_listed_tokens(input, scratch, stream);
  } else if (config_.dp_size == 1) {
    tokens = {.num_tokens = num_tokens,
              .hidden_states = input.hidden_states,
              .topk_ids = input.topk_ids,
              .topk_weights = input.topk_weights};
  } else {
    tokens = gather_tokens(input, scratch, stream);
  }
  tokens.any = true;
  tokens.group_tokens = num_tokens;
  return tokens;
}

// Where hosts know how many tokens go where.
void DeviceExchange::fix_counts() {
  const auto room = [&](int64_t own) {
    return by_lists() ? std::min<int64_t>(options_.slots, own) : own;
  };
  for (int ep_rank = 0; ep_rank < config_.ep_size; ++ep_rank) {
    const int64_t own = own_tokens().size();
    sent_[static_cast<size_t>(ep_rank)] = ep_rank == always_rank() ? own : room(own);
  }
  for (int rank = 0; rank < config_.world_size(); ++rank) {
    const int64_t own = owned(rank).size();
    const bool all = in_group(rank) && config_.ep_rank() == always_rank();
    received_[static_cast<size_t>(rank)] = all ? own : room(own);
  }
}

DispatchedTokens DeviceExchange::gather_tokens(const RoutedTokens& input, DeviceScratch& scratch,
                                               StreamHandle stream) {
  sends_.clear();
  receives_.clear();
  add_parts(input.hidden_states, scratch.all_x, hidden_size_);
  add_parts(input.topk_ids, scratch.all_ids, top_k_);
  add_parts(input.topk_weights, scratch.all_weights, top_k_);
  world_->send_receive(sends_, receives_, stream);
  return {.num_tokens = group_begin_.back(),
          .hidden_states = scratch.all_x,
          .topk_ids = scratch.all_ids,
          .topk_weights = scratch.all_weights,
          .group_begin = group_begin_[static_cast<size_t>(config_.dp_rank())]};
}

void DeviceExchange::reduce(float* partial, const DispatchedTokens& tokens, const float* bias,
                            DeviceScratch& scratch, float* out, StreamHandle stream) {
  const Count count(*world_, bytes_.combine_sent, bytes_.combine_received, bytes_.collectives);
  if (by_lists()) return reduce_listed(partial, bias, scratch, out, stream);
  const auto values = static_cast<size_t>(tokens.num_tokens * hidden_size_);
  if (sums_in_place()) return world_->all_reduce_sum({out, values}, order_, stream);
  counts_.clear();
  for (int rank = 0; rank < config_.world_size(); ++rank)
    counts_.push_back(owned(rank).size() * hidden_size_);
  const auto own = static_cast<size_t>(counts_[static_cast<size_t>(config_.rank)]);
  world_->reduce_scatter_sum({partial, values}, {scratch.own_sum, own}, counts_, order_, stream);
  gather_group(scratch.own_sum, out, stream);
}

// The owners of a token group exchange their sums.
void DeviceExchange::gather_group(const float* own, float* out, StreamHandle stream) {
  const int first = config_.first_of_token_group();
  const long begin = group_begin_[static_cast<size_t>(config_.dp_rank())];
  const int64_t own_values = owned(config_.rank).size() * hidden_size_;
  sends_.clear();
  receives_.clear();
  for (int other = first; other < first + config_.token_group_size(); ++other) {
    const Slice theirs = owned(other);
    sends_.push_back({other, bytes_of(own, own_values)});
    receives_.push_back({other, room_of(out + (theirs.begin - begin) * hidden_size_,
                                        theirs.size() * hidden_size_)});
  }
  world_->send_receive(sends_, receives_, stream);
}

}  // namespace gantry
