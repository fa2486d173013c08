#include "parallel/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>

#include "kernels/base/check.h"

namespace gantry {

std::shared_ptr<const NcclLibrary> NcclLibrary::open(const std::string& name) {
  std::string file = name;
  if (file.empty()) {
    const char* chosen = std::getenv("GANTRY_NCCL_LIBRARY");
    file = chosen != nullptr && *chosen != '\0' ? chosen : "libnccl.so.2";
  }
  // Local: symbols of another NCCL in this process (PyTorch's) stay apart.
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* why = dlerror();
    fail(ErrorCode::kUnsupported,
         "NCCL: {} cannot be loaded: {} (GANTRY_NCCL_LIBRARY names a file)", file,
         why == nullptr ? "unknown reason" : why);
  }
  const std::shared_ptr<NcclLibrary> library(new NcclLibrary);
  const auto find = [&](const char* symbol) {
    void* address = dlsym(handle, symbol);
    GANTRY_CHECK(address != nullptr, ErrorCode::kUnsupported,
                 "NCCL: {} has no function {}: too old, or not NCCL", file, symbol);
    return address;
  };
  // The version first: a library that is too old is told so, not what it lacks.
  const auto get_version =
      reinterpret_cast<decltype(library->api_.GetVersion)>(find("ncclGetVersion"));
  const nccl::Result result = get_version(&library->version_);
  GANTRY_CHECK(result == nccl::kSuccess, ErrorCode::kNccl,
               "NCCL: {}: ncclGetVersion failed with {}", file, static_cast<int>(result));
  GANTRY_CHECK(library->version_ >= nccl::kFirstNonBlockingVersion, ErrorCode::kUnsupported,
               "NCCL: {} is version {}, expected at least {}", file,
               nccl_version_text(library->version_),
               nccl_version_text(nccl::kFirstNonBlockingVersion));
#define GANTRY_NCCL_FIND(function, type, parameters) \
  library->api_.function =                           \
      reinterpret_cast<decltype(library->api_.function)>(find("nccl" #function));
  GANTRY_NCCL_FUNCTIONS(GANTRY_NCCL_FIND)
#undef GANTRY_NCCL_FIND
  Dl_info info{};
  const bool known = dladdr(reinterpret_cast<void*>(get_version), &info) != 0;
  library->description_ = fmt::format("NCCL {} ({})", nccl_version_text(library->version_),
                                      known && info.dli_fname != nullptr ? info.dli_fname : file);
  return library;
}

// From 2.9 on: major * 10000 + minor * 100 + patch; before: major * 1000 + minor * 100 + patch.
std::string nccl_version_text(int version) {
  const int major = version >= 10000 ? version / 10000 : version / 1000;
  const int rest = version >= 10000 ? version % 10000 : version % 1000;
  return fmt::format("{}.{}.{}", major, rest / 100, rest % 100);
}

}  // namespace gantry
