#pragma once

// What a rebalance does whatever memory slots lie in: agree, copy and exchange into new memory,
// check what arrived. Internal.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/digest.h"
#include "parallel/expert_map.h"
#include "parallel/parallel_config.h"
#include "parallel/rank_vote.h"
#include "parallel/slot_moves.h"
#include "parallel/stall_watchdog.h"
#include "runtime/rebalance.h"

namespace gantry {

/// What all ranks must have in common; the layout only TP ranks of the same shard.
struct RebalanceAgreement {
  Digest old_map;
  Digest new_map;
  Digest layout;
  int32_t layer = 0;
  int32_t tp_rank = 0;
};

Digest digest_of_map(const ExpertMap& map);

/// Collective. What another rank sees differently, if any does.
std::optional<RankProblem> disagreement(const RebalanceAgreement& own, Communicator& world);

/// A rank's slots before and after, all of one size.
class SlotMemory {
 public:
  SlotMemory() = default;
  SlotMemory(const SlotMemory&) = delete;
  SlotMemory& operator=(const SlotMemory&) = delete;
  virtual ~SlotMemory() = default;

  [[nodiscard]] virtual int64_t slot_bytes() const = 0;
  virtual void copy_old(int32_t to_slot, int32_t from_old_slot) = 0;
  virtual void copy_new(int32_t to_slot, int32_t from_new_slot) = 0;
  virtual Digest digest_old(int32_t slot) = 0;
  virtual Digest digest_new(int32_t slot) = 0;
  /// Collective. Peers are ranks of the world, -1: nothing to send or to receive.
  virtual void exchange(int send_peer, int32_t old_slot, int receive_peer, int32_t new_slot) = 0;
};

/// Moves one rank's slots into new memory.
class SlotTransfer {
 public:
  SlotTransfer(const ParallelConfig& parallel, const MovePlan& plan, SlotMemory& memory,
               RebalanceStats& stats);

  /// Collective. Fills the new slots, calls `finish`, and votes: ends well on all ranks or on none.
  /// @throws Error of the first rank with a problem: a slot that did not arrive as it was sent, or
  ///         what `finish` threw
  void run(Communicator& world, StallWatchdog& watchdog, const std::string& operation,
           const std::function<void()>& finish);

 private:
  /// From old slots of this rank.
  void copy_old();
  /// From new slots of this rank.
  void copy_received();
  /// Collective. Returns the first slot that did not arrive as it was sent.
  std::optional<RankProblem> exchange(Communicator& world, StallWatchdog& watchdog);
  std::vector<Digest> gather_digests(Communicator& world);
  /// The rank of the same shard.
  [[nodiscard]] int world_rank(int ep_rank) const {
    return ep_rank * parallel_.tp_size + parallel_.tp_rank();
  }

  ParallelConfig parallel_;
  const MovePlan& plan_;
  SlotMemory& memory_;
  int ep_rank_;
  RebalanceStats& stats_;
};

/// Logs what a rank did.
void log_moves(int layer, int rank, const RebalanceStats& stats);

}  // namespace gantry
