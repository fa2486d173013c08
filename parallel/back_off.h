#pragma once

#include <chrono>
#include <thread>

namespace gantry {

/// Between polls: spins first, for latency; then gives the core away, as ranks may share it.
/// Internal.
inline void back_off(int idle_polls) {
  if (idle_polls < 64) return;
  if (idle_polls < 4096) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace gantry
