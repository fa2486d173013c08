#pragma once

// Fills a table of kernels. `Backend::launch<Kernel>` starts a kernel.

#include "kernels/cuda/device_kernels.h"
#include "kernels/cuda/skinny_gemm.h"
#include "kernels/cuda/tiled_gemm.h"

namespace gantry {

template <DeviceElement kElement, int kColumns, bool kRowGroups>
inline constexpr int kMaxThreads<SkinnyGemm<kElement, kColumns, kRowGroups>> =
    SkinnyGemm<kElement, kColumns, kRowGroups>::kWarps * 32;

template <class Backend, DeviceElement kElement, int kColumns, bool kRowGroups>
void launch_skinny(const ExpertGemm& gemm, const DeviceAttributes& attributes,
                   const StreamPlace& stream) {
  const SkinnyGemm<kElement, kColumns, kRowGroups> kernel{gemm};
  Backend::launch(kernel, kernel.launch_shape(most_gemm_blocks(attributes)), attributes, stream);
}

template <class Backend, DeviceElement kElement, bool kRowGroups>
void launch_tiled(const ExpertGemm& gemm, const DeviceAttributes& attributes,
                  const StreamPlace& stream) {
  TiledGemm<kElement, kRowGroups> kernel{gemm, 0};
  kernel.num_stages = kernel.stages_in(attributes.shared_bytes_per_block);
  Backend::launch(kernel, kernel.launch_shape(most_gemm_blocks(attributes)), attributes, stream);
}

/// Those that every GPU has.
template <class Backend, DeviceElement kElement, bool kRowGroups = false>
GemmLaunches gemm_launches() {
  return {launch_skinny<Backend, kElement, kGemmColumns[0], kRowGroups>,
          launch_skinny<Backend, kElement, kGemmColumns[1], kRowGroups>,
          launch_skinny<Backend, kElement, kGemmColumns[2], kRowGroups>,
          launch_tiled<Backend, kElement, kRowGroups>};
}

/// A kernel that knows its own launch shape.
template <class Backend, class Kernel>
void launch_plain(const Kernel& kernel, const DeviceAttributes& attributes,
                  const StreamPlace& stream) {
  Backend::launch(kernel, kernel.launch_shape(), attributes, stream);
}

/// The table of a backend. @param gemm by DeviceElement: compiled apart, as they take long
/// @param row_groups DeviceKernels::gemm_row_groups
template <class Backend>
DeviceKernels device_kernels(const std::array<GemmLaunches, kNumDeviceElements>& gemm,
                             const GemmLaunches& row_groups) {
  return {.linear = launch_plain<Backend, LinearRows>,
          .rms_norm = launch_plain<Backend, RmsNormRows>,
          .add_rows = launch_plain<Backend, AddRows>,
          .route = launch_plain<Backend, RouteTokens>,
          .plan_batch = launch_plain<Backend, PlanBatch>,
          .count_choices = launch_plain<Backend, CountChoices>,
          .scan_counts = launch_plain<Backend, ScanCounts>,
          .place_choices = launch_plain<Backend, PlaceChoices>,
          .gather = launch_plain<Backend, GatherExpertRows>,
          .quantize = launch_plain<Backend, QuantizeExpertRows>,
          .combine = launch_plain<Backend, CombineRows>,
          .rank_lists = launch_plain<Backend, RankLists>,
          .gather_tokens = launch_plain<Backend, GatherTokens>,
          .sum_returned = launch_plain<Backend, SumReturnedRows>,
          .gather_choices = launch_plain<Backend, GatherChoiceRows>,
          .digest_words = launch_plain<Backend, DigestWords>,
          .gemm = gemm,
          .gemm_row_groups = row_groups,
          .gemm_rows8 = nullptr,
          .read_memory = launch_plain<Backend, ReadMemory>,
          .mma_peak = launch_plain<Backend, MmaPeak>,
          .wgmma_peak_bf16 = nullptr,
          .wgmma_peak_e4m3 = nullptr};
}

}  // namespace gantry
