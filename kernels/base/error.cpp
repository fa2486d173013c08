#include "kernels/base/error.h"

#include "kernels/base/check.h"

namespace gantry {

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid argument";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kFormat:
      return "format error";
    case ErrorCode::kIo:
      return "I/O error";
    case ErrorCode::kCuda:
      return "CUDA error";
    case ErrorCode::kNccl:
      return "NCCL error";
    case ErrorCode::kMpi:
      return "MPI error";
    case ErrorCode::kOutOfMemory:
      return "out of memory";
    case ErrorCode::kTimeout:
      return "time-out";
    case ErrorCode::kInternal:
      return "internal error";
  }
  return "unknown error";
}

Error::Error(ErrorCode code, const std::string& message, SourceLocation where)
    : std::runtime_error(message), code_(code), where_(where) {}

void fail_with(ErrorCode code, const std::string& message, SourceLocation where) {
  throw Error(code, message, where);
}

}  // namespace gantry
