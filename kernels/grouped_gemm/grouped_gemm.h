#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/cpu_features.h"
#include "kernels/base/dtype.h"
#include "kernels/base/parallel_for.h"

namespace gantry {

/// How one expert's weight W[n, k] is ordered in memory. Chosen once, when the weights are loaded.
enum class PackedLayout : uint8_t {
  kRowMajor,  ///< W[n][k] as in a PyTorch Linear: offset(n, k) = n * K + k  [elements]
};

/// The weights of L experts, one matrix W[N, K] each, at a constant distance. Not owned.
struct ExpertWeights {
  const std::byte* data = nullptr;  ///< W of slot 0
  int64_t slot_stride_bytes = 0;    ///< from one slot's W to the next
  int64_t num_slots = 0;            ///< L
  int64_t n = 0;                    ///< output features
  int64_t k = 0;                    ///< input features
  DType dtype = DType::kBF16;       ///< f32, f16 or bf16
  PackedLayout layout = PackedLayout::kRowMajor;
  const float* bias = nullptr;    ///< bias [N] f32 of slot 0, or null
  int64_t bias_stride_bytes = 0;  ///< from one slot's bias to the next
};

/// Multiplies each row by the weight of its expert, adding the bias where there is one.
///
/// For every slot s and row r in [expert_offsets[s], expert_offsets[s + 1]):
///   y[r, n] = bias[s, n] + sum over k of x[r, k] * W[s, n, k]
/// in f32 (the scalar reference sums in double and rounds once). A slot without rows costs nothing:
/// its weight is not read. A row's result depends on nothing but its own x, its expert and the
/// kernel: not on the batch, nor on the number of threads.
///
/// @param x              [M, K] f32, contiguous, rows sorted by slot (see `permute_tokens`)
/// @param expert_offsets [L + 1] row prefix sums: first 0, ascending, last M
/// @param y              [M, N] f32, contiguous, written; must not overlap x
/// @param isas           which kernels may run, normally `host_isas()`
/// @throws Error kInvalidArgument if a shape or dtype above does not hold
/// @source the "contiguous" grouped layout of DeepGEMM, without its padding of M
void grouped_gemm(std::span<const float> x, const ExpertWeights& weights,
                  std::span<const int32_t> expert_offsets, std::span<float> y, IsaSet isas,
                  const Threads& threads);

}  // namespace gantry
