#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/base/export.h"

namespace gantry GANTRY_API {

/// The function between the two GEMMs of an expert. Gated kinds take gate a and up u; the others
/// (`...NoMul`) take a alone, and their w13 holds one projection.
enum class Activation : uint8_t {
  kSilu,        ///< silu(a) * u; with a limit L: a = min(a, L), u = clamp(u, -L, L) first
  kGelu,        ///< 0.5 a (1 + erf(a / sqrt 2)) * u
  kGeluTanh,    ///< 0.5 a (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))) * u
  kSwigluOai,   ///< a = min(a, L), u = clamp(u, -L, L); a * sigmoid(alpha a) * (u + beta)
  kSwigluStep,  ///< min(silu(a), L) * clamp(u, -L, L)
  kSitu,        ///< beta tanh(a / beta) * sigmoid(a) * (lb ? lb tanh(u / lb) : u), lb = linear_beta
  kRelu2,       ///< max(a, 0)^2 * u
  kSiluNoMul,
  kGeluNoMul,
  kGeluTanhNoMul,
  kRelu2NoMul,  ///< max(a, 0)^2
};

std::string_view to_string(Activation activation) noexcept;

/// An activation with its constants. A plain value.
struct ActivationSpec {
  Activation kind = Activation::kSilu;
  /// Clamp L; 0 means no clamp. kSwigluOai and kSwigluStep need one.
  float limit = 0.0F;
  float alpha = 1.702F;      ///< kSwigluOai
  float beta = 1.0F;         ///< kSwigluOai: added to u. kSitu: must be > 0.
  float linear_beta = 0.0F;  ///< kSitu: 0 means that u is used as it is
};

/// True when w13 holds a gate and an up projection.
[[nodiscard]] bool is_gated(Activation activation) noexcept;

/// @throws Error kInvalidArgument if the constants make no sense for the kind
void validate(const ActivationSpec& spec);

/// Applies the activation to each of `num_rows` rows in f32 (out may be gate itself).
///
/// @param gate [num_rows, n] f32, row stride `gate_stride` elements
/// @param up   [num_rows, n] f32, row stride `up_stride`; ignored (may be null) when not gated
/// @param out  [num_rows, n] f32, row stride `out_stride`
/// @source vLLM 0.32 layers/activation.py; Transformers ACT2FN
void apply_activation(const ActivationSpec& spec, int64_t num_rows, int64_t n, const float* gate,
                      int64_t gate_stride, const float* up, int64_t up_stride, float* out,
                      int64_t out_stride) noexcept;

}  // namespace gantry
