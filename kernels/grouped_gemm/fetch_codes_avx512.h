#pragma once

// Software prefetch of coded panels, for files compiled for AVX-512.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gantry::avx512 {
namespace {

// Few rows wait for memory. Codes are fetched this far ahead, beyond the panel's end too, where the
// next one begins (Zen 4, 1 token of Qwen3-30B-A3B: mxfp4 0.69 ms, 0.86 without; two groups at
// once, which hides the instruction's latency, are two streams to the memory and took 1.1).
constexpr int kFetchedRows = 5;
constexpr int64_t kFetchAhead = 4096;

// The two lines of codes that a kernel of kRows rows will want.
template <int kRows>
void fetch_ahead(const std::byte* line) {
  if constexpr (kRows <= kFetchedRows) {
    _mm_prefetch(reinterpret_cast<const char*>(line + kFetchAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(line + kFetchAhead + 64), _MM_HINT_T0);
  }
}

}  // namespace
}  // namespace gantry::avx512
