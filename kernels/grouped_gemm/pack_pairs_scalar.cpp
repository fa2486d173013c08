#include <algorithm>
#include <cstring>

#include "kernels/grouped_gemm/pack_pairs.h"

namespace gantry::scalar {

void pack_pairs(const PackPairs& call) noexcept {
  // Steps that keep the lines of all rows and of the panel in the L1 cache.
  constexpr int64_t kStep = 32;
  for (int64_t first = 0; first < call.num_pairs; first += kStep) {
    const int64_t end = std::min(call.num_pairs, first + kStep);
    for (int64_t row = 0; row < call.num_rows; ++row) {
      const std::byte* source = call.source + row * call.row_stride;
      std::byte* target = call.target + row * 4;
      for (int64_t pair = first; pair < end; ++pair)
        std::memcpy(target + pair * 128, source + pair * 4, 4);
    }
  }
}

}  // namespace gantry::scalar
