#pragma once

#include <string>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Where experts live: contiguous ranges of ids, or ids dealt out like cards.
enum class Placement : unsigned char { kLinear, kRoundRobin };

std::string_view to_string(Placement placement) noexcept;
/// @throws Error kInvalidArgument for anything but "linear" and "round_robin"
Placement parse_placement(std::string_view name);

/// The shape of a world of ranks, and which of them this one is. A plain value.
///
/// World size = tp_size * ep_size; rank = ep_rank * tp_size + tp_rank. `dp_size` divides ep_size:
/// it cuts the EP ranks into groups that hold different tokens and adds no processes. Prefill
/// context parallelism is the same to this layer: dp_size is DP x PCP.
struct ParallelConfig {
  int tp_size = 1;
  int ep_size = 1;
  int dp_size = 1;
  int rank = 0;
  /// The ranks of a token group hold parts of its tokens instead of all of them (vLLM's SP).
  bool sequence_parallel = false;

  [[nodiscard]] int world_size() const noexcept { return tp_size * ep_size; }
  [[nodiscard]] int tp_rank() const noexcept { return rank % tp_size; }
  [[nodiscard]] int ep_rank() const noexcept { return rank / tp_size; }
  /// EP ranks that hold the same tokens.
  [[nodiscard]] int ep_ranks_per_dp_group() const noexcept { return ep_size / dp_size; }
  [[nodiscard]] int dp_rank() const noexcept { return ep_rank() / ep_ranks_per_dp_group(); }
  /// Ranks (TP and EP) of a token group: consecutive ones.
  [[nodiscard]] int token_group_size() const noexcept { return ep_ranks_per_dp_group() * tp_size; }
  [[nodiscard]] int first_of_token_group() const noexcept { return dp_rank() * token_group_size(); }
  /// True for the one EP rank of its token group that adds what must be added once: shared experts,
  /// identity experts.
  [[nodiscard]] bool leads_dp_group() const noexcept {
    return ep_rank() % ep_ranks_per_dp_group() == 0;
  }

  friend bool operator==(const ParallelConfig&, const ParallelConfig&) = default;
};

/// @throws Error kInvalidArgument naming the size that does not fit
void validate(const ParallelConfig& config);

/// "tp 2 x ep 3 (dp 1), rank 4: tp_rank 0, ep_rank 2"
std::string describe(const ParallelConfig& config);

/// A part [begin, end) of a range.
struct Slice {
  long begin = 0;
  long end = 0;
  [[nodiscard]] long size() const noexcept { return end - begin; }
};

/// The part of [0, total) that part `index` of `parts` owns: sizes differ by at most one, and the
/// first total % parts parts take the remainder.
Slice split_evenly(long total, int parts, int index);

/// The same in whole units of `unit` items, of which the last may be smaller.
/// @throws Error kInvalidArgument also for a unit below 1
Slice split_in_units(long total, long unit, int parts, int index);

}  // namespace gantry
