#include "kernels/base/parallel_for.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <exception>
#include <mutex>

namespace gantry {
namespace {

// Remembers the exception of the lowest task, so that what the caller sees does not depend on
// timing more than it must.
class FirstError {
 public:
  void capture(int64_t task) noexcept {
    const std::scoped_lock lock(mutex_);
    if (!error_ || task < task_) {
      error_ = std::current_exception();
      task_ = task;
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
  int64_t task_ = 0;
};

}  // namespace

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

int Threads::resolved_count() const { return count > 0 ? count : available_cpus(); }

void parallel_for(const Threads& threads, int64_t num_tasks,
                  const std::function<void(int64_t task)>& body) {
  const int64_t num_threads = std::min<int64_t>(threads.resolved_count(), num_tasks);
  FirstError error;
  const auto guarded = [&](int64_t task) noexcept {
    try {
      body(task);
    } catch (...) {
      error.capture(task);
    }
  };
  if (threads.executor) {
    threads.executor(num_tasks, guarded);
  } else if (num_threads <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task)
      guarded(task);
  } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast <int>(num_threads))
    for (int64_t task = 0; task < num_tasks; ++task)
      guarded(task);
  }
  error.rethrow();
}

}  // namespace gantry
