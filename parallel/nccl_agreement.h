#pragma once

#include <memory>
#include <string>

#include "parallel/communicator_nccl.h"
#include "parallel/nccl_library.h"

namespace gantry {

/// What ranks need before they make an NCCL communicator. Internal.
struct NcclAgreement {
  std::shared_ptr<const NcclLibrary> library;
  nccl::UniqueId id{};  // rank 0's
};

/// Collective: loads NCCL on every rank and compares the versions, with one all-gather.
/// @throws Error kUnsupported, the same on every rank, naming each rank that cannot load it or all
///         versions; kNccl if rank 0 gets no id
NcclAgreement agree_on_nccl(const NcclBootstrap& bootstrap, const std::string& library);

}  // namespace gantry
