#pragma once

#include <cstdint>
#include <span>

#include "kernels/activation/activation.h"
#include "kernels/base/buffer.h"
#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "kernels/fused_moe/row_quantizer.h"
#include "kernels/grouped_gemm/coded_kernels.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/permute/token_permutation.h"

namespace gantry GANTRY_API {

/// The packed weights of L experts, one slot each at a constant distance. Not owned.
struct PackedExperts {
  const std::byte* slots = nullptr;
  int64_t slot_stride_bytes = 0;
  int64_t num_slots = 0;   ///< L
  PackedLayout w13;        ///< [S J, H], gated where S = 2
  PackedLayout w2;         ///< [H, J]
  int64_t w13_offset = 0;  ///< bytes from the start of a slot
  int64_t w2_offset = 0;
  int64_t b13_offset = -1;  ///< [S J] f32: gate, then up; -1: no bias
  int64_t b2_offset = -1;   ///< [H] f32, or -1
  // What the inputs go through before they meet a matrix; bytes from the start of a slot, or -1.
  int64_t x_order_offset = -1;      ///< [H] i32: column of x for each k of w13
  int64_t x_factors_offset = -1;    ///< [H] f32, by k of w13
  int64_t mid_factors_offset = -1;  ///< [J] f32, by k of w2

  [[nodiscard]] int64_t hidden_size() const noexcept { return w13.k; }
  [[nodiscard]] int64_t intermediate_size() const noexcept { return w2.k; }
  /// Whether each slot gathers its rows of x in its own way.
  [[nodiscard]] bool transforms_x() const noexcept {
    return x_order_offset >= 0 || x_factors_offset >= 0;
  }
};

struct RowOps;

/// Which kernels run a layer's experts: chosen once, when the layer is made. `linear` uses those of
/// w13.
struct FusedExpertsKernels {
  MatrixKernels w13;
  MatrixKernels w2;
  const RowOps* row_ops = nullptr;
};

/// @throws Error kUnsupported if no kernel can serve the request
FusedExpertsKernels select_fused_experts(const KernelRequest& request, const WeightFormat& w13 = {},
                                         const WeightFormat& w2 = {});

/// Bytes of scratch that a call needs.
struct FusedExpertsScratchSize {
  int64_t rows_bytes = 0;
  int64_t intermediate_bytes = 0;
  int64_t num_slots = 0;
  int64_t amax_values = 0;  ///< see amax_scratch_values

  /// Enough for this and for `other`.
  void cover(const FusedExpertsScratchSize& other) noexcept;
};

/// The scratch for calls of up to `max_rows` (token, expert) pairs.
/// @param up_rows for calls whose up rows of w13 have inputs of their own (up_quantizer)
FusedExpertsScratchSize fused_experts_scratch(const PackedExperts& experts,
                                              const FusedExpertsKernels& kernels, int64_t max_rows,
                                              bool up_rows = false) noexcept;
/// The scratch for `linear` with up to `max_tokens` rows.
FusedExpertsScratchSize linear_scratch(const PackedLayout& layout,
                                       const FusedExpertsKernels& kernels,
                                       int64_t max_tokens) noexcept;

/// Scratch of `fused_experts` and `linear`: rows in expert order, what is between the two GEMMs,
/// and the list of tasks. Made once; calls never grow it.
class FusedExpertsScratch {
 public:
  FusedExpertsScratch() = default;
  explicit FusedExpertsScratch(const FusedExpertsScratchSize& size)
      : rows(static_cast<size_t>(size.rows_bytes)),
        intermediate(static_cast<size_t>(size.intermediate_bytes)),
        task_offsets(static_cast<size_t>(size.num_slots) + 1),
        amax(static_cast<size_t>(size.amax_values)) {}

  [[nodiscard]] size_t bytes() const noexcept {
    return rows.size() + intermediate.size() + task_offsets.size() * sizeof(int64_t) +
           amax.size() * sizeof(float);
  }

  ByteBuffer rows;
  ByteBuffer intermediate;
  Buffer<int64_t> task_offsets;  // [L + 1]
  Buffer<float> amax;            // [M, groups] where ranks share groups
};

/// The (token, expert) pairs of one call, sorted by slot. See TokenPermutation.
struct ExpertRows {
  const int32_t* token = nullptr;    ///< [M] token of each row; null: row r is token r
  const int32_t* choice = nullptr;   ///< [M] index into the weights; null: choice r is r
  std::span<const int32_t> offsets;  ///< [L + 1]
  std::span<const int32_t> order;    ///< [L] slots in ascending logical expert id
  /// [M] row of `out` that a row adds to; null: the row of its token. With one of its own for each
  /// row, the outputs of experts stay apart.
  const int32_t* out_row = nullptr;
};

struct FusedExpertsCall {
  PackedExperts experts;
  ActivationSpec activation;
  ActivationDType activations = ActivationDType::kBF16;
  // Of kScheme, else ignored:
  RowQuantizer x_quantizer{};  ///< of w13's input, after input_weights
  /// Of the up rows' input where the static scales of some slots are others than those of the gate
  /// rows: all rows are quantized twice then, and those slots' rows meet w13 twice. A default one:
  /// there is one input.
  RowQuantizer up_quantizer{};
  RowQuantizer intermediate_quantizer{};  ///< of w2's input
  AmaxExchange amax_exchange{};
  ExpertRows rows;
  std::span<const float> x;              ///< [T, H]
  std::span<const float> input_weights;  ///< scales rows of x before rounding, by choice; or empty
  std::span<const float> weights;        ///< scales expert outputs, by choice; or empty for 1
  bool add_w2_bias = true;               ///< true on the one TP rank that adds b2
  bool clear = true;                     ///< out is written; else added to
  std::span<float> out;                  ///< [T, H], with out_row [its rows, H]

  [[nodiscard]] bool has_up_rows() const noexcept { return up_quantizer.format.quantizes(); }
};

/// Computes out[t] (+)= sum over the token's rows of weight * (W2 f(W13 x + b13) + b2), fused: w13
/// gate and up of the same neurons meet in one accumulator block, the activation is applied there,
/// and w2's sums go straight into the token rows.
///
/// Where slots have an order or factors of inputs, W13 meets x[order] * factors instead of x, and
/// W2 meets f(...) * factors.
///
/// With an up_quantizer, gate rows meet x as x_quantizer gives it and up rows as up_quantizer does.
///
/// Rounding: x (after input_weights and factors) and f(...) (after factors) are rounded to bf16
/// where the activations are bf16; everything else is f32. With kScheme they are quantized and
/// dequantized instead, in f32. A token's experts are added in the order of `rows.order`. The
/// result of a token depends on nothing but its own input, weights and experts (not on the batch or
/// the threads). Allocates nothing. Safe to call at once with different scratch and out.
///
/// @throws Error kInvalidArgument if sizes do not fit together or the scratch is too small
void fused_experts(const FusedExpertsCall& call, const FusedExpertsKernels& kernels,
                   const Threads& threads, FusedExpertsScratch& scratch);

/// y[t] = W x[t] (+ bias), in f32, for one dense matrix (a router, a latent projection).
/// @param scratch see `linear_scratch`
void linear(std::span<const float> x, const PackedLayout& layout, const std::byte* weight,
            const float* bias, std::span<float> y, const FusedExpertsKernels& kernels,
            const Threads& threads, FusedExpertsScratch& scratch);

}  // namespace gantry
