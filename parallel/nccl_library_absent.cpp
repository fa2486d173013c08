// Takes the place of nccl_library.cpp in builds without NCCL.

#include "kernels/base/check.h"
#include "parallel/nccl_library.h"

namespace gantry {

std::shared_ptr<const NcclLibrary> NcclLibrary::open(const std::string& /*name*/) {
  fail(ErrorCode::kUnsupported,
       "this gantry was built without NCCL: configure with -D GANTRY_WITH_NCCL=AUTO");
}

std::string nccl_version_text(int version) { return fmt::format("{}", version); }

}  // namespace gantry
