#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// How long an operation of many ranks may stand still.
struct StallLimits {
  std::chrono::milliseconds warn_after{5'000};    ///< then the log says where it stands
  std::chrono::milliseconds abort_after{60'000};  ///< then the group is aborted
};

/// Watches an operation from a thread of its own: it must report progress now and then.
///
/// A step that takes longer than warn_after is logged once; after abort_after `on_stall` is called
/// once, from the watchdog's thread, with what the operation was doing.
class StallWatchdog {
 public:
  StallWatchdog(std::string operation, const StallLimits& limits,
                std::function<void(const std::string& what)> on_stall);
  StallWatchdog(const StallWatchdog&) = delete;
  StallWatchdog& operator=(const StallWatchdog&) = delete;
  /// Ends the watch.
  ~StallWatchdog();

  /// A new step has begun.
  void progress(std::string step);
  /// Steps that were slow enough for a warning.
  [[nodiscard]] int warnings() const noexcept { return warnings_; }

 private:
  void watch();

  std::string operation_;
  StallLimits limits_;
  std::function<void(const std::string&)> on_stall_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string step_ = "start";
  std::chrono::steady_clock::time_point since_ = std::chrono::steady_clock::now();
  bool warned_ = false;  // about this step
  bool done_ = false;
  std::atomic<int> warnings_ = 0;
  std::thread thread_;
};

}  // namespace gantry
