#pragma once

// Plain data only: files that are compiled for one instruction set include this and nothing else of
// ours, so that no shared inline code is compiled with their flags.

#include <cstddef>
#include <cstdint>

namespace gantry {

/// One block of work: rows [0, num_rows) of x times columns [n_begin, n_end) of one expert's
/// weight.
struct GemmBlock {
  const float* x;           // [num_rows, k], contiguous
  const std::byte* weight;  // [n, k] row major
  const float* bias;        // [n] or null
  float* y;                 // [num_rows, n], contiguous
  int64_t num_rows;
  int64_t n;
  int64_t k;
  int64_t n_begin;
  int64_t n_end;
};

namespace scalar {
void grouped_gemm_f32(const GemmBlock& block) noexcept;
void grouped_gemm_bf16(const GemmBlock& block) noexcept;
void grouped_gemm_f16(const GemmBlock& block) noexcept;
}  // namespace scalar
namespace avx2 {
void grouped_gemm_f32(const GemmBlock& block) noexcept;
void grouped_gemm_bf16(const GemmBlock& block) noexcept;
void grouped_gemm_f16(const GemmBlock& block) noexcept;
}  // namespace avx2
namespace avx512 {
void grouped_gemm_f32(const GemmBlock& block) noexcept;
void grouped_gemm_bf16(const GemmBlock& block) noexcept;
void grouped_gemm_f16(const GemmBlock& block) noexcept;
}  // namespace avx512

}  // namespace gantry
