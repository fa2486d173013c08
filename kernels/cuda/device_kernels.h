#pragma once

// The kernels of a device, as host code launches them: one table for the GPU, one for the
// emulation, of the same bodies.

#include <array>

#include "kernels/cuda/device.h"
#include "kernels/cuda/expert_gemm.h"
#include "kernels/cuda/expert_rows_kernel.h"
#include "kernels/cuda/plan_kernel.h"
#include "kernels/cuda/route_kernel.h"
#include "kernels/cuda/row_kernels.h"

namespace gantry {

template <class Kernel>
using KernelLaunch = void (*)(const Kernel& kernel, const DeviceAttributes& attributes,
                              StreamHandle stream);

/// Threads of a kernel's block at most, for the compiler's registers.
template <class Kernel>
inline constexpr int kMaxThreads = 256;

/// Token tiles of the skinny kernels, in columns of 8 tokens; the last is that of the tiled kernel.
inline constexpr std::array<int, 4> kGemmColumns = {1, 2, 4, 16};

/// The GEMMs of one element type, by the index of kGemmColumns.
using GemmLaunches = std::array<KernelLaunch<ExpertGemm>, kGemmColumns.size()>;

struct DeviceKernels {
  KernelLaunch<LinearRows> linear;
  KernelLaunch<RmsNormRows> rms_norm;
  KernelLaunch<AddRows> add_rows;
  KernelLaunch<RouteTokens> route;
  KernelLaunch<CountChoices> count_choices;
  KernelLaunch<ScanCounts> scan_counts;
  KernelLaunch<PlaceChoices> place_choices;
  KernelLaunch<GatherExpertRows> gather;
  KernelLaunch<CombineRows> combine;
  std::array<GemmLaunches, kNumDeviceElements> gemm;  ///< by DeviceElement
};

/// Why a launch is impossible on a device, or empty: what tests ask for GPUs that are not there.
std::string launch_problem(const LaunchShape& shape, const DeviceAttributes& attributes);

/// Which of kGemmColumns a batch takes: the smallest that holds the rows that an expert expects,
/// so that its weights are read once.
/// @param num_choices rows of all experts, at most
int choose_gemm(int64_t num_choices, int64_t num_slots) noexcept;

/// Blocks that a GEMM launches at most: what the GPU can hold at once, some times over.
int64_t most_gemm_blocks(const DeviceAttributes& attributes) noexcept;

}  // namespace gantry
