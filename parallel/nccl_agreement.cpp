#include "parallel/nccl_agreement.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <string_view>
#include <vector>

#include "kernels/base/check.h"

namespace gantry {
namespace {

// What ranks tell each other. A rank that has no NCCL takes part, or the others would wait for it.
struct Greeting {
  int32_t version = 0;  // 0: `problem` says why
  nccl::UniqueId id{};  // of rank 0
  std::array<char, 236> problem{};
};
static_assert(sizeof(Greeting) == 368);

}  // namespace

NcclAgreement agree_on_nccl(const NcclBootstrap& bootstrap, const std::string& library) {
  GANTRY_CHECK(bootstrap.rank >= 0 && bootstrap.rank < bootstrap.size, ErrorCode::kInvalidArgument,
               "NCCL bootstrap: rank {} of {}", bootstrap.rank, bootstrap.size);
  GANTRY_CHECK(bootstrap.all_gather != nullptr, ErrorCode::kInvalidArgument,
               "NCCL bootstrap: expected an all_gather, found none");
  NcclAgreement agreement;
  Greeting own;
  try {
    agreement.library = NcclLibrary::open(library);
    if (bootstrap.rank == 0) {
      const nccl::Result result = agreement.library->api().GetUniqueId(&own.id);
      GANTRY_CHECK(result == nccl::kSuccess, ErrorCode::kNccl, "{}: ncclGetUniqueId: {}",
                   agreement.library->description(),
                   agreement.library->api().GetErrorString(result));
    }
    own.version = agreement.library->version();
  } catch (const Error& error) {
    std::strncpy(own.problem.data(), error.what(), own.problem.size() - 1);
  }
  std::vector<Greeting> all(static_cast<size_t>(bootstrap.size));
  bootstrap.all_gather(std::as_bytes(std::span(&own, 1)), std::as_writable_bytes(std::span(all)));

  std::string problems;
  std::map<int, std::string> ranks_of;  // version -> ranks
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const Greeting& greeting = all[rank];
    if (greeting.version == 0) {
      const std::string_view why(greeting.problem.data(),
                                 strnlen(greeting.problem.data(), greeting.problem.size()));
      problems += fmt::format("{}rank {}: {}", problems.empty() ? "" : "; ", rank, why);
    }
    std::string& ranks = ranks_of[greeting.version];
    ranks += fmt::format("{}{}", ranks.empty() ? "" : ", ", rank);
  }
  if (!problems.empty()) fail_with(ErrorCode::kUnsupported, problems);
  if (ranks_of.size() > 1) {
    std::string versions;
    for (const auto& [version, ranks] : ranks_of) {
      versions += fmt::format("{}{} on rank(s) {}", versions.empty() ? "" : "; ",
                              nccl_version_text(version), ranks);
    }
    fail(ErrorCode::kUnsupported, "NCCL: every rank must have the same version, found {}",
         versions);
  }
  agreement.id = all.front().id;
  return agreement;
}

}  // namespace gantry
