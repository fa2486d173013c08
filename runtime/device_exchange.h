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

/// A batch whose experts are chosen, in device memory.
struct RoutedTokens {
  const float* hidden_states = nullptr;  // [T, H]
  const int32_t* topk_ids = nullptr;     // [T, K]
  const float* topk_weights = nullptr;   // [T, K]
  const DeviceExperts::IdMap* ids = nullptr;
};

/// What a rank computes on after dispatch, in device memory, ordered by token group and token.
struct DispatchedTokens {
  bool any = false;                      // whether some rank of the world has tokens
  int64_t num_tokens = 0;                // T'
  const float* hidden_states = nullptr;  // [T', H]
  const int32_t* topk_ids = nullptr;     // [T', K]
  const float* topk_weights = nullptr;   // [T', K]
  /// The tokens of this rank's token group are [group_begin, group_begin + group_tokens) of these;
  /// with all_to_all on the ranks that add shared experts only, and not with combine ordered.
  int64_t group_begin = 0;
  int64_t group_tokens = 0;
};

/// Rows of w2 of this rank's own tokens, one a choice, from the ranks that computed them.
struct ReturnedChoices {
  const float* y = nullptr;             // [rows, n]
  const int32_t* choice_row = nullptr;  // [own, K] row of each choice, or -1
};

/// How tokens get to the ranks of their experts and rows come back, on devices. Internal.
///
/// allgather_reducescatter: every rank computes its experts' part of every token. With one token
/// group all ranks have all tokens, and nothing moves but sums.
///
/// all_to_all: the owner of a token (an even part of its group's is each rank's) sends it to the
/// ranks outside the group that compute one of its choices; those return one row a token to the
/// owner, who adds them in rank order. How many tokens go where, only the devices know. Without
/// slots ranks tell each other first: 4 bytes a pair of ranks, and the host waits for them. With C
/// slots every message has room for min(C, own tokens), which all hosts know, and nothing waits;
/// tokens that do not fit become NaN (`overflows`).
///
/// combine ordered (either exchange): one row a (token, choice) returns, and 4 bytes a pair say how
/// many; the host waits.
///
/// Bytes of TokenExchange's formulas hold with h = 4 bytes for each of the two numbers (0 where
/// hosts know them) from every other rank, also where nothing else moves.
class DeviceExchange {
 public:
  /// @param world ranks of `weights.parallel.world_size()`, on the layer's device; outlives this
  /// @throws Error kInvalidArgument if config and world do not belong together
  /// @throws Error kUnsupported for options that do not go together
  DeviceExchange(const DeviceWeights& weights, const DeviceMoeOptions& options,
                 DeviceCommunicator& world);

  /// Room for sums of batches of `max_num_tokens` a token group.
  void reserve(int64_t max_num_tokens);

  /// Collective: how many tokens each token group has. Waits for the stream.
  /// @throws Error kInvalidArgument on every rank if ranks of a group have different numbers
  std::vector<int64_t> gather_counts(int64_t num_tokens, DeviceScratch& scratch,
                                     StreamHandle stream);

  /// Collective. @param group_tokens [dp_size], unless that is 1
  /// @param exact room for all tokens, whatever the slots
  DispatchedTokens dispatch(const RoutedTokens& input, int64_t num_tokens,
                            std::span<const int64_t> group_tokens, bool exact,
                            DeviceScratch& scratch, StreamHandle stream);

  /// Whether every rank computes on all tokens, of which it has all: `partial` of reduce is `out`.
  [[nodiscard]] bool sums_in_place() const noexcept { return config_.dp_size == 1 && !by_lists(); }
  /// Collective. Adds every rank's partial [T', H] and gives each rank those of its token group.
  /// @param bias [H] added once to each sum, or null; only with all_to_all
  /// @param out [group_tokens, H], written
  void reduce(float* partial, const DispatchedTokens& tokens, const float* bias,
              DeviceScratch& scratch, float* out, StreamHandle stream);

  /// Collective, with combine ordered.
  /// @param y          [rows, width] of w2, for the tokens of the last dispatch
  /// @param choice_row [T', K] of RowPlan
  ReturnedChoices return_choices(const float* y, const int32_t* choice_row, int64_t width,
                                 const DispatchedTokens& tokens, const DeviceExperts::IdMap& ids,
                                 DeviceScratch& scratch, StreamHandle stream);
  /// Collective, with combine ordered: shared experts' rows to the owners of the tokens.
  /// @param rows [group tokens, H] on the leading EP rank of a token group
  /// @return [own tokens, H]
  const float* return_shared(const float* rows, DeviceScratch& scratch, StreamHandle stream);
  /// Collective. The owners of a token group exchange their sums. @param own [own tokens, H]
  void gather_group(const float* own, float* out, StreamHandle stream);

  /// The tokens of the last dispatch that this rank owns: a part of its batch.
  [[nodiscard]] Slice own_tokens() const;
  /// Tokens of the last dispatch that a message had no room for, of this rank. Waits.
  int64_t lost_tokens(DeviceScratch& scratch, StreamHandle stream);
  /// Collective: whether some rank lost a token. Counts and logs it.
  bool overflows(DeviceScratch& scratch, StreamHandle stream);

  [[nodiscard]] bool by_lists() const noexcept { return options_.kind == ExchangeKind::kAllToAll; }
  [[nodiscard]] bool ordered() const noexcept { return options_.combine == CombineOrder::kOrdered; }
  [[nodiscard]] DeviceCommunicator& world() noexcept { return *world_; }
  /// Since this object was made.
  [[nodiscard]] const ExchangeBytes& bytes() const noexcept { return bytes_; }

 private:
  /// The tokens that `rank` owns: a part of its group's, as a slice of all tokens.
  [[nodiscard]] Slice owned(int rank) const;
  [[nodiscard]] bool in_group(int rank) const noexcept {
    return rank / config_.token_group_size() == config_.dp_rank();
  }
  [[nodiscard]] int leading_ep_rank() const noexcept {
    return config_.dp_rank() * config_.ep_ranks_per_dp_group();
  }
  /// The EP rank that takes every token of this group, or -1.
  [[nodiscard]] int always_rank() const noexcept {
    return shared_rows_ && !ordered() ? leading_ep_rank() : -1;
  }
  std::vector<int64_t> gather_values(int64_t value, DeviceScratch& scratch, StreamHandle stream);
  template <typename T>
  void add_parts(const T* group_values, T* all_values, int64_t width);
  DispatchedTokens gather_tokens(const RoutedTokens& input, DeviceScratch& scratch,
                                 StreamHandle stream);
  // all_to_all
  void list_tokens(const RoutedTokens& input, DeviceScratch& scratch, StreamHandle stream);
  void fix_counts();
  DispatchedTokens send_listed_tokens(const RoutedTokens& input, DeviceScratch& scratch,
                                      StreamHandle stream);
  void reduce_listed(const float* partial, const float* bias, DeviceScratch& scratch, float* out,
                     StreamHandle stream);
  // Numbers that only devices know
  void list_own_choices(const RoutedTokens& input, DeviceScratch& scratch, StreamHandle stream);
  void exchange_counts(bool tokens, DeviceScratch& scratch, StreamHandle stream);

  ParallelConfig config_;
  DeviceCommunicator* world_;
  ExchangeOptions options_;
  SumOrder order_;
  int layer_;
  int64_t hidden_size_;
  int64_t top_k_;
  bool shared_rows_;
  ExchangeBytes bytes_;
  // Of the batch under way, kept between calls so that a steady state allocates nothing.
  std::vector<int64_t> group_begin_;       // [dp_size + 1]
  bool exact_ = true;                      // hosts know how long lists are, or have asked
  std::vector<int64_t> sent_;              // [ep_size] own tokens of each list
  std::vector<int64_t> received_;          // [ranks] tokens of each owner that this rank computes
  std::vector<int64_t> sent_choices_;      // [ep_size]
  std::vector<int64_t> received_choices_;  // [ranks]
  std::vector<int32_t> counts_read_;
  std::vector<SendPart> sends_;
  std::vector<ReceivePart> receives_;
  std::vector<int64_t> counts_;
};

}  // namespace gantry
