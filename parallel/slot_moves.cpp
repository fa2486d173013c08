#include "parallel/slot_moves.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// Rounds by first fit. A move is kept out of a round only by another move of its sender or of its
// receiver, so there are fewer rounds than the most sends plus the most receives of a rank.
class RoundSchedule {
 public:
  explicit RoundSchedule(int num_ranks) : num_ranks_(static_cast<size_t>(num_ranks)) {}

  void add(const SlotMove& move) {
    const auto from = static_cast<size_t>(move.from_rank);
    const auto to = static_cast<size_t>(move.to_rank);
    size_t round = 0;
    while (round < rounds.size() && (sends_[round][from] || receives_[round][to]))
      ++round;
    if (round == rounds.size()) {
      rounds.emplace_back();
      sends_.emplace_back(num_ranks_, false);
      receives_.emplace_back(num_ranks_, false);
    }
    rounds[round].push_back(move);
    sends_[round][from] = receives_[round][to] = true;
  }

  std::vector<std::vector<SlotMove>> rounds;

 private:
  size_t num_ranks_;
  std::vector<std::vector<bool>> sends_;
  std::vector<std::vector<bool>> receives_;
};

// The old slot that a copy on the same rank comes from: its own if that holds the expert already.
int32_t local_source(const ExpertMap& from, int rank, int expert, int32_t to_slot) {
  const auto slots = from.slot_to_logical(rank);
  const auto same = static_cast<size_t>(to_slot);
  if (same < slots.size() && slots[same] == expert) return to_slot;
  return from.logical_to_slot(rank)[static_cast<size_t>(expert)];
}

// The holder that serves the i-th of `needed` ranks.
size_t server(size_t i, size_t needed, size_t holders) {
  const size_t each = needed / holders;
  return i < each * holders ? i / each : i - each * holders;
}

}  // namespace

int64_t MovePlan::num_received() const noexcept {
  int64_t count = 0;
  for (const auto& round : rounds)
    count += static_cast<int64_t>(round.size());
  return count;
}

MovePlan plan_moves(const ExpertMap& from, const ExpertMap& to) {
  GANTRY_CHECK(from.ep_size() == to.ep_size() && from.num_experts() == to.num_experts(),
               ErrorCode::kInvalidArgument,
               "rebalance: {} experts on {} ranks cannot become {} experts on {} ranks",
               from.num_experts(), from.ep_size(), to.num_experts(), to.ep_size());
  MovePlan plan;
  RoundSchedule schedule(from.ep_size());
  for (int expert = 0; expert < from.num_experts(); ++expert) {
    std::vector<SlotMove> holders;  // from_rank and from_slot of each rank that has it
    std::vector<SlotMove> needed;   // to_rank and to_slot of each rank that lacks it
    for (int rank = 0; rank < from.ep_size(); ++rank) {
      const int32_t held = from.logical_to_slot(rank)[static_cast<size_t>(expert)];
      SlotMove move{expert, rank, held, rank, 0};
      if (held >= 0) holders.push_back(move);
      std::optional<int32_t> primary;
      for (const int32_t slot : to.slots_of(rank, expert)) {
        move.to_slot = slot;
        if (held >= 0) {
          move.from_slot = local_source(from, rank, expert, slot);
          plan.copies.push_back(move);
        } else if (primary) {
          move.from_slot = *primary;
          plan.duplicates.push_back(move);
        } else {
          primary = slot;
          needed.push_back(move);
        }
      }
    }
    for (size_t i = 0; i < needed.size(); ++i) {
      const SlotMove& holder = holders[server(i, needed.size(), holders.size())];
      needed[i].from_rank = holder.from_rank;
      needed[i].from_slot = holder.from_slot;
      schedule.add(needed[i]);
    }
  }
  plan.rounds = std::move(schedule.rounds);
  return plan;
}

}  // namespace gantry
