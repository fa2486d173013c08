#pragma once

// The formulas of `Activation`, one element at a time, for host and device. NaN in the input stays
// NaN: clamps are written so that a comparison with NaN keeps it.

#include <math.h>

#include "kernels/activation/activation.h"
#include "kernels/cuda/host_device.h"

namespace gantry::activation_math {

GANTRY_HD inline float sigmoid(float x) { return 1.0F / (1.0F + expf(-x)); }
GANTRY_HD inline float silu(float x) { return x * sigmoid(x); }

GANTRY_HD inline float clamp_above(float x, float high) { return x > high ? high : x; }
GANTRY_HD inline float clamp_both(float x, float limit) {
  return x > limit ? limit : (x < -limit ? -limit : x);
}

GANTRY_HD inline float gelu(float x) {
  constexpr float kInvSqrt2 = 0.70710678118654752440F;
  return 0.5F * x * (1.0F + erff(x * kInvSqrt2));
}

GANTRY_HD inline float gelu_tanh(float x) {
  constexpr float kSqrt2OverPi = 0.79788456080286535588F;
  return 0.5F * x * (1.0F + tanhf(kSqrt2OverPi * (x + 0.044715F * x * x * x)));
}

GANTRY_HD inline float relu2(float x) {
  const float positive = x < 0.0F ? 0.0F : x;
  return positive * positive;
}

GANTRY_HD inline float clamped_silu(const ActivationSpec& s, float a, float u) {
  if (s.limit <= 0.0F) return silu(a) * u;
  return silu(clamp_above(a, s.limit)) * clamp_both(u, s.limit);
}

GANTRY_HD inline float swiglu_oai(const ActivationSpec& s, float a, float u) {
  const float gate = clamp_above(a, s.limit);
  return gate * sigmoid(s.alpha * gate) * (clamp_both(u, s.limit) + s.beta);
}

GANTRY_HD inline float swiglu_step(const ActivationSpec& s, float a, float u) {
  return clamp_above(silu(a), s.limit) * clamp_both(u, s.limit);
}

GANTRY_HD inline float situ(const ActivationSpec& s, float a, float u) {
  const float up = s.linear_beta > 0.0F ? s.linear_beta * tanhf(u / s.linear_beta) : u;
  return s.beta * tanhf(a / s.beta) * sigmoid(a) * up;
}

/// f(gate, up) of any kind; `u` is ignored where the kind takes none.
GANTRY_HD inline float activate(const ActivationSpec& s, float a, float u) {
  switch (s.kind) {
    case Activation::kSilu:
      return clamped_silu(s, a, u);
    case Activation::kGelu:
      return gelu(a) * u;
    case Activation::kGeluTanh:
      return gelu_tanh(a) * u;
    case Activation::kSwigluOai:
      return swiglu_oai(s, a, u);
    case Activation::kSwigluStep:
      return swiglu_step(s, a, u);
    case Activation::kSitu:
      return situ(s, a, u);
    case Activation::kRelu2:
      return relu2(a) * u;
    case Activation::kSiluNoMul:
      return silu(a);
    case Activation::kGeluNoMul:
      return gelu(a);
    case Activation::kGeluTanhNoMul:
      return gelu_tanh(a);
    case Activation::kRelu2NoMul:
      return relu2(a);
  }
  return a;
}

}  // namespace gantry::activation_math
