#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/activation/activation.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/parallel_for.h"
#include "loader/expert_slot.h"

namespace gantry {

/// Number format of what enters the GEMMs. Sums are f32 always.
enum class ActivationDType : uint8_t {
  kF32,   ///< nothing is rounded
  kBF16,  ///< the inputs of w13 and of w2 are rounded to bf16
};

/// Scratch of `run_expert_mlp`. Capacity is kept between calls.
struct ExpertMlpScratch {
  std::vector<float> w13_output;    // [M, S*J]
  std::vector<float> intermediate;  // [M, J]
};

/// Rounds every value to bf16 where the activations are bf16.
void round_activations(ActivationDType dtype, std::span<float> values) noexcept;

/// y = W2 act(W13 x + b13) + b2 for rows sorted by slot; a TP rank's result is a partial sum.
///
/// @param rows           [M, H] f32, already rounded to `dtype`
/// @param expert_offsets [num_slots + 1]
/// @param add_w2_bias    true on the one TP rank that adds b2
/// @param y              [M, H] f32, written
void run_expert_mlp(const SlotLayout& layout, const std::byte* slots, int64_t num_slots,
                    const ActivationSpec& activation, ActivationDType dtype,
                    std::span<const float> rows, std::span<const int32_t> expert_offsets,
                    bool add_w2_bias, IsaSet isas, const Threads& threads,
                    ExpertMlpScratch& scratch, std::span<float> y);

}  // namespace gantry
