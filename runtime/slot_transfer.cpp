#include "runtime/slot_transfer.h"

#include "kernels/base/log_format.h"

namespace gantry {

Digest digest_of_map(const ExpertMap& map) {
  std::vector<int32_t> words = {map.num_experts(), map.ep_size()};
  for (int rank = 0; rank < map.ep_size(); ++rank) {
    words.push_back(map.num_slots(rank));
    const auto slots = map.slot_to_logical(rank);
    words.insert(words.end(), slots.begin(), slots.end());
  }
  return digest_of(std::as_bytes(std::span(words)));
}

std::optional<RankProblem> disagreement(const RebalanceAgreement& own, Communicator& world) {
  const std::vector<RebalanceAgreement> all = gather_values(world, own);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const RebalanceAgreement& other = all[rank];
    std::string difference;
    if (other.tp_rank == own.tp_rank && other.layout != own.layout) difference = "slot layout";
    if (other.new_map != own.new_map) difference = "new map";
    if (other.old_map != own.old_map) difference = "current map";
    if (other.layer != own.layer) difference = "layer";
    if (difference.empty()) continue;
    return RankProblem{ErrorCode::kInvalidArgument,
                       fmt::format("rank {} has another {}", rank, difference)};
  }
  return std::nullopt;
}

SlotTransfer::SlotTransfer(const ParallelConfig& parallel, const MovePlan& plan, SlotMemory& memory,
                           RebalanceStats& stats)
    : parallel_(parallel),
      plan_(plan),
      memory_(memory),
      ep_rank_(parallel.ep_rank()),
      stats_(stats) {}

void SlotTransfer::run(Communicator& world, StallWatchdog& watchdog, const std::string& operation,
                       const std::function<void()>& finish) {
  copy_old();
  std::optional<RankProblem> problem = exchange(world, watchdog);
  try {
    copy_received();
    finish();
  } catch (...) {
    if (!problem) problem = current_problem();
  }
  watchdog.progress("voting on the result");
  vote_to_go_on(world, operation, problem);
}

void SlotTransfer::copy_old() {
  for (const SlotMove& move : plan_.copies) {
    if (move.to_rank != ep_rank_) continue;
    memory_.copy_old(move.to_slot, move.from_slot);
    stats_.bytes_copied += memory_.slot_bytes();
    ++(move.to_slot == move.from_slot ? stats_.slots_kept : stats_.slots_copied);
  }
}

void SlotTransfer::copy_received() {
  for (const SlotMove& move : plan_.duplicates) {
    if (move.to_rank != ep_rank_) continue;
    memory_.copy_new(move.to_slot, move.from_slot);
    stats_.bytes_copied += memory_.slot_bytes();
    ++stats_.slots_copied;
  }
}

std::optional<RankProblem> SlotTransfer::exchange(Communicator& world, StallWatchdog& watchdog) {
  std::optional<RankProblem> problem;
  const std::vector<Digest> digests = gather_digests(world);
  size_t next = 0;  // of digests
  for (const std::vector<SlotMove>& round : plan_.rounds) {
    watchdog.progress(fmt::format("exchange {} of {}", stats_.rounds + 1, plan_.rounds.size()));
    const SlotMove* leaving = nullptr;
    const SlotMove* arriving = nullptr;
    Digest expected;
    for (const SlotMove& move : round) {
      if (move.from_rank == ep_rank_) leaving = &move;
      if (move.to_rank == ep_rank_) {
        arriving = &move;
        expected = digests[next];
      }
      ++next;
    }
    memory_.exchange(leaving == nullptr ? -1 : world_rank(leaving->to_rank),
                     leaving == nullptr ? 0 : leaving->from_slot,
                     arriving == nullptr ? -1 : world_rank(arriving->from_rank),
                     arriving == nullptr ? 0 : arriving->to_slot);
    ++stats_.rounds;
    if (leaving != nullptr) stats_.bytes_sent += memory_.slot_bytes();
    if (arriving == nullptr) continue;
    stats_.bytes_received += memory_.slot_bytes();
    ++stats_.slots_received;
    const Digest found = memory_.digest_new(arriving->to_slot);
    if (found == expected || problem) continue;
    problem = {
        ErrorCode::kIo,
        fmt::format("expert {} from rank {} arrived with digest {}, expected {}", arriving->expert,
                    world_rank(arriving->from_rank), to_string(found), to_string(expected))};
  }
  return problem;
}

// Collective. The digest of each slot that crosses between ranks of this rank's shard, in the order
// of the rounds.
std::vector<Digest> SlotTransfer::gather_digests(Communicator& world) {
  std::vector<int64_t> bytes(static_cast<size_t>(world.size()), 0);
  std::vector<Digest> own;
  for (const auto& round : plan_.rounds) {
    for (const SlotMove& move : round) {
      for (int tp = 0; tp < parallel_.tp_size; ++tp) {
        bytes[static_cast<size_t>(move.from_rank * parallel_.tp_size + tp)] +=
            static_cast<int64_t>(sizeof(Digest));
      }
      if (move.from_rank == ep_rank_) own.push_back(memory_.digest_old(move.from_slot));
    }
  }
  size_t total = 0;
  std::vector<size_t> cursor;  // where each rank's digests stand
  for (const int64_t of_rank : bytes) {
    cursor.push_back(total);
    total += static_cast<size_t>(of_rank) / sizeof(Digest);
  }
  std::vector<Digest> by_rank(total);
  world.all_gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(by_rank)),
                   bytes);
  std::vector<Digest> by_round;
  for (const auto& round : plan_.rounds) {
    for (const SlotMove& move : round)
      by_round.push_back(by_rank[cursor[static_cast<size_t>(world_rank(move.from_rank))]++]);
  }
  return by_round;
}

void log_moves(int layer, int rank, const RebalanceStats& stats) {
  log(rank == 0 ? LogLevel::kInfo : LogLevel::kDebug,
      "layer {}: rank {}: experts moved: {} kept, {} copied, {} received in {} round(s); {} bytes "
      "sent, {} received",
      layer, rank, stats.slots_kept, stats.slots_copied, stats.slots_received, stats.rounds,
      stats.bytes_sent, stats.bytes_received);
}

}  // namespace gantry
