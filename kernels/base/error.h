#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// What went wrong, as a caller would branch on it.
enum class ErrorCode {
  kInvalidArgument,  ///< A caller broke a documented precondition.
  kUnsupported,      ///< Valid input that this build or machine cannot process.
  kFormat,           ///< Bytes of a checkpoint or config break their format.
  kIo,               ///< The operating system refused to open, read or write.
  kCuda,
  kNccl,
  kMpi,
  kOutOfMemory,
  kTimeout,
  kInternal,  ///< A bug in Gantry.
};

std::string_view to_string(ErrorCode code) noexcept;

/// A place in Gantry's source. (std::source_location is missing from clang 14 with libstdc++ 12.)
struct SourceLocation {
  const char* file = "";
  int line = 0;

  /// As a default argument: the place of the call.
  static constexpr SourceLocation current(const char* file = __builtin_FILE(),
                                          int line = __builtin_LINE()) noexcept {
    return {file, line};
  }
};

/// The one exception type that Gantry throws.
///
/// The message names what was expected, what was found and which object it concerns.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message,
        SourceLocation where = SourceLocation::current());

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// Where in Gantry's source the error was raised.
  [[nodiscard]] const SourceLocation& where() const noexcept { return where_; }

 private:
  ErrorCode code_;
  SourceLocation where_;
};

}  // namespace gantry
