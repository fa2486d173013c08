#pragma once

// Adds the kernels of sm_90a to a table of GEMMs.

#include "kernels/cuda/gemm_launches.h"
#include "kernels/cuda/wgmma_gemm.h"

namespace gantry {

/// The launches of one element type.
struct WgmmaLaunches {
  KernelLaunch<ExpertGemm> gemm = nullptr;
  KernelLaunch<ExpertGemm> wide = nullptr;   ///< of matrices that take wide tiles
  KernelLaunch<ExpertGemm> rows8 = nullptr;  ///< e4m3 only
};

template <class Backend, DeviceElement kElement, WgmmaMath kMath, int kColumns>
void start_wgmma(const ExpertGemm& gemm, const DeviceAttributes& attributes,
                 const StreamPlace& stream) {
  using Kernel = WgmmaGemm<kElement, kMath, kColumns>;
  const Kernel kernel{gemm, Kernel::stages_in(attributes.shared_bytes_per_block)};
  Backend::launch(kernel, kernel.launch_shape(attributes.num_sms), attributes, stream);
}

template <class Backend, DeviceElement kElement>
void launch_wgmma(const ExpertGemm& gemm, const DeviceAttributes& attributes,
                  const StreamPlace& stream) {
  if constexpr (bits_of(kElement) == 16) {
    start_wgmma<Backend, kElement, WgmmaMath::kPlain, 16>(gemm, attributes, stream);
  } else {
    if constexpr (kElement == DeviceElement::kE2M1) {
      if (folds_scales(gemm.matrix)) {
        start_wgmma<Backend, kElement, WgmmaMath::kFolded, 16>(gemm, attributes, stream);
        return;
      }
    }
    start_wgmma<Backend, kElement, WgmmaMath::kPromoted, 16>(gemm, attributes, stream);
  }
}

template <class Backend, DeviceElement kElement>
WgmmaLaunches wgmma_launches() {
  WgmmaLaunches launches;
  launches.gemm = launch_wgmma<Backend, kElement>;
  if constexpr (bits_of(kElement) == 16) {
    launches.wide = start_wgmma<Backend, kElement, WgmmaMath::kPlain, 32>;
  } else if constexpr (kElement == DeviceElement::kE2M1) {
    launches.wide = start_wgmma<Backend, kElement, WgmmaMath::kFolded, 32>;
  } else if constexpr (kElement == DeviceElement::kE4M3) {
    launches.rows8 = start_wgmma<Backend, kElement, WgmmaMath::kRows8, 16>;
  }
  return launches;
}

template <class Backend>
void add_wgmma_peaks(DeviceKernels& kernels) {
  kernels.wgmma_peak_bf16 = launch_plain<Backend, WgmmaPeak<WgmmaType::kBF16>>;
  kernels.wgmma_peak_e4m3 = launch_plain<Backend, WgmmaPeak<WgmmaType::kE4M3>>;
}

/// @param element of the launches
inline void add_wgmma(DeviceElement element, const WgmmaLaunches& launches,
                      DeviceKernels& kernels) {
  GemmLaunches& gemm = kernels.gemm[static_cast<size_t>(element)];
  gemm[kWgmmaGemm] = launches.gemm;
  gemm[kWideWgmmaGemm] = launches.wide;
  if (launches.rows8 != nullptr) kernels.gemm_rows8 = launches.rows8;
}

}  // namespace gantry
