#pragma once

// Argument and input checks. Internal: public headers include "kernels/base/error.h" only.

#include <fmt/format.h>

#include <string>
#include <utility>

#include "kernels/base/error.h"

namespace gantry {

/// Throws `Error(code, message)`.
[[noreturn]] void fail_with(ErrorCode code, const std::string& message,
                            SourceLocation where = SourceLocation::current());

/// Formats a message and throws it; the location is that of the format string.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  fail_with(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace gantry

/// Throws `Error(code, fmt::format(...))` unless `cond` holds. For public entries and file
/// contents.
#define GANTRY_CHECK(cond, code, ...)                        \
  do {                                                       \
    if (!(cond)) [[unlikely]] {                              \
      ::gantry::fail_with((code), fmt::format(__VA_ARGS__)); \
    }                                                        \
  } while (false)

/// A check inside hot loops: only in builds without NDEBUG.
#ifdef NDEBUG
#define GANTRY_DCHECK(cond) \
  do {                      \
  } while (false)
#else
#define GANTRY_DCHECK(cond) \
  GANTRY_CHECK(cond, ::gantry::ErrorCode::kInternal, "check failed: " #cond)
#endif
