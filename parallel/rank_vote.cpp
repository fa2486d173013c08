#include "parallel/rank_vote.h"

#include <array>
#include <cstring>
#include <exception>
#include <new>

#include "kernels/base/check.h"

namespace gantry {
namespace {

struct Ballot {
  int32_t has_problem = 0;
  int32_t code = 0;
  std::array<char, 256> message{};
};

}  // namespace

RankProblem current_problem() {
  try {
    throw;
  } catch (const Error& error) {
    return {error.code(), error.what()};
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kOutOfMemory, "out of memory"};
  } catch (const std::exception& error) {
    return {ErrorCode::kInternal, error.what()};
  } catch (...) {
    return {ErrorCode::kInternal, "unknown exception"};
  }
}

void vote_to_go_on(Communicator& world, std::string_view operation,
                   const std::optional<RankProblem>& problem) {
  Ballot own;
  if (problem) {
    own.has_problem = 1;
    own.code = static_cast<int32_t>(problem->code);
    // The last character stays 0.
    problem->message.copy(own.message.data(), own.message.size() - 1);
  }
  const std::vector<Ballot> ballots = gather_values(world, own);
  std::string reasons;
  const Ballot* first = nullptr;
  for (size_t rank = 0; rank < ballots.size(); ++rank) {
    const Ballot& ballot = ballots[rank];
    if (ballot.has_problem == 0) continue;
    if (first == nullptr) first = &ballot;
    const size_t length = strnlen(ballot.message.data(), ballot.message.size());
    reasons += fmt::format("{}rank {}: {}", reasons.empty() ? "" : "; ", rank,
                           std::string_view(ballot.message.data(), length));
  }
  if (first == nullptr) return;
  fail(static_cast<ErrorCode>(first->code), "{}: {}", operation, reasons);
}

}  // namespace gantry
