#pragma once

#include <memory>
#include <string>

#include "parallel/nccl_abi.h"

namespace gantry {

/// NCCL, loaded with dlopen. Internal.
///
/// Stays loaded until the process ends: NCCL has threads of its own. Threads: const.
class NcclLibrary {
 public:
  /// @param name a file, a name for the dynamic linker, or empty: GANTRY_NCCL_LIBRARY, else
  ///             libnccl.so.2
  /// @throws Error kUnsupported if it cannot be loaded, lacks a function, is older than 2.14 (the
  ///         first with non-blocking communicators), or in a build with GANTRY_WITH_NCCL=OFF
  static std::shared_ptr<const NcclLibrary> open(const std::string& name = "");

  [[nodiscard]] const nccl::Api& api() const noexcept { return api_; }
  /// 22809 is 2.28.9.
  [[nodiscard]] int version() const noexcept { return version_; }
  /// "NCCL 2.28.9 (/usr/lib/libnccl.so.2)"
  [[nodiscard]] const std::string& description() const noexcept { return description_; }

 private:
  NcclLibrary() = default;
  nccl::Api api_;
  int version_ = 0;
  std::string description_;
};

/// "2.28.9"
std::string nccl_version_text(int version);

}  // namespace gantry
