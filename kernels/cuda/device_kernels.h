#pragma once

// The kernels of a device, as host code launches them: one table for the GPU, one for the
// emulation, of the same bodies.

#include <array>

#include "kernels/cuda/ceiling_kernels.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/digest_kernel.h"
#include "kernels/cuda/exchange_kernels.h"
#include "kernels/cuda/expert_gemm.h"
#include "kernels/cuda/expert_rows_kernel.h"
#include "kernels/cuda/plan_kernel.h"
#include "kernels/cuda/quantize_rows_kernel.h"
#include "kernels/cuda/route_kernel.h"
#include "kernels/cuda/row_kernels.h"

namespace gantry {

template <class Kernel>
using KernelLaunch = void (*)(const Kernel& kernel, const DeviceAttributes& attributes,
                              const StreamPlace& stream);

/// Threads of a kernel's block at most, for the compiler's registers.
template <class Kernel>
inline constexpr int kMaxThreads = 256;

/// Token tiles in columns of 8 tokens: of the skinny kernels (0 to 2), of the tiled kernel, of the
/// wgmma kernel (sm_90a), and what the latter takes where one sum is enough (takes_wide_tiles).
inline constexpr std::array<int, 6> kGemmColumns = {1, 2, 4, 16, 16, 32};
inline constexpr int kTiledGemm = 3;
inline constexpr int kWgmmaGemm = 4;
inline constexpr int kWideWgmmaGemm = 5;

/// The GEMMs of one element type, by the index of kGemmColumns; null where a device has none.
using GemmLaunches = std::array<KernelLaunch<ExpertGemm>, kGemmColumns.size()>;

struct DeviceKernels {
  KernelLaunch<LinearRows> linear;
  KernelLaunch<RmsNormRows> rms_norm;
  KernelLaunch<AddRows> add_rows;
  KernelLaunch<RouteTokens> route;
  KernelLaunch<PlanBatch> plan_batch;
  KernelLaunch<CountChoices> count_choices;
  KernelLaunch<ScanCounts> scan_counts;
  KernelLaunch<PlaceChoices> place_choices;
  KernelLaunch<GatherExpertRows> gather;
  KernelLaunch<QuantizeExpertRows> quantize;
  KernelLaunch<CombineRows> combine;
  KernelLaunch<RankLists> rank_lists;
  KernelLaunch<GatherTokens> gather_tokens;
  KernelLaunch<SumReturnedRows> sum_returned;
  KernelLaunch<GatherChoiceRows> gather_choices;
  KernelLaunch<DigestWords> digest_words;
  std::array<GemmLaunches, kNumDeviceElements> gemm;  ///< by DeviceElement
  /// e4m3 weights x rows of codes in bf16 with a scale for 128 k, those that every GPU has.
  GemmLaunches gemm_row_groups;
  /// e4m3 weights x e4m3 rows (ExpertGemm::x8), tiles of 128 tokens; null where a device has none.
  KernelLaunch<ExpertGemm> gemm_rows8 = nullptr;
  // Ceilings
  KernelLaunch<ReadMemory> read_memory = nullptr;
  KernelLaunch<MmaPeak> mma_peak = nullptr;
  KernelLaunch<WgmmaPeak<WgmmaType::kBF16>> wgmma_peak_bf16 = nullptr;  ///< sm_90a
  KernelLaunch<WgmmaPeak<WgmmaType::kE4M3>> wgmma_peak_e4m3 = nullptr;  ///< sm_90a
};

/// Why a launch is impossible on a device, or empty: what tests ask for GPUs that are not there.
std::string launch_problem(const LaunchShape& shape, const DeviceAttributes& attributes);

/// Whether the wgmma kernel takes 256 tokens at a time: its registers then hold a single sum.
bool takes_wide_tiles(const DeviceMatrix& matrix) noexcept;

/// Whether e4m3 rows can be multiplied with a matrix: e4m3 with one scale for 128 k, or for all.
bool takes_rows8(const DeviceMatrix& matrix) noexcept;

/// The best kernels of a device for the matrices of a layer.
enum class PrefillKernels : uint8_t { kMma, kWgmma, kWideWgmma };

/// Which of kGemmColumns a batch takes: the smallest that holds the rows that an expert expects,
/// so that its weights are read once.
/// @param num_choices rows of all experts, at most
int choose_gemm(int64_t num_choices, int64_t num_slots,
                PrefillKernels prefill = PrefillKernels::kMma) noexcept;

/// Blocks that a GEMM launches at most: what the GPU can hold at once, some times over.
int64_t most_gemm_blocks(const DeviceAttributes& attributes) noexcept;

}  // namespace gantry
