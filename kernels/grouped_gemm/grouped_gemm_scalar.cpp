#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/gemm_block.h"

// The reference: written to be read. Sums in double and rounds once, so that its error is that of
// the result's own format; every other kernel is held against it.

namespace gantry::scalar {
namespace {

void run(const GemmBlock& block, DType dtype) noexcept {
  for (int64_t r = 0; r < block.num_rows; ++r) {
    for (int64_t n = block.n_begin; n < block.n_end; ++n) {
      double sum = block.bias != nullptr ? block.bias[n] : 0.0;
      for (int64_t k = 0; k < block.k; ++k) {
        const float w = load_as_f32(block.weight, dtype, n * block.k + k);
        sum += static_cast<double>(block.x[r * block.k + k]) * w;
      }
      block.y[r * block.n + n] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void grouped_gemm_f32(const GemmBlock& block) noexcept { run(block, DType::kF32); }
void grouped_gemm_bf16(const GemmBlock& block) noexcept { run(block, DType::kBF16); }
void grouped_gemm_f16(const GemmBlock& block) noexcept { run(block, DType::kF16); }

}  // namespace gantry::scalar
