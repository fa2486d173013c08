#include "kernels/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "kernels/base/check.h"

namespace gantry {
namespace {

LogLevel initial_level() {
  const char* name = std::getenv("GANTRY_LOG");
  const std::string level = name == nullptr ? "info" : name;
  if (level == "debug") return LogLevel::kDebug;
  if (level == "info") return LogLevel::kInfo;
  if (level == "warn") return LogLevel::kWarn;
  if (level == "error") return LogLevel::kError;
  fail(ErrorCode::kInvalidArgument, "GANTRY_LOG: expected debug, info, warn or error, found '{}'",
       level);
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// A private logger: the embedding process's spdlog registry is left alone.
LogSink stderr_sink() {
  auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>("gantry", sink);
  logger->set_level(spdlog::level::debug);
  logger->set_pattern("[%T.%e] [%^%l%$] %v");
  return [logger](LogLevel level, std::string_view message) {
    logger->log(to_spdlog(level), "{}", message);
  };
}

struct LogState {
  std::mutex mutex;
  std::shared_ptr<const LogSink> sink = std::make_shared<const LogSink>(stderr_sink());
  std::atomic<LogLevel> level = initial_level();
};

LogState& state() {
  static LogState instance;
  return instance;
}

}  // namespace

void set_log_sink(LogSink sink) {
  auto next = std::make_shared<const LogSink>(sink ? std::move(sink) : stderr_sink());
  const std::scoped_lock lock(state().mutex);
  state().sink = std::move(next);
}

void set_log_level(LogLevel level) { state().level.store(level); }

LogLevel log_level() { return state().level.load(); }

void log_message(LogLevel level, std::string_view message) {
  if (level < log_level()) return;
  std::shared_ptr<const LogSink> sink;
  {
    const std::scoped_lock lock(state().mutex);
    sink = state().sink;
  }
  (*sink)(level, message);
}

}  // namespace gantry
