#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/device_communicator.h"
#include "parallel/parallel_config.h"
#include "parallel/token_exchange.h"
#include "runtime/device_moe_layer.h"
#include "runtime/device_scratch.h"

namespace gantry {

/// What a rank computes on after dispatch, in device memory, ordered by token group and token.
struct DispatchedTokens {
  int64_t num_tokens = 0;                // T'
  const float* hidden_states = nullptr;  // [T', H]
  const int32_t* topk_ids = nullptr;     // [T', K]
  const float* topk_weights = nullptr;   // [T', K]
  /// The tokens of this rank's token group are [group_begin, group_begin + group_tokens) of these.
  int64_t group_begin = 0;
  int64_t group_tokens = 0;
};

/// allgather_reducescatter on devices: TokenExchange's formulas for bytes hold without its headers.
/// Every rank computes its experts' part of every token. With one token group all ranks have all
/// tokens, and nothing moves but sums. Internal.
class DeviceExchange {
 public:
  /// @param world ranks of `config.world_size()`, on the layer's device; outlives this object
  /// @throws Error kInvalidArgument if config and world do not belong together
  DeviceExchange(const ParallelConfig& config, DeviceCommunicator& world, SumOrder order,
                 int64_t hidden_size, int64_t top_k);

  /// Room for sums of batches of `max_num_tokens` a token group.
  void reserve(int64_t max_num_tokens);

  /// Collective: how many tokens each token group has. Waits for the stream.
  /// @throws Error kInvalidArgument on every rank if ranks of a group have different numbers
  std::vector<int64_t> gather_counts(int64_t num_tokens, DeviceScratch& scratch,
                                     StreamHandle stream);

  /// Collective. @param input.group_tokens [dp_size], unless that is 1
  DispatchedTokens dispatch(const DeviceMoeInput& input, const int32_t* topk_ids,
                            const float* topk_weights, DeviceScratch& scratch, StreamHandle stream);

  /// Whether `partial` of reduce is `out` itself.
  [[nodiscard]] bool sums_in_place() const noexcept { return config_.dp_size == 1; }
  /// Collective. Adds every rank's partial [T', H] and gives each rank those of its token group.
  /// @param out [group_tokens, H], written
  void reduce(float* partial, const DispatchedTokens& tokens, DeviceScratch& scratch, float* out,
              StreamHandle stream);

  [[nodiscard]] DeviceCommunicator& world() noexcept { return *world_; }
  /// Since this object was made.
  [[nodiscard]] const ExchangeBytes& bytes() const noexcept { return bytes_; }

 private:
  /// The tokens that `rank` owns: a part of its group's, as a slice of all tokens.
  [[nodiscard]] Slice owned(int rank) const;
  template <typename T>
  void add_parts(const T* group_values, T* all_values, int64_t width);
  void gather_group(const float* own, float* out, StreamHandle stream);

  ParallelConfig config_;
  DeviceCommunicator* world_;
  SumOrder order_;
  int64_t hidden_size_;
  int64_t top_k_;
  ExchangeBytes bytes_;
  // Of the batch under way, kept between calls so that a steady state allocates nothing.
  std::vector<int64_t> group_begin_;  // [dp_size + 1]
  std::vector<SendPart> sends_;
  std::vector<ReceivePart> receives_;
  std::vector<int64_t> counts_;
};

}  // namespace gantry
