#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/communicator.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// The tokens that a rank computes on after dispatch, and their routing.
struct ExchangedTokens {
  int64_t num_tokens = 0;
  int64_t own_begin = 0;                 ///< the caller's own tokens are [own_begin, own_begin + T)
  std::span<const float> hidden_states;  // [T', H]
  std::span<const int32_t> topk_ids;     // [T', K]
  std::span<const float> topk_weights;   // [T', K]
};

/// Brings tokens to the ranks that hold their experts, and sums the partial results back.
///
/// Strategy "allgather_reducescatter": with dp_size == 1 every rank already has all tokens and
/// dispatch moves nothing; else each token group is gathered from its leading rank. Combine sums
/// the partial outputs of all ranks (TP and EP) in rank order and keeps the caller's own tokens.
class TokenExchange {
 public:
  /// @param world ranks of `config.world_size()`, alive as long as this object
  TokenExchange(const ParallelConfig& config, Communicator& world, int64_t hidden_size,
                int64_t top_k);

  /// Collective. All ranks of a DP group pass the same tokens. Results stay valid until the next
  /// call.
  ExchangedTokens dispatch(std::span<const float> hidden_states, std::span<const int32_t> topk_ids,
                           std::span<const float> topk_weights);

  /// Collective. Sums `partial` [T', H] over all ranks in rank order and writes this rank's own
  /// tokens to out [T, H]. T' and T are those of the last dispatch.
  void combine(std::span<float> partial, std::span<float> out);

  /// Collective over all ranks. Replaces each value by the largest that any rank of this rank's TP
  /// group has there; NaN counts as the largest. TP ranks pass equally many values; ranks of other
  /// groups may pass another number.
  void max_over_tp(std::span<float> values);

  /// Bytes that this rank has received so far.
  [[nodiscard]] int64_t bytes_received() const noexcept { return bytes_received_; }

 private:
  ParallelConfig config_;
  Communicator* world_;
  int64_t hidden_size_;
  int64_t top_k_;
  int64_t num_tokens_ = 0;  // exchanged by the last dispatch
  int64_t own_begin_ = 0;   // first of this rank's tokens among them
  int64_t own_tokens_ = 0;
  int64_t bytes_received_ = 0;
  std::vector<float> hidden_states_;
  std::vector<int32_t> topk_ids_;
  std::vector<float> topk_weights_;
  std::vector<float> tp_sent_;      // [tp_size, values]
  std::vector<float> tp_received_;  // [tp_size, values]
};

}  // namespace gantry
