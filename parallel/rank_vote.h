#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kernels/base/error.h"
#include "kernels/base/export.h"
#include "parallel/communicator.h"

namespace gantry GANTRY_API {

/// Collective. One value of every rank, in rank order, on every rank.
template <typename T>
std::vector<T> gather_values(Communicator& world, const T& own) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<T> all(static_cast<size_t>(world.size()));
  const std::vector<int64_t> bytes(all.size(), sizeof(T));
  world.all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(all)),
                   bytes);
  return all;
}

/// Why a rank cannot go on.
struct RankProblem {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

/// The exception that is being handled, as a problem to vote with. Call it in a catch block.
RankProblem current_problem();

/// Collective. Returns on all ranks if none has a problem, else throws the same Error on all of
/// them: the code of the lowest rank that has one, and what each of them said (256 bytes at most).
/// The group stays usable.
/// @param operation what the ranks are about to do, for the message
void vote_to_go_on(Communicator& world, std::string_view operation,
                   const std::optional<RankProblem>& problem);

}  // namespace gantry
