// DeepSeek's expert parallelism load balancer: three greedy steps over the loads of one layer.

#include "parallel/eplb.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {
namespace {

std::vector<int> even_capacity(int items, int packs) {
  std::vector<int> capacity(static_cast<size_t>(packs));
  for (int pack = 0; pack < packs; ++pack)
    capacity[static_cast<size_t>(pack)] = static_cast<int>(split_evenly(items, packs, pack).size());
  return capacity;
}

// The first place of each pack among all places, pack by pack.
std::vector<int> first_places(std::span<const int> capacity) {
  std::vector<int> first(capacity.size(), 0);
  std::partial_sum(capacity.begin(), capacity.end() - 1, first.begin() + 1);
  return first;
}

void check_shape(std::span<const int64_t> load, const EplbShape& shape) {
  const auto num_experts = static_cast<int>(load.size());
  GANTRY_CHECK(num_experts >= 1 && shape.num_ranks >= 1 && shape.num_groups >= 1 &&
                   shape.num_nodes >= 1 && shape.num_nodes <= shape.num_ranks,
               ErrorCode::kInvalidArgument,
               "eplb: {} experts in {} groups on {} nodes and {} ranks: expected at least 1 of "
               "each, and no more nodes than ranks",
               num_experts, shape.num_groups, shape.num_nodes, shape.num_ranks);
  GANTRY_CHECK(shape.num_physical >= num_experts, ErrorCode::kInvalidArgument,
               "eplb: expected at least {} physical experts, found {}", num_experts,
               shape.num_physical);
  for (size_t e = 0; e < load.size(); ++e) {
    GANTRY_CHECK(load[e] >= 0, ErrorCode::kInvalidArgument, "eplb: expert {}: a load of {}", e,
                 load[e]);
  }
}

// Why the experts cannot be balanced group by group, or empty.
std::string not_hierarchical(int num_experts, const EplbShape& shape) {
  const auto uneven = [](int count, std::string_view what, int parts, std::string_view where) {
    return fmt::format("{} {} do not divide over {} {}", count, what, parts, where);
  };
  if (shape.num_groups % shape.num_nodes != 0) {
    return uneven(shape.num_groups, "group(s)", shape.num_nodes, "nodes");
  }
  if (num_experts % shape.num_groups != 0) {
    return uneven(num_experts, "experts", shape.num_groups, "groups");
  }
  if (shape.num_ranks % shape.num_nodes != 0) {
    return uneven(shape.num_ranks, "ranks", shape.num_nodes, "nodes");
  }
  if (shape.num_physical % shape.num_ranks != 0) {
    return uneven(shape.num_physical, "physical experts", shape.num_ranks, "ranks");
  }
  return "";
}

// Logical experts in the order in which nodes hold them: whole groups, packed by load.
std::vector<int32_t> order_by_node(std::span<const int64_t> load, const EplbShape& shape) {
  const size_t group_size = load.size() / static_cast<size_t>(shape.num_groups);
  std::vector<double> groups(static_cast<size_t>(shape.num_groups), 0.0);
  for (size_t e = 0; e < load.size(); ++e)
    groups[e / group_size] += static_cast<double>(load[e]);
  const int per_node = shape.num_groups / shape.num_nodes;
  const std::vector<PackedItem> packed =
      balanced_packing(groups, even_capacity(shape.num_groups, shape.num_nodes));
  std::vector<int32_t> order(load.size());
  for (size_t e = 0; e < load.size(); ++e) {
    const PackedItem& item = packed[e / group_size];
    const auto position = static_cast<size_t>(item.pack * per_node + item.place);
    order[position * group_size + e % group_size] = static_cast<int32_t>(e);
  }
  return order;
}

// The logical expert of each place of one node, rank by rank.
std::vector<int32_t> fill_node(std::span<const int32_t> experts, std::span<const int64_t> load,
                               std::span<const int> capacity) {
  std::vector<double> local_load;
  for (const int32_t expert : experts)
    local_load.push_back(static_cast<double>(load[static_cast<size_t>(expert)]));
  const int num_copies = std::accumulate(capacity.begin(), capacity.end(), 0);
  const std::vector<int32_t> copies = replicate_experts(local_load, num_copies);
  std::vector<int> count(experts.size(), 0);
  for (const int32_t copy : copies)
    ++count[static_cast<size_t>(copy)];
  std::vector<double> copy_load;
  for (const int32_t copy : copies)
    copy_load.push_back(local_load[static_cast<size_t>(copy)] / count[static_cast<size_t>(copy)]);
  const std::vector<PackedItem> packed = balanced_packing(copy_load, capacity);
  const std::vector<int> first = first_places(capacity);
  std::vector<int32_t> places(copies.size());
  for (size_t copy = 0; copy < copies.size(); ++copy) {
    const int place = first[static_cast<size_t>(packed[copy].pack)] + packed[copy].place;
    places[static_cast<size_t>(place)] = experts[static_cast<size_t>(copies[copy])];
  }
  return places;
}

}  // namespace

std::string_view to_string(EplbPolicy policy) noexcept {
  return policy == EplbPolicy::kHierarchical ? "hierarchical" : "global";
}

std::vector<PackedItem> balanced_packing(std::span<const double> weights,
                                         std::span<const int> capacity) {
  const auto places = std::accumulate(capacity.begin(), capacity.end(), int64_t{0});
  GANTRY_CHECK(!capacity.empty() && places == static_cast<int64_t>(weights.size()),
               ErrorCode::kInvalidArgument, "balanced packing: {} items for {} places in {} packs",
               weights.size(), places, capacity.size());
  std::vector<PackedItem> packed(weights.size());
  if (std::all_of(capacity.begin(), capacity.end(), [](int items) { return items == 1; })) {
    for (size_t item = 0; item < packed.size(); ++item)
      packed[item].pack = static_cast<int>(item);
    return packed;
  }
  std::vector<size_t> heaviest_first(weights.size());
  std::iota(heaviest_first.begin(), heaviest_first.end(), 0);
  std::stable_sort(heaviest_first.begin(), heaviest_first.end(),
                   [&](size_t a, size_t b) { return weights[a] > weights[b]; });
  std::vector<double> pack_weight(capacity.size(), 0.0);
  std::vector<int> pack_items(capacity.size(), 0);
  for (const size_t item : heaviest_first) {
    size_t lightest = capacity.size();
    for (size_t pack = 0; pack < capacity.size(); ++pack) {
      if (pack_items[pack] == capacity[pack]) continue;
      if (lightest == capacity.size() || pack_weight[pack] < pack_weight[lightest]) lightest = pack;
    }
    packed[item] = {static_cast<int>(lightest), pack_items[lightest]++};
    pack_weight[lightest] += weights[item];
  }
  return packed;
}

std::vector<int32_t> replicate_experts(std::span<const double> load, int num_physical) {
  GANTRY_CHECK(num_physical >= static_cast<int>(load.size()) && !load.empty(),
               ErrorCode::kInvalidArgument, "replicate experts: {} copies of {} experts",
               num_physical, load.size());
  std::vector<int32_t> logical(load.size());
  std::iota(logical.begin(), logical.end(), 0);
  std::vector<int> copies(load.size(), 1);
  const auto per_copy = [&](size_t e) { return load[e] / copies[e]; };
  while (static_cast<int>(logical.size()) < num_physical) {
    size_t most = 0;
    for (size_t e = 1; e < load.size(); ++e) {
      if (per_copy(e) > per_copy(most)) most = e;
    }
    logical.push_back(static_cast<int32_t>(most));
    ++copies[most];
  }
  return logical;
}

EplbPlan balance_experts(std::span<const int64_t> load, const EplbShape& shape) {
  check_shape(load, shape);
  EplbPlan plan;
  EplbShape used = shape;
  const std::string obstacle = not_hierarchical(static_cast<int>(load.size()), shape);
  if (obstacle.empty()) {
    plan.policy = EplbPolicy::kHierarchical;
    plan.reason =
        fmt::format("{} group(s) divide over {} node(s)", shape.num_groups, shape.num_nodes);
  } else {
    plan.reason = obstacle;
    used.num_groups = used.num_nodes = 1;
  }
  const std::vector<int32_t> order = order_by_node(load, used);
  const size_t per_node = load.size() / static_cast<size_t>(used.num_nodes);
  const std::vector<int> capacity =
      even_capacity(used.num_physical / used.num_nodes, used.num_ranks / used.num_nodes);
  for (size_t begin = 0; begin < order.size(); begin += per_node) {
    const std::vector<int32_t> places =
        fill_node(std::span(order).subspan(begin, per_node), load, capacity);
    plan.physical_to_logical.insert(plan.physical_to_logical.end(), places.begin(), places.end());
  }
  return plan;
}

ExpertMap keep_slots(const ExpertMap& current, const ExpertMap& planned) {
  GANTRY_CHECK(
      current.ep_size() == planned.ep_size() && current.num_experts() == planned.num_experts(),
      ErrorCode::kInvalidArgument, "keep slots: {} experts on {} ranks, then {} on {}",
      current.num_experts(), current.ep_size(), planned.num_experts(), planned.ep_size());
  std::vector<std::vector<int32_t>> slots;
  for (int rank = 0; rank < planned.ep_size(); ++rank) {
    const auto before = current.slot_to_logical(rank);
    const auto wanted = planned.slot_to_logical(rank);
    std::vector<int32_t> kept(wanted.size(), -1);
    std::vector<int32_t> rest(wanted.begin(), wanted.end());
    for (size_t slot = 0; slot < std::min(before.size(), wanted.size()); ++slot) {
      const auto found = std::find(rest.begin(), rest.end(), before[slot]);
      if (found == rest.end()) continue;
      kept[slot] = before[slot];
      rest.erase(found);
    }
    auto next = rest.begin();
    for (int32_t& expert : kept) {
      if (expert < 0) expert = *next++;
    }
    slots.push_back(std::move(kept));
  }
  return ExpertMap::from_slots(planned.num_experts(), std::move(slots));
}

std::vector<double> expected_rank_loads(const ExpertMap& experts, std::span<const int64_t> tokens) {
  GANTRY_CHECK(tokens.size() == static_cast<size_t>(experts.num_experts()),
               ErrorCode::kInvalidArgument,
               "rank loads: expected the tokens of {} experts, found {}", experts.num_experts(),
               tokens.size());
  std::vector<double> loads(static_cast<size_t>(experts.ep_size()), 0.0);
  for (int e = 0; e < experts.num_experts(); ++e) {
    const auto copies = experts.replicas(e);
    const double share =
        static_cast<double>(tokens[static_cast<size_t>(e)]) / static_cast<double>(copies.size());
    for (const int32_t physical : copies)
      loads[static_cast<size_t>(experts.owner(physical))] += share;
  }
  return loads;
}

double balancedness(std::span<const double> rank_loads) noexcept {
  const auto most = std::max_element(rank_loads.begin(), rank_loads.end());
  if (most == rank_loads.end() || *most <= 0.0) return 1.0;
  const double sum = std::accumulate(rank_loads.begin(), rank_loads.end(), 0.0);
  return sum / static_cast<double>(rank_loads.size()) / *most;
}

}  // namespace gantry
