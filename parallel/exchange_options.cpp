#include "parallel/exchange_options.h"

#include <cmath>

#include "kernels/base/check.h"

namespace gantry {

std::string_view to_string(ExchangeKind kind) noexcept {
  switch (kind) {
    case ExchangeKind::kAuto:
      return "auto";
    case ExchangeKind::kAllGatherReduceScatter:
      return "allgather_reducescatter";
    case ExchangeKind::kAllToAll:
      return "all_to_all";
  }
  return "?";
}

std::string_view to_string(CombineOrder order) noexcept {
  return order == CombineOrder::kRank ? "rank" : "ordered";
}

std::string_view to_string(ReduceOrder order) noexcept {
  return order == ReduceOrder::kRank ? "rank" : "native";
}

ExchangeKind parse_exchange_kind(std::string_view name) {
  for (const ExchangeKind kind :
       {ExchangeKind::kAuto, ExchangeKind::kAllGatherReduceScatter, ExchangeKind::kAllToAll}) {
    if (name == to_string(kind)) return kind;
  }
  fail(ErrorCode::kInvalidArgument,
       "exchange: expected auto, allgather_reducescatter or all_to_all, found '{}'", name);
}

CombineOrder parse_combine_order(std::string_view name) {
  for (const CombineOrder order : {CombineOrder::kRank, CombineOrder::kOrdered}) {
    if (name == to_string(order)) return order;
  }
  fail(ErrorCode::kInvalidArgument, "combine: expected rank or ordered, found '{}'", name);
}

ReduceOrder parse_reduce_order(std::string_view name) {
  for (const ReduceOrder order : {ReduceOrder::kRank, ReduceOrder::kNative}) {
    if (name == to_string(order)) return order;
  }
  fail(ErrorCode::kInvalidArgument, "reduce: expected rank or native, found '{}'", name);
}

std::string infeasible_reduction(const ExchangeOptions& options, bool batch_invariant) {
  if (options.reduce == ReduceOrder::kRank) return {};
  if (options.combine == CombineOrder::kOrdered) {
    return "combine 'ordered' adds in ascending expert id, the transport's own reduction in an "
           "order of its own";
  }
  if (batch_invariant) {
    return "batch invariant: the transport chooses the order of its additions by the size of the "
           "message, so a row's bits could depend on its batch";
  }
  if (options.kind == ExchangeKind::kAllToAll) {
    return "exchange 'all_to_all' returns rows from the ranks of a token's experts only, the "
           "transport's own reduction needs one of every rank";
  }
  return {};
}

double expected_destinations(int ep_size, int64_t top_k) noexcept {
  const double ep = ep_size;
  return ep * (1.0 - std::pow(1.0 - 1.0 / ep, static_cast<double>(top_k)));
}

ExchangeChoice choose_exchange(ExchangeKind asked, const ParallelConfig& config, int64_t top_k,
                               ReduceOrder reduce) {
  if (asked != ExchangeKind::kAuto) return {asked, "as asked"};
  if (reduce == ReduceOrder::kNative) {
    return {ExchangeKind::kAllGatherReduceScatter,
            "the transport's own reduction needs a row of every token from every rank"};
  }
  if (config.ep_size == 1) {
    return {ExchangeKind::kAllGatherReduceScatter, "one EP rank holds all experts"};
  }
  const double destinations = expected_destinations(config.ep_size, top_k);
  const bool few = 2.0 * destinations <= config.ep_size;
  return {few ? ExchangeKind::kAllToAll : ExchangeKind::kAllGatherReduceScatter,
          fmt::format("a token of top-{} goes to {:.1f} of {} EP ranks: {} than half", top_k,
                      destinations, config.ep_size, few ? "not more" : "more")};
}

}  // namespace gantry
