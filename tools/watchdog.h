#pragma once

// Threads that end this process when a call that cannot be given a deadline does not come back.
// They end it at once, without MPI, which is what hangs; the launcher then ends the other ranks.

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "parallel/communicator.h"

namespace gantry::cli {

/// Calls `is_due` from a thread of its own every 50 ms or so until it returns a reason; then logs
/// that and ends the process with `exit_code`. The destructor calls it off.
class Watchdog {
 public:
  Watchdog(std::function<std::string()> is_due, int exit_code);
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  ~Watchdog();

 private:
  std::mutex mutex_;
  std::condition_variable called_off_;
  bool stopped_ = false;
  std::thread thread_;
};

/// Due when `patience` is over: for MPI_Init, MPI_Finalize, MPI_Abort.
std::function<std::string()> lasts_longer_than(std::chrono::milliseconds patience,
                                               std::string what);

/// Due when an operation of `world` has shown no sign of life for `patience`: its own time-out
/// cannot strike if MPI does not return (a rank that was stopped while it wrote to a queue in
/// shared memory makes the others spin on it).
std::function<std::string()> stands_still(const Communicator& world,
                                          std::chrono::milliseconds patience);

}  // namespace gantry::cli
