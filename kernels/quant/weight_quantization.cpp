// Scales are chosen here and nowhere else: whole matrices (quantize_weights.cpp) and solvers that
// go column by column use the same rules.

#include "kernels/quant/weight_quantization.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/quant/element_formats.h"
#include "kernels/quant/quantize_weight_rows.h"
#include "kernels/quant/round_formats.h"

namespace gantry {
namespace {

constexpr float kLargestE4M3 = 448.0F;
constexpr float kLargestE2M1 = 6.0F;
// Above it no kernel reads exponents of FP4 (loader/encodings/decode_bytes.cpp).
constexpr int kLargestExponent = 100;

int largest_code(WeightElement element) { return (1 << bits_of(element)) - 1; }

uint8_t middle_code(WeightElement element) {
  return static_cast<uint8_t>(1 << (bits_of(element) - 1));
}

// Rounded to the type, at least its smallest normal number: below it too few bits would be left.
float round_scale(ScaleType type, float scale) {
  float rounded = scale;
  float smallest = 0x1p-126F;
  switch (type) {
    case ScaleType::kF16:
      rounded = f16_to_f32(f32_to_f16(scale));
      smallest = 0x1p-14F;
      break;
    case ScaleType::kBF16:
      rounded = round_to_bf16(scale);
      break;
    case ScaleType::kE4M3:
      rounded = round_to_e4m3(scale);  // saturates: the second scale leaves room
      smallest = 0x1p-9F;
      break;
    default:
      break;
  }
  GANTRY_CHECK(std::isfinite(rounded), ErrorCode::kUnsupported,
               "a scale of {} is larger than its type can hold", scale);
  return std::max(rounded, smallest);
}

float power_of_two_scale(WeightElement element, float magnitude) {
  const float amax = std::max(magnitude, 0x1p-126F);
  int exponent = 0;
  if (element == WeightElement::kE2M1) {
    // Rounded to one mantissa bit, ties up, in the bits: 3.5 * 2^n counts as 2^(n + 2).
    const uint32_t rounded = std::bit_cast<uint32_t>(amax) + (1u << 21);
    exponent = std::ilogb(std::bit_cast<float>(rounded & 0x7f800000u)) - 2;
  } else {
    // 448 = 1.75 * 2^8.
    exponent = std::ilogb(amax) - 8;
    if (amax > std::ldexp(1.75F, exponent + 8)) ++exponent;
  }
  GANTRY_CHECK(exponent <= kLargestExponent, ErrorCode::kUnsupported,
               "weights of {} need a scale above 2^{}", amax, kLargestExponent);
  return std::ldexp(1.0F, std::max(exponent, -126));
}

GroupScale integer_scale(const WeightQuantization& quantization, const WeightRange& range) {
  GroupScale scale;
  const auto steps = static_cast<float>(largest_code(quantization.element));
  scale.zero = middle_code(quantization.element);
  if (!quantization.zero_points) {
    scale.stored = round_scale(quantization.scale, range.amax() / (steps / 2.0F));
    return scale;
  }
  const float low = std::min(range.low, 0.0F);
  const float high = std::max(range.high, 0.0F);
  // In halves: the difference may be infinite.
  const float width = 2.0F * ((high / 2.0F - low / 2.0F) / steps);
  scale.stored = round_scale(quantization.scale, width);
  const auto least = static_cast<float>(quantization.smallest_zero);
  const float zero = std::nearbyint(-low / scale.stored);
  if (zero < least) scale.stored = round_scale(quantization.scale, high / (steps - least));
  scale.zero = static_cast<uint8_t>(std::clamp(zero, least, steps));
  return scale;
}

}  // namespace

float second_scale(const WeightQuantization& quantization, float amax) noexcept {
  constexpr float kBoth = kLargestE4M3 * kLargestE2M1;
  // So small that its inverse is infinite, or it is zero: as if there were nothing.
  const float used = amax < 0x1p-100F ? 1.0F : amax;
  return quantization.divides ? kBoth / used : used / kBoth;
}

GroupScale stored_group_scale(const WeightQuantization& quantization, float stored, uint8_t zero,
                              float second) noexcept {
  GroupScale scale{.stored = stored, .step = stored, .zero = zero};
  if (quantization.two_levels()) {
    scale.step = quantization.divides ? stored / second : stored * second;
  }
  return scale;
}

GroupScale group_scale(const WeightQuantization& quantization, const WeightRange& range,
                       float second) {
  const float amax = range.amax();
  GroupScale chosen;
  if (quantization.is_integer()) {
    chosen = integer_scale(quantization, range);
    if (amax == 0.0F) chosen = {.stored = 1.0F, .zero = middle_code(quantization.element)};
  } else if (amax == 0.0F) {
    chosen.stored = 1.0F;
  } else if (quantization.scale == ScaleType::kE8M0) {
    chosen.stored = power_of_two_scale(quantization.element, amax);
  } else if (quantization.two_levels()) {
    // In the order of the two exporters' operations.
    const float ratio =
        quantization.divides ? second * (amax / kLargestE2M1) : amax / (kLargestE2M1 * second);
    chosen.stored = round_scale(quantization.scale, ratio);
  } else {
    chosen.stored = round_scale(quantization.scale, amax / kLargestE4M3);
  }
  return stored_group_scale(quantization, chosen.stored, chosen.zero, second);
}

uint8_t weight_code(WeightElement element, float weight, const GroupScale& scale) noexcept {
  uint8_t code = 0;
  scalar::kWeightRowOps.codes({element, &weight, 1, 1, &scale.step, &scale.zero, &code});
  return code;
}

float weight_value(WeightElement element, uint8_t code, const GroupScale& scale) noexcept {
  switch (element) {
    case WeightElement::kE4M3:
      return e4m3_to_f32(code) * scale.step;
    case WeightElement::kE2M1:
      return e2m1_to_f32(code) * scale.step;
    default:
      return static_cast<float>(static_cast<int>(code) - static_cast<int>(scale.zero)) * scale.step;
  }
}

}  // namespace gantry
