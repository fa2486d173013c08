// Compares nccl_abi.h with NCCL's own header, in builds that find one. No code comes of this file.

#include <nccl.h>

#include <type_traits>

#include "parallel/nccl_abi.h"

namespace gantry::nccl {
namespace {

#define GANTRY_SAME_VALUE(ours, theirs) \
  static_assert(static_cast<int>(ours) == static_cast<int>(theirs), #theirs)
GANTRY_SAME_VALUE(kSuccess, ncclSuccess);
GANTRY_SAME_VALUE(kUnhandledCudaError, ncclUnhandledCudaError);
GANTRY_SAME_VALUE(kSystemError, ncclSystemError);
GANTRY_SAME_VALUE(kInternalError, ncclInternalError);
GANTRY_SAME_VALUE(kInvalidArgument, ncclInvalidArgument);
GANTRY_SAME_VALUE(kInvalidUsage, ncclInvalidUsage);
GANTRY_SAME_VALUE(kRemoteError, ncclRemoteError);
GANTRY_SAME_VALUE(kInProgress, ncclInProgress);
GANTRY_SAME_VALUE(kInt8, ncclInt8);
GANTRY_SAME_VALUE(kFloat32, ncclFloat32);
GANTRY_SAME_VALUE(kSum, ncclSum);
#undef GANTRY_SAME_VALUE

constexpr ncclConfig_t kTheirs = NCCL_CONFIG_INITIALIZER;
static_assert(Config{}.magic == kTheirs.magic && Config{}.blocking == kTheirs.blocking);
static_assert(offsetof(Config, size) == offsetof(ncclConfig_t, size));
static_assert(offsetof(Config, magic) == offsetof(ncclConfig_t, magic));
static_assert(offsetof(Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking));
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId));
static_assert(Config{}.version == NCCL_VERSION(2, 14, 0));
static_assert(kFirstNonBlockingVersion == NCCL_VERSION(2, 14, 0));

// A parameter of ours passes as theirs: the same type, or pointers, or enums of the same size.
template <typename Ours, typename Theirs>
constexpr bool passes_as() {
  if (std::is_same_v<Ours, Theirs>) return true;
  if (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) return true;
  if (std::is_enum_v<Ours> && std::is_enum_v<Theirs>) return sizeof(Ours) == sizeof(Theirs);
  return std::is_same_v<Ours, UniqueId> && std::is_same_v<Theirs, ncclUniqueId>;
}

template <typename Ours, typename Theirs>
struct SameCall : std::false_type {};
template <typename R1, typename... P1, typename R2, typename... P2>
requires(sizeof...(P1) == sizeof...(P2)) struct SameCall<R1 (*)(P1...), R2(P2...)>
    : std::bool_constant<passes_as<R1, R2>() && (passes_as<P1, P2>() && ...)> {
};

#define GANTRY_SAME_CALL(name, result, parameters) \
  static_assert(SameCall<decltype(Api::name), decltype(::nccl##name)>::value, "nccl" #name);
GANTRY_NCCL_FUNCTIONS(GANTRY_SAME_CALL)
#undef GANTRY_SAME_CALL

}  // namespace
}  // namespace gantry::nccl
