#include "runtime/device_exchange.h"

#include "kernels/base/check.h"

namespace gantry {
namespace {

template <typename T>
std::span<const std::byte> bytes_of(const T* values, int64_t count) {
  return std::as_bytes(std::span(values, static_cast<size_t>(count)));
}
template <typename T>
std::span<std::byte> room_of(T* values, int64_t count) {
  return std::as_writable_bytes(std::span(values, static_cast<size_t>(count)));
}

// Adds what an operation moved to one of the sums.
class Count {
 public:
  Count(const DeviceCommunicator& world, int64_t& sent, int64_t& received, int64_t& collectives)
      : world_(world), sent_(sent), received_(received), collectives_(collectives) {}
  Count(const Count&) = delete;
  Count& operator=(const Count&) = delete;
  ~Count() {
    sent_ += world_.traffic().bytes_sent - before_.bytes_sent;
    received_ += world_.traffic().bytes_received - before_.bytes_received;
    collectives_ += world_.traffic().operations - before_.operations;
  }

 private:
  const DeviceCommunicator& world_;
  int64_t& sent_;
  int64_t& received_;
  int64_t& collectives_;
  Traffic before_ = world_.traffic();
};

}  // namespace

DeviceExchange::DeviceExchange(const ParallelConfig& config, DeviceCommunicator& world,
                               SumOrder order, int64_t hidden_size, int64_t top_k)
    : config_(config),
      world_(&world),
      order_(order),
      hidden_size_(hidden_size),
      top_k_(top_k),
      group_begin_(static_cast<size_t>(config.dp_size) + 1) {
  GANTRY_CHECK(world.size() == config.world_size() && world.rank() == config.rank,
               ErrorCode::kInvalidArgument,
               "{} does not belong to rank {} of {} of the device communicator", describe(config),
               world.rank(), world.size());
}

void DeviceExchange::reserve(int64_t max_num_tokens) {
  const int64_t ranks = config_.world_size();
  world_->reserve_sums((max_num_tokens * config_.dp_size + ranks) * hidden_size_);
}

std::vector<int64_t> DeviceExchange::gather_counts(int64_t num_tokens, DeviceScratch& scratch,
                                                   StreamHandle stream) {
  Device& device = *world_->device();
  const int64_t ranks = config_.world_size();
  std::vector<int64_t> of_rank(static_cast<size_t>(ranks));
  int64_t* own = scratch.token_counts + config_.rank;
  device.copy_in(own, &num_tokens, sizeof(num_tokens), stream);
  counts_.assign(of_rank.size(), sizeof(int64_t));
  world_->all_gather(bytes_of(own, 1), room_of(scratch.token_counts, ranks), counts_, stream);
  device.copy_out(of_rank.data(), scratch.token_counts, of_rank.size() * sizeof(int64_t), stream);
  world_->wait(stream);
  std::vector<int64_t> of_group;
  const int group_size = config_.token_group_size();
  for (int rank = 0; rank < ranks; ++rank) {
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

DispatchedTokens DeviceExchange::dispatch(const DeviceMoeInput& input, const int32_t* topk_ids,
                                          const float* topk_weights, DeviceScratch& scratch,
                                          StreamHandle stream) {
  if (config_.dp_size == 1) {
    return {.num_tokens = input.num_tokens,
            .hidden_states = input.hidden_states,
            .topk_ids = topk_ids,
            .topk_weights = topk_weights,
            .group_begin = 0,
            .group_tokens = input.num_tokens};
  }
  const auto dp_rank = static_cast<size_t>(config_.dp_rank());
  for (size_t group = 0; group < input.group_tokens.size(); ++group)
    group_begin_[group + 1] = group_begin_[group] + input.group_tokens[group];
  const DispatchedTokens tokens{.num_tokens = group_begin_.back(),
                                .hidden_states = scratch.all_x,
                                .topk_ids = scratch.all_ids,
                                .topk_weights = scratch.all_weights,
                                .group_begin = group_begin_[dp_rank],
                                .group_tokens = input.num_tokens};
  if (tokens.num_tokens == 0) return tokens;
  const Count count(*world_, bytes_.dispatch_sent, bytes_.dispatch_received, bytes_.collectives);
  sends_.clear();
  receives_.clear();
  add_parts(input.hidden_states, scratch.all_x, hidden_size_);
  add_parts(topk_ids, scratch.all_ids, top_k_);
  add_parts(topk_weights, scratch.all_weights, top_k_);
  world_->send_receive(sends_, receives_, stream);
  return tokens;
}

void DeviceExchange::reduce(float* partial, const DispatchedTokens& tokens, DeviceScratch& scratch,
                            float* out, StreamHandle stream) {
  const Count count(*world_, bytes_.combine_sent, bytes_.combine_received, bytes_.collectives);
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
