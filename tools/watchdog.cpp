#include "tools/watchdog.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "kernels/base/log.h"

namespace gantry::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kInterval{50};

double seconds(std::chrono::milliseconds time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

Watchdog::Watchdog(std::function<std::string()> is_due, int exit_code)
    : thread_([this, is_due = std::move(is_due), exit_code] {
        std::unique_lock lock(mutex_);
        while (!called_off_.wait_for(lock, kInterval, [&] { return stopped_; })) {
          const std::string reason = is_due();
          if (reason.empty()) continue;
          log_message(LogLevel::kError, reason);
          std::_Exit(exit_code);
        }
      }) {}

Watchdog::~Watchdog() {
  {
    const std::scoped_lock lock(mutex_);
    stopped_ = true;
  }
  called_off_.notify_all();
  thread_.join();
}

std::function<std::string()> lasts_longer_than(std::chrono::milliseconds patience,
                                               std::string what) {
  return [end = Clock::now() + patience, patience, what = std::move(what)]() -> std::string {
    if (Clock::now() < end) return {};
    return fmt::format("timeout: {} took more than {:.1f} s; some rank is stopped or gone", what,
                       seconds(patience));
  };
}

std::function<std::string()> stands_still(const Communicator& world,
                                          std::chrono::milliseconds patience) {
  struct Seen {
    uint64_t pulse = 0;
    Clock::time_point since = Clock::now();
  };
  return [&world, patience, seen = Seen()]() mutable -> std::string {
    const char* operation = world.current_operation();
    const uint64_t pulse = world.pulse();
    if (operation == nullptr || pulse != seen.pulse) {
      seen = {pulse, Clock::now()};
      return {};
    }
    if (Clock::now() - seen.since < patience) return {};
    return fmt::format(
        "timeout: MPI has not returned to {} for {:.1f} s; some rank is stopped or gone", operation,
        seconds(patience));
  };
}

}  // namespace gantry::cli
