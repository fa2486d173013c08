#include "kernels/grouped_gemm/pack_pairs.h"
#include "kernels/grouped_gemm/transpose_words_avx512.h"

// 16 rows x 16 pairs at a time.

namespace gantry::avx512 {

void pack_pairs(const PackPairs& call) noexcept {
  int64_t pair = 0;
  if (call.num_rows == 16 && reinterpret_cast<uintptr_t>(call.target) % 64 == 0) {
    for (; pair + 16 <= call.num_pairs; pair += 16) {
      transpose_tile(call.source + pair * 4, call.row_stride, call.target + pair * 128,
                     [](__m512i line) { return line; });
    }
    _mm_sfence();
  }
  for (int64_t row = 0; row < call.num_rows; ++row) {
    for (int64_t rest = pair; rest < call.num_pairs; ++rest) {
      __builtin_memcpy(call.target + rest * 128 + row * 4,
                       call.source + row * call.row_stride + rest * 4, 4);
    }
  }
}

}  // namespace gantry::avx512
