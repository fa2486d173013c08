#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/export.h"
#include "parallel/parallel_config.h"

namespace gantry GANTRY_API {

/// How tokens get to the ranks that hold their experts.
enum class ExchangeKind : uint8_t {
  kAuto,                    ///< one of the others, by `choose_exchange`
  kAllGatherReduceScatter,  ///< every rank gets every token
  kAllToAll,                ///< a rank gets the tokens that one of its experts was chosen for, once
};

/// How the outputs of a token's experts are added.
enum class CombineOrder : uint8_t {
  /// Each rank adds what its experts give; the token's owner adds the ranks' sums in rank order.
  kRank,
  /// Ranks return one f32 row a (token, choice); the token's owner weighs them and adds them in
  /// ascending logical expert id, so that the bits do not depend on ep_size, dp_size or placement.
  kOrdered,
};

/// Who adds the sums of ranks.
enum class ReduceOrder : uint8_t {
  kRank,  ///< the token's owner, in rank order: every run gives the same bits
  /// The transport's own reduction. Its order of additions is its own and may depend on the number
  /// of tokens and on the library's version.
  kNative,
};

struct ExchangeOptions {
  ExchangeKind kind = ExchangeKind::kAuto;
  CombineOrder combine = CombineOrder::kRank;
  ReduceOrder reduce = ReduceOrder::kRank;
  /// Tokens that every message between two ranks has room for. With 0 two ranks first tell each
  /// other how many tokens follow; with more, up to that many travel along: one collective instead
  /// of two as long as no rank sends more (decode), at the price of empty room. What does not fit
  /// follows in a second collective. All ranks set the same.
  int slots = 0;

  friend bool operator==(const ExchangeOptions&, const ExchangeOptions&) = default;
};

std::string_view to_string(ExchangeKind kind) noexcept;
std::string_view to_string(CombineOrder order) noexcept;
std::string_view to_string(ReduceOrder order) noexcept;
/// "auto", "allgather_reducescatter", "all_to_all". @throws Error kInvalidArgument
ExchangeKind parse_exchange_kind(std::string_view name);
/// "rank", "ordered". @throws Error kInvalidArgument
CombineOrder parse_combine_order(std::string_view name);
/// "rank", "native". @throws Error kInvalidArgument
ReduceOrder parse_reduce_order(std::string_view name);

/// Why these options cannot be used together, or empty.
/// @param batch_invariant the bits of a row must not depend on its batch
std::string infeasible_reduction(const ExchangeOptions& options, bool batch_invariant);

/// EP ranks that a token's top_k experts lie on, on average over all choices:
/// ep (1 - (1 - 1/ep)^top_k).
double expected_destinations(int ep_size, int64_t top_k) noexcept;

/// An exchange, and why.
struct ExchangeChoice {
  ExchangeKind kind = ExchangeKind::kAllGatherReduceScatter;  ///< never kAuto
  std::string reason;
};

/// What kAuto means: all_to_all where a token goes to at most half of the EP ranks (few collectives
/// over everything are faster where nearly every rank needs nearly every token, and with
/// ReduceOrder::kNative, which needs a row of every token from every rank).
ExchangeChoice choose_exchange(ExchangeKind asked, const ParallelConfig& config, int64_t top_k,
                               ReduceOrder reduce = ReduceOrder::kRank);

}  // namespace gantry
