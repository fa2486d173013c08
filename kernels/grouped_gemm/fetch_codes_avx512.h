#pragma once

// Software prefetch of coded panels, for files compiled for AVX-512.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gantry::avx512 {
namespace {

// Decoding takes so many instructions that the loads of the lines to come do not fit into the
// core's window beside it. So they are fetched in two steps: from memory into the L2 cache, which
// keeps more lines under way than the L1 cache can, and from there into the L1 cache. (Zen 4, one
// thread, 16 tokens of Qwen3-30B-A3B, GB/s of weights; in one step, 4 KB ahead, into the L1 cache
// and only for up to 5 rows: fp8 19.5, int4 14.5, mxfp4 13.5; like this 22.5, 17.5, 18.)
constexpr int64_t kFetchedToL2 = 8192;
constexpr int64_t kFetchedToL1 = 2048;

// Walks ahead of a kernel, two lines of codes a step; where the panel ends, into `next`, where
// memory is read after it (null: what lies behind the panel).
class FetchAhead {
 public:
  FetchAhead(const std::byte* panel_end, const std::byte* next)
      : turn_(panel_end - kFetchedToL2), jump_(next == nullptr ? 0 : next - panel_end) {}

  void step(const std::byte* line) {
    if (line >= turn_) {  // once: what comes then is far from its own end
      ahead_ += jump_;
      turn_ = line + (int64_t{1} << 40);
    }
    const auto fetch = [](const std::byte* at) { return reinterpret_cast<const char*>(at); };
    _mm_prefetch(fetch(line + ahead_), _MM_HINT_T1);
    _mm_prefetch(fetch(line + ahead_ + 64), _MM_HINT_T1);
    _mm_prefetch(fetch(line + kFetchedToL1), _MM_HINT_T0);
    _mm_prefetch(fetch(line + kFetchedToL1 + 64), _MM_HINT_T0);
  }

 private:
  const std::byte* turn_;
  int64_t jump_;
  int64_t ahead_ = kFetchedToL2;
};

}  // namespace
}  // namespace gantry::avx512
