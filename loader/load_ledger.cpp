#include "loader/load_ledger.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {

int64_t LoadLedger::expect(Entry entry) {
  const std::scoped_lock lock(mutex_);
  states_.push_back({std::move(entry), {}});
  return static_cast<int64_t>(states_.size()) - 1;
}

void LoadLedger::record(int64_t id, int64_t begin, int64_t end) {
  if (begin == end) return;
  const std::scoped_lock lock(mutex_);
  auto& writes = states_[static_cast<size_t>(id)].writes;
  // Chunks of one reader arrive in order: keep one interval instead of hundreds.
  if (!writes.empty() && writes.back().second == begin) {
    writes.back().second = end;
  } else {
    writes.emplace_back(begin, end);
  }
}

void LoadLedger::finish(LoadReport& report) const {
  const std::scoped_lock lock(mutex_);
  for (const State& state : states_) {
    std::vector<std::pair<int64_t, int64_t>> writes = state.writes;
    std::sort(writes.begin(), writes.end());
    int64_t next = 0;
    std::string problem;
    for (const auto& [begin, end] : writes) {
      if (begin > next && problem.empty())
        problem = fmt::format("{} to {} not written", next, begin);
      if (begin < next && problem.empty()) {
        problem = fmt::format("{} to {} written twice", begin, std::min(next, end));
      }
      next = std::max(next, end);
    }
    if (next < state.entry.units && problem.empty()) {
      problem = fmt::format("{} to {} not written", next, state.entry.units);
    }
    if (next > state.entry.units && problem.empty()) {
      problem = fmt::format("{} to {} written behind the end", state.entry.units, next);
    }
    if (problem.empty()) continue;
    const Entry& e = state.entry;
    report.add({FindingKind::kCoverage,
                fmt::format("layer {}, expert {}, slot {}, {}: of {} rows or columns, {}", e.layer,
                            e.expert, e.slot, e.part, e.units, problem),
                e.tensor, "", e.layer, e.expert, e.part});
  }
}

int64_t LoadLedger::expected_bytes() const {
  const std::scoped_lock lock(mutex_);
  int64_t bytes = 0;
  for (const State& state : states_)
    bytes += state.entry.units * state.entry.unit_bytes;
  return bytes;
}

int64_t LoadLedger::written_bytes() const {
  const std::scoped_lock lock(mutex_);
  int64_t bytes = 0;
  for (const State& state : states_) {
    for (const auto& [begin, end] : state.writes)
      bytes += (end - begin) * state.entry.unit_bytes;
  }
  return bytes;
}

}  // namespace gantry
