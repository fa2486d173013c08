#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/communicator.h"
#include "parallel/exchange_options.h"
#include "parallel/exchange_scratch.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// A batch as a rank of a token group has it: all tokens of the group, or with sequence_parallel
/// its part of them. Not owned.
struct TokenBatch {
  std::span<const float> hidden_states{};    // [T, H]
  std::span<const int32_t> topk_ids{};       // [T, K], -1 for none
  std::span<const float> topk_weights{};     // [T, K]
  std::span<const int32_t> id_to_rank{};     // [ids] EP rank that computes an id
  std::span<const int32_t> id_to_logical{};  // [ids] or empty: ids are logical
  /// Tokens that follow in further chunks.
  int64_t remaining = 0;
};

/// The tokens that a rank computes on after dispatch, and their routing, ordered by token group and
/// token.
struct ExchangedTokens {
  int64_t num_tokens = 0;                // T'
  std::span<const float> hidden_states;  // [T', H]
  std::span<const int32_t> topk_ids;     // [T', K], -1 where another rank computes
  std::span<const float> topk_weights;   // [T', K]
  /// With CombineOrder::kOrdered: the row of each choice that this rank computes, counted in
  /// ascending (token, choice); -1 for the others.
  std::span<const int32_t> choice_row;  // [T', K]
  int64_t num_rows = 0;
  /// The tokens of this rank's token group are [group_begin, group_begin + group_tokens) of these;
  /// -1: not all of them are here.
  int64_t group_begin = -1;
  int64_t group_tokens = 0;
  /// The tokens that this rank owns, whose results it adds up: [own_first, own_first + own_tokens)
  /// of its batch.
  int64_t own_first = 0;
  int64_t own_tokens = 0;
  /// Some rank has tokens left: every rank must dispatch again, also without tokens.
  bool more = false;
};

/// What a rank sent to and received from other ranks.
struct ExchangeBytes {
  int64_t dispatch_sent = 0;
  int64_t dispatch_received = 0;
  int64_t combine_sent = 0;
  int64_t combine_received = 0;
  int64_t magnitudes_sent = 0;  ///< max_over_tp
  int64_t magnitudes_received = 0;
  int64_t collectives = 0;
  int64_t overflows = 0;  ///< dispatches in which some message had more tokens than slots

  [[nodiscard]] int64_t sent() const noexcept {
    return dispatch_sent + combine_sent + magnitudes_sent;
  }
  [[nodiscard]] int64_t received() const noexcept {
    return dispatch_received + combine_received + magnitudes_received;
  }
  ExchangeBytes& operator+=(const ExchangeBytes& other) noexcept;
};

/// Brings tokens to the ranks that hold their experts, and sums the results back. One layer of one
/// rank; every rank makes the same calls in the same order.
///
/// Every token has one owner: with sequence_parallel the rank that holds it, else the tokens of a
/// group are divided evenly among its G ranks. A rank r "holds" a token that its own batch has.
///
///  dispatch   each owner sends its tokens, one payload of P = 4 (H + 2 K) bytes a token: hidden
///             state, ids, weights. allgather_reducescatter: to every rank. all_to_all: to all TP
///             ranks of each EP rank that computes one of the token's choices (and of the leading
///             EP rank of the group, where that adds shared experts), but not to those that hold
///             it. With dp_size 1 and without sequence_parallel every rank holds every token, and
///             nothing moves.
///  reduce     each rank returns one row of W values a token to its owner, who adds them in rank
///             order; or, ordered, one row a (token, choice).
///  gather     the owners of a token group exchange their sums (not with sequence_parallel).
///
/// Bytes that rank r receives in one call, from other ranks s, with h = 32 (ExchangeHeader), C
/// slots, own_s the tokens that s owns, n_sr those of them that are sent to r, d_rs the tokens of r
/// that s computes, e_rs the choices, T the tokens of the group of r:
///
///   dispatch  nothing moves                0
///             allgather_reducescatter      sum_s h + C P + P max(0, own_s - C)
///             all_to_all                   sum_s h + [s may send to r] (C P + P max(0, n_sr - C))
///   combine   rank                         sum_s 4 W d_rs          (allgather: d_rs = own_r)
///             ordered                      sum_s 4 W e_rs
///             ordered, shared experts      4 H own_r for each TP rank of the leading EP rank
///             gather                       4 H (T - own_r)         (sequence_parallel: 0)
///   w2's magnitudes (max_over_tp)          4 (tp - 1) values
class TokenExchange {
 public:
  struct Shape {
    int64_t hidden_size = 0;
    int64_t top_k = 0;
    int64_t row_width = 0;     ///< W of reduce, at most; 0: hidden_size
    bool shared_rows = false;  ///< the leading EP rank of a group computes on all of its tokens
    int layer = -1;            ///< for the log
  };

  /// @param world ranks of `config.world_size()`, alive as long as this object
  TokenExchange(const ParallelConfig& config, Communicator& world, const Shape& shape,
                const ExchangeOptions& options);

  /// Scratch for batches of up to `max_num_tokens` a rank, the same number on every rank.
  /// @param magnitude_values at most, of one max_over_tp
  [[nodiscard]] ExchangeScratch make_scratch(int64_t max_num_tokens,
                                             int64_t magnitude_values) const;
  /// Tokens of all ranks, at most, that a rank may have to compute on; of its group; that it owns.
  [[nodiscard]] int64_t max_all_tokens(int64_t max_num_tokens) const noexcept;
  [[nodiscard]] int64_t max_group_tokens(int64_t max_num_tokens) const noexcept;
  [[nodiscard]] int64_t max_own_tokens(int64_t max_num_tokens) const noexcept;

  /// Collective. All ranks of a token group pass the same tokens (sequence_parallel: their parts).
  /// Results stay valid until the next call with this scratch; the batch must live as long.
  /// @throws Error kInvalidArgument on every rank if ranks of a group pass different numbers of
  ///         tokens, or their scratch has another size; on one rank if an id is out of range
  ExchangedTokens dispatch(const TokenBatch& batch, ExchangeScratch& scratch);

  /// Collective. Adds the ranks' rows of this rank's own tokens in rank order, from +0; with
  /// ReduceOrder::kNative by the communicator's own reduction, whose messages are not counted.
  /// @param partial [T', width] of the last dispatch
  /// @param own     [own_tokens, width], written
  void reduce(std::span<const float> partial, int64_t width, std::span<float> own,
              ExchangeScratch& scratch);

  /// Collective. Adds the rows of the own tokens' choices in ascending logical expert id (then
  /// choice), each multiplied by its weight, from +0. Rows of TP ranks are added first.
  /// @param rows [num_rows, width] of the last dispatch
  /// @param weighted false: every weight is 1
  void reduce_ordered(std::span<const float> rows, int64_t width, bool weighted,
                      std::span<float> own, ExchangeScratch& scratch);

  /// Collective. Adds to every own token the rows that the leading EP rank of the group computed.
  /// @param rows [group_tokens, H] on the leading EP rank of a token group, else empty
  /// @param own  [own_tokens, H], added to
  void add_shared(std::span<const float> rows, std::span<float> own, ExchangeScratch& scratch);

  /// True where results of own tokens are not yet those of the batch: `gather` must follow.
  [[nodiscard]] bool gathers() const noexcept {
    return !config_.sequence_parallel && config_.token_group_size() > 1;
  }
  /// Collective. @param own [own_tokens, H]; @param out [T, H], written, does not overlap own
  void gather(std::span<const float> own, std::span<float> out, ExchangeScratch& scratch);

  /// Collective over all ranks. Replaces each value by the largest that any rank of this rank's TP
  /// group has there; NaN counts as the largest. TP ranks pass equally many values; ranks of other
  /// groups may pass another number.
  void max_over_tp(std::span<float> values, ExchangeScratch& scratch);

  [[nodiscard]] const ExchangeChoice& choice() const noexcept { return choice_; }
  [[nodiscard]] bool ordered() const noexcept { return options_.combine == CombineOrder::kOrdered; }
  /// Since this object was made.
  [[nodiscard]] const ExchangeBytes& bytes() const noexcept { return bytes_; }

 private:
  [[nodiscard]] bool sends_everything() const noexcept {
    return choice_.kind == ExchangeKind::kAllGatherReduceScatter;
  }
  [[nodiscard]] bool moves_tokens() const noexcept {
    return config_.dp_size > 1 || config_.sequence_parallel;
  }
  [[nodiscard]] int ep_rank_of(int64_t rank) const noexcept {
    return static_cast<int>(rank / config_.tp_size);
  }
  [[nodiscard]] int leading_ep_rank() const noexcept {
    return config_.dp_rank() * config_.ep_ranks_per_dp_group();
  }
  [[nodiscard]] bool in_group(int64_t rank) const noexcept {
    const int64_t offset = rank - config_.first_of_token_group();
    return offset >= 0 && offset < config_.token_group_size();
  }
  /// The tokens that this rank owns are also in the batch of `rank`.
  [[nodiscard]] bool holds(int64_t rank) const noexcept {
    return config_.sequence_parallel ? rank == config_.rank : in_group(rank);
  }
  [[nodiscard]] int64_t payload_bytes() const noexcept {
    return 4 * (shape_.hidden_size + 2 * shape_.top_k);
  }
  [[nodiscard]] int64_t message_bytes(bool with_slots) const noexcept {
    return static_cast<int64_t>(sizeof(ExchangeHeader)) +
           (with_slots ? options_.slots * payload_bytes() : 0);
  }
  [[nodiscard]] int64_t max_destinations() const noexcept;
  [[nodiscard]] Slice part_of_group(int64_t group_tokens, int64_t rank) const;

  [[nodiscard]] std::span<const int32_t> destinations(const ExchangeScratch& scratch,
                                                      int64_t token) const noexcept;
  [[nodiscard]] bool computes(const TokenBatch& batch, int64_t token) const noexcept;

  void begin(const TokenBatch& batch, ExchangeScratch& scratch) const;
  void find_destinations(ExchangeScratch& scratch) const;
  void exchange_tokens(const TokenBatch& batch, ExchangeScratch& scratch, bool& more);
  void exchange_rest(const TokenBatch& batch, ExchangeScratch& scratch);
  [[nodiscard]] int64_t beyond_slots(std::span<const int64_t> tokens, int64_t rank) const noexcept;
  template <typename Visit>
  void for_each_message(const ExchangeScratch& scratch, Visit visit) const;
  [[nodiscard]] std::span<std::byte> write_messages(const TokenBatch& batch,
                                                    ExchangeScratch& scratch) const;
  void write_rest(const TokenBatch& batch, ExchangeScratch& scratch) const;
  void write_hidden(const TokenBatch& batch, int64_t token, std::byte* to) const;
  void write_routing(const TokenBatch& batch, int64_t token, int64_t rank, std::byte* to) const;
  void transfer(std::span<const std::byte> send, std::span<std::byte> receive,
                ExchangeScratch& scratch, int64_t& sent, int64_t& received);
  [[nodiscard]] bool read_headers(ExchangeScratch& scratch, bool& more) const;
  void note_overflow(const ExchangeScratch& scratch);
  void count_held(const TokenBatch& batch, ExchangeScratch& scratch) const;
  void arrange(const TokenBatch& batch, ExchangeScratch& scratch) const;
  void number_rows(std::span<const int32_t> topk_ids, ExchangeScratch& scratch) const;
  void reduce_natively(std::span<const float> partial, int64_t width, std::span<float> own,
                       ExchangeScratch& scratch);
  std::span<const float> return_rows(std::span<const float> rows, int64_t width,
                                     std::span<const int64_t> send_rows,
                                     std::span<const int64_t> receive_rows,
                                     ExchangeScratch& scratch, bool copies_own = true);
  void gather_over(int first, int count, std::span<const std::byte> own,
                   std::span<std::byte> receive, ExchangeScratch& scratch, int64_t& sent,
                   int64_t& received);

  ParallelConfig config_;
  Communicator* world_;
  Shape shape_;
  ExchangeOptions options_;
  ExchangeChoice choice_;
  ExchangeBytes bytes_;
  std::vector<int32_t> all_ep_ranks_;  // [ep_size]
};

}  // namespace gantry
