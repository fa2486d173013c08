#include "parallel/stall_watchdog.h"

#include <utility>

#include "kernels/base/log_format.h"

namespace gantry {

StallWatchdog::StallWatchdog(std::string operation, const StallLimits& limits,
                             std::function<void(const std::string& what)> on_stall)
    : operation_(std::move(operation)),
      limits_(limits),
      on_stall_(std::move(on_stall)),
      thread_([this] { watch(); }) {}

StallWatchdog::~StallWatchdog() {
  {
    const std::scoped_lock lock(mutex_);
    done_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void StallWatchdog::progress(std::string step) {
  {
    const std::scoped_lock lock(mutex_);
    step_ = std::move(step);
    since_ = std::chrono::steady_clock::now();
    warned_ = false;
  }
  changed_.notify_all();
}

void StallWatchdog::watch() {
  std::unique_lock lock(mutex_);
  while (!done_) {
    const auto stalled_at = since_ + (warned_ ? limits_.abort_after : limits_.warn_after);
    if (std::chrono::steady_clock::now() < stalled_at) {
      changed_.wait_until(lock, stalled_at);
      continue;
    }
    const std::string what = fmt::format("{}: no progress at: {}", operation_, step_);
    if (!warned_) {
      warned_ = true;
      ++warnings_;
      log(LogLevel::kWarn, "{} for {} ms", what, limits_.warn_after.count());
      continue;
    }
    done_ = true;
    lock.unlock();  // on_stall may wake the operation, which then ends this watch
    log(LogLevel::kError, "{} for {} ms: the rank group is aborted", what,
        limits_.abort_after.count());
    on_stall_(what);
    return;
  }
}

}  // namespace gantry
