#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/export.h"
#include "parallel/expert_map.h"

namespace gantry GANTRY_API {

/// What the experts of a layer are spread over.
struct EplbShape {
  int num_physical = 0;  ///< P: experts and redundant copies, in all
  int num_ranks = 1;     ///< EP ranks
  int num_groups = 1;    ///< routing groups (n_group of the DeepSeek configs)
  int num_nodes = 1;     ///< hosts; num_ranks / num_nodes consecutive ranks share one
};

/// kHierarchical keeps the experts of a routing group on one node; kGlobal knows neither.
enum class EplbPolicy : unsigned char { kHierarchical, kGlobal };

std::string_view to_string(EplbPolicy policy) noexcept;

/// A placement of one layer.
struct EplbPlan {
  std::vector<int32_t> physical_to_logical;  ///< [P], rank by rank (ExpertMap, Placement::kLinear)
  EplbPolicy policy = EplbPolicy::kGlobal;
  std::string reason;  ///< why this policy, for the log
};

/// Where each item went: its pack, and which place there.
struct PackedItem {
  int pack = 0;
  int place = 0;
};

/// Packs items, heaviest first, each into the lightest pack that is not full. Equal weights go in
/// ascending id, equal packs are taken in ascending id. Packs of one item each take the items in
/// order.
/// @param capacity how many items each pack takes; sums to the number of items
/// @throws Error kInvalidArgument if it does not
std::vector<PackedItem> balanced_packing(std::span<const double> weights,
                                         std::span<const int> capacity);

/// The logical expert of each of `num_physical` copies: every expert once, in order, then one copy
/// after the other of the expert whose load per copy is highest (of equal ones the lowest id).
std::vector<int32_t> replicate_experts(std::span<const double> load, int num_physical);

/// Balances one layer by DeepSeek's expert parallelism load balancer.
///
/// Hierarchical, if groups divide evenly over nodes: (1) groups are packed onto nodes by load;
/// (2) in each node the experts with the highest load per copy are replicated; (3) copies are
/// packed onto the node's ranks. Else global: the same with one group and one node. Global also
/// takes a P that is no multiple of the ranks: the first P % ranks hold one more.
///
/// Only sums, quotients and comparisons of doubles, with all ties broken by the lowest id: equal
/// input gives equal output on every rank.
/// @param load [E] tokens of each logical expert; all zero is fine
/// @throws Error kInvalidArgument if P < E, a size is below 1, or a load is negative
/// @source the README of DeepSeek's EPLB, and placements that its code printed (tests/golden/eplb)
EplbPlan balance_experts(std::span<const int64_t> load, const EplbShape& shape);

/// Reorders the slots of each rank of `planned` so that experts that stay on a rank stay in their
/// slot of `current`, as far as that slot still exists. Which rank holds what does not change.
ExpertMap keep_slots(const ExpertMap& current, const ExpertMap& planned);

/// Tokens that each rank computes if copies of an expert share its tokens evenly. [ep_size]
/// @param tokens [E] of each logical expert
std::vector<double> expected_rank_loads(const ExpertMap& experts, std::span<const int64_t> tokens);

/// mean / max: 1 if every rank has the same load, 1 / ranks if one has all. 1 without load.
double balancedness(std::span<const double> rank_loads) noexcept;

}  // namespace gantry
