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

double expected_destinations(int ep_size, int64_t top_k) noexcept {
  const double ep = ep_size;
  return ep * (1.0 - std::pow(1.0 - 1.0 / ep, static_cast<double>(top_k)));
}

ExchangeChoice choose_exchange(ExchangeKind asked, const ParallelConfig& config, int64_t top_k) {
  if (asked != ExchangeKind::kAuto) return {asked, "as asked"};
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
