#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/export.h"
#include "loader/load_report.h"

namespace gantry GANTRY_API {

/// Proves that every owned byte was written exactly once.
///
/// Before loading, every destination (layer, expert, slot, part, kind) is expected with its size;
/// while loading, every write is recorded with its range; at the end, gaps and overlaps become
/// findings. Destinations are written in bands along one axis, so ranges are rows or columns.
/// Thread-safe to record to.
class LoadLedger {
 public:
  struct Entry {
    int layer = -1;
    int expert = -1;  ///< logical expert, or -1
    int slot = -1;
    std::string part;  ///< "w1 weight"
    std::string tensor;
    int64_t units = 0;  ///< rows or columns to be written
    int64_t unit_bytes = 0;
  };

  /// @return the id to record writes under
  int64_t expect(Entry entry);

  void record(int64_t id, int64_t begin, int64_t end);

  /// Adds one finding for every destination with a gap or an overlap.
  void finish(LoadReport& report) const;

  [[nodiscard]] int64_t expected_bytes() const;
  [[nodiscard]] int64_t written_bytes() const;

 private:
  struct State {
    Entry entry;
    std::vector<std::pair<int64_t, int64_t>> writes;
  };
  mutable std::mutex mutex_;
  std::vector<State> states_;
};

}  // namespace gantry
