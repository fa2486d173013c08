#pragma once

#include <functional>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

/// Receives every log line of the library. May be called from several threads at once.
using LogSink = std::function<void(LogLevel level, std::string_view message)>;

/// Replaces the process's log sink; an empty function restores the default (stderr).
void set_log_sink(LogSink sink);

/// Lines below `level` are dropped before they are formatted. Default: kInfo, or the environment
/// variable GANTRY_LOG (debug, info, warn, error).
void set_log_level(LogLevel level);
[[nodiscard]] LogLevel log_level();

/// Hands one line to the sink.
void log_message(LogLevel level, std::string_view message);

}  // namespace gantry
