#include "parallel/expert_map.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {

ExpertMap ExpertMap::create(int num_experts, int ep_size, Placement placement) {
  GANTRY_CHECK(num_experts >= 1, ErrorCode::kInvalidArgument,
               "expert map: expected at least 1 expert, found {}", num_experts);
  std::vector<int32_t> identity(static_cast<size_t>(num_experts));
  std::iota(identity.begin(), identity.end(), 0);
  return with_redundancy(num_experts, std::move(identity), ep_size, placement);
}

ExpertMap ExpertMap::with_redundancy(int num_experts, std::vector<int32_t> physical_to_logical,
                                     int ep_size, Placement placement) {
  GANTRY_CHECK(num_experts >= 1 && ep_size >= 1, ErrorCode::kInvalidArgument,
               "expert map: expected at least 1 expert and 1 rank, found {} and {}", num_experts,
               ep_size);
  std::vector<std::vector<int32_t>> physical_of(static_cast<size_t>(ep_size));
  for (int rank = 0; rank < ep_size; ++rank) {
    const Slice part = split_evenly(static_cast<long>(physical_to_logical.size()), ep_size, rank);
    for (long j = 0; j < part.size(); ++j) {
      // Linear: a contiguous range of ids. Round robin: rank, rank + ep_size, ...
      physical_of[static_cast<size_t>(rank)].push_back(static_cast<int32_t>(
          placement == Placement::kLinear ? part.begin + j : rank + j * ep_size));
    }
  }
  return build(num_experts, std::move(physical_to_logical), physical_of, placement);
}

ExpertMap ExpertMap::from_slots(int num_experts, std::vector<std::vector<int32_t>> slots) {
  GANTRY_CHECK(num_experts >= 1 && !slots.empty(), ErrorCode::kInvalidArgument,
               "expert map: expected at least 1 expert and 1 rank, found {} and {}", num_experts,
               slots.size());
  std::vector<int32_t> physical_to_logical;
  for (std::vector<int32_t>& of_rank : slots) {
    for (int32_t& slot : of_rank) {
      physical_to_logical.push_back(slot);
      slot = static_cast<int32_t>(physical_to_logical.size()) - 1;
    }
  }
  return build(num_experts, std::move(physical_to_logical), slots, Placement::kLinear);
}

ExpertMap ExpertMap::with_ep_size(int ep_size) const {
  GANTRY_CHECK(ep_size >= 1, ErrorCode::kInvalidArgument,
               "expert map: expected at least 1 rank, found {}", ep_size);
  std::vector<std::vector<int32_t>> slots = slot_to_logical_;
  for (size_t rank = static_cast<size_t>(ep_size); rank < slots.size(); ++rank) {
    GANTRY_CHECK(slots[rank].empty(), ErrorCode::kInvalidArgument,
                 "expert map: rank {} still holds {} expert(s): move them before it leaves", rank,
                 slots[rank].size());
  }
  slots.resize(static_cast<size_t>(ep_size));
  return from_slots(num_experts_, std::move(slots));
}

ExpertMap ExpertMap::build(int num_experts, std::vector<int32_t> physical_to_logical,
                           const std::vector<std::vector<int32_t>>& physical_of,
                           Placement placement) {
  ExpertMap map;
  map.num_experts_ = num_experts;
  map.ep_size_ = static_cast<int>(physical_of.size());
  map.placement_ = placement;
  map.replicas_.resize(static_cast<size_t>(num_experts));
  map.slot_to_logical_.resize(physical_of.size());
  map.logical_to_slot_.assign(physical_of.size(),
                              std::vector<int32_t>(static_cast<size_t>(num_experts), -1));
  const int num_physical = static_cast<int>(physical_to_logical.size());
  for (int p = 0; p < num_physical; ++p) {
    const int32_t logical = physical_to_logical[static_cast<size_t>(p)];
    GANTRY_CHECK(logical >= 0 && logical < num_experts, ErrorCode::kInvalidArgument,
                 "expert map: physical expert {}: expected a logical expert below {}, found {}", p,
                 num_experts, logical);
    map.replicas_[static_cast<size_t>(logical)].push_back(p);
  }
  for (int e = 0; e < num_experts; ++e) {
    GANTRY_CHECK(!map.replicas_[static_cast<size_t>(e)].empty(), ErrorCode::kInvalidArgument,
                 "expert map: logical expert {} has no copy", e);
  }
  map.owner_.resize(physical_to_logical.size());
  map.slot_.resize(physical_to_logical.size());
  for (size_t rank = 0; rank < physical_of.size(); ++rank) {
    auto& slots = map.slot_to_logical_[rank];
    auto& lookup = map.logical_to_slot_[rank];
    for (const int32_t physical : physical_of[rank]) {
      const auto index = static_cast<size_t>(physical);
      const int32_t logical = physical_to_logical[index];
      const auto slot = static_cast<int32_t>(slots.size());
      map.owner_[index] = static_cast<int32_t>(rank);
      map.slot_[index] = slot;
      slots.push_back(logical);
      if (lookup[static_cast<size_t>(logical)] < 0) lookup[static_cast<size_t>(logical)] = slot;
    }
  }
  map.physical_to_logical_ = std::move(physical_to_logical);
  return map;
}

int ExpertMap::num_slots(int ep_rank) const {
  return static_cast<int>(slot_to_logical(ep_rank).size());
}

std::span<const int32_t> ExpertMap::slot_to_logical(int ep_rank) const {
  GANTRY_CHECK(ep_rank >= 0 && ep_rank < ep_size_, ErrorCode::kInvalidArgument,
               "expert map: expected an EP rank below {}, found {}", ep_size_, ep_rank);
  return slot_to_logical_[static_cast<size_t>(ep_rank)];
}

std::span<const int32_t> ExpertMap::logical_to_slot(int ep_rank) const {
  GANTRY_CHECK(ep_rank >= 0 && ep_rank < ep_size_, ErrorCode::kInvalidArgument,
               "expert map: expected an EP rank below {}, found {}", ep_size_, ep_rank);
  return logical_to_slot_[static_cast<size_t>(ep_rank)];
}

std::vector<int32_t> ExpertMap::slots_of(int ep_rank, int expert) const {
  std::vector<int32_t> slots;
  for (const int32_t physical : replicas(expert)) {
    if (owner(physical) == ep_rank) slots.push_back(slot(physical));
  }
  return slots;
}

int ExpertMap::owner(int physical) const { return owner_[physical_index(physical)]; }

int ExpertMap::slot(int physical) const { return slot_[physical_index(physical)]; }

int ExpertMap::logical(int physical) const {
  return physical_to_logical_[physical_index(physical)];
}

size_t ExpertMap::physical_index(int physical) const {
  GANTRY_CHECK(physical >= 0 && physical < num_physical(), ErrorCode::kInvalidArgument,
               "expert map: expected a physical expert below {}, found {}", num_physical(),
               physical);
  return static_cast<size_t>(physical);
}

std::span<const int32_t> ExpertMap::replicas(int expert) const {
  GANTRY_CHECK(expert >= 0 && expert < num_experts_, ErrorCode::kInvalidArgument,
               "expert map: expected an expert below {}, found {}", num_experts_, expert);
  return replicas_[static_cast<size_t>(expert)];
}

int ExpertMap::computing_rank(int expert) const { return owner(replicas(expert)[0]); }

std::vector<int32_t> ExpertMap::computed_slots(int ep_rank) const {
  std::vector<int32_t> slots(static_cast<size_t>(num_experts_), -1);
  for (int e = 0; e < num_experts_; ++e) {
    const int32_t first = replicas(e)[0];
    if (owner(first) == ep_rank) slots[static_cast<size_t>(e)] = slot(first);
  }
  return slots;
}

std::vector<int32_t> ExpertMap::physical_to_contiguous() const {
  std::vector<int32_t> first(static_cast<size_t>(ep_size_), 0);  // of each rank
  for (size_t rank = 1; rank < first.size(); ++rank) {
    first[rank] = first[rank - 1] + static_cast<int32_t>(slot_to_logical_[rank - 1].size());
  }
  std::vector<int32_t> table(physical_to_logical_.size());
  for (size_t p = 0; p < table.size(); ++p)
    table[p] = first[static_cast<size_t>(owner_[p])] + slot_[p];
  return table;
}

std::vector<int32_t> ExpertMap::contiguous_to_physical() const {
  const std::vector<int32_t> forward = physical_to_contiguous();
  std::vector<int32_t> table(forward.size());
  for (size_t p = 0; p < forward.size(); ++p) {
    table[static_cast<size_t>(forward[p])] = static_cast<int32_t>(p);
  }
  return table;
}

std::string ExpertMap::describe() const {
  std::string text;
  for (int rank = 0; rank < ep_size_; ++rank) {
    const auto& slots = slot_to_logical_[static_cast<size_t>(rank)];
    text += fmt::format("{}rank {}: ", rank == 0 ? "" : "; ", rank);
    if (slots.empty()) text += "none";
    // Runs of ids with one step: "0-42", or "1, 4, ..., 127" for dealt ids.
    for (size_t begin = 0; begin < slots.size();) {
      size_t end = begin + 1;
      const int step = end < slots.size() ? slots[end] - slots[begin] : 1;
      while (end < slots.size() && step > 0 && slots[end] - slots[end - 1] == step)
        ++end;
      if (begin > 0) text += ", ";
      if (end - begin == 1) {
        text += std::to_string(slots[begin]);
      } else {
        text += fmt::format("{}-{}{}", slots[begin], slots[end - 1],
                            step == 1 ? "" : fmt::format(" by {}", step));
      }
      begin = end;
    }
  }
  return text;
}

}  // namespace gantry
