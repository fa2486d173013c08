#pragma once

// Formatted logging for Gantry's own sources. Internal: public headers include "log.h" only.

#include <fmt/format.h>

#include <utility>

#include "kernels/base/log.h"

namespace gantry {

template <typename... Args>
void log(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (level >= log_level()) log_message(level, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace gantry
