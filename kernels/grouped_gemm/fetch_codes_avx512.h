#pragma once

// Software prefetch of coded panels, for files compiled for AVX-512.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/grouped_gemm/panel_gemm.h"

namespace gantry::avx512 {
namespace {

// Few rows wait for memory. Codes are fetched this far ahead, and beyond the panel's end where
// `next` says (Zen 4, 1 token of Qwen3-30B-A3B: mxfp4 0.69 ms, 0.86 without; two groups at once,
// which hides the instruction's latency, are two streams to the memory and took 1.1).
constexpr int kFetchedRows = 5;
constexpr int64_t kFetchAhead = 4096;

// Walks ahead of a kernel of kRows rows, two lines of codes a step.
template <int kRows>
class FetchAhead {
 public:
  explicit FetchAhead(const PanelGemm& call)
      : at_(call.panel + call.coded->codes + kFetchAhead),
        end_(call.panel + call.coded->bytes),
        jump_(call.next == nullptr ? 0 : call.next - end_) {}

  void step() {
    if constexpr (kRows <= kFetchedRows) {
      if (at_ >= end_) {  // once: what comes then is far from its own end
        at_ += jump_;
        end_ = at_ + (int64_t{1} << 40);
      }
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(at_ + 64), _MM_HINT_T0);
      at_ += 128;
    }
  }

 private:
  const std::byte* at_;
  const std::byte* end_;
  int64_t jump_;
};

}  // namespace
}  // namespace gantry::avx512
