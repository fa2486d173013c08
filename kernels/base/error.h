#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace gantry {

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

/// The one exception type that Gantry throws.
///
/// The message names what was expected, what was found and which object it concerns.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message,
        std::source_location where = std::source_location::current());

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  /// Where in Gantry's source the error was raised.
  [[nodiscard]] const std::source_location& where() const noexcept { return where_; }

 private:
  ErrorCode code_;
  std::source_location where_;
};

}  // namespace gantry
