#pragma once

#include <cstdint>
#include <functional>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// Runs `body(task)` for every task in [0, num_tasks), on any thread and in any order, and returns
/// when all are done. `body` is noexcept in effect: it must not throw across the executor.
using Executor = std::function<void(int64_t num_tasks, const std::function<void(int64_t)>& body)>;

/// How many threads a parallel region uses, and who runs them. A plain value: copies are cheap,
/// nothing process-wide changes.
struct Threads {
  int count = 0;      ///< 0: every CPU that this process may run on.
  Executor executor;  ///< Empty: OpenMP with `count` threads.

  [[nodiscard]] int resolved_count() const;
};

/// CPUs in this process's affinity mask.
[[nodiscard]] int available_cpus();

/// Calls `body(task)` for every task in [0, num_tasks) on `threads`. An exception thrown by `body`
/// is caught on its thread and the first one (by task number) is rethrown here after all are done.
void parallel_for(const Threads& threads, int64_t num_tasks,
                  const std::function<void(int64_t task)>& body);

}  // namespace gantry
