// The reference: one weight after the other, by the rounding that activations have too.

#include <algorithm>
#include <bit>
#include <cmath>

#include "kernels/quant/quantize_weight_rows.h"
#include "kernels/quant/round_formats.h"

namespace gantry::scalar {
namespace {

uint8_t sign_bit(float value, int position) {
  return static_cast<uint8_t>(std::bit_cast<uint32_t>(value) >> 31 << position);
}

uint8_t e4m3_code(float ratio) {
  const float value = std::fabs(round_to_e4m3(ratio));
  const uint8_t sign = sign_bit(ratio, 7);
  if (value < 0x1p-6F) return static_cast<uint8_t>(sign | static_cast<int>(value * 0x1p9F));
  constexpr uint32_t kRebias = (127 - 7) << 3;
  return static_cast<uint8_t>(sign | ((std::bit_cast<uint32_t>(value) >> 20) - kRebias));
}

uint8_t e2m1_code(float ratio) {
  // By twice the value: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
  constexpr uint8_t kCodes[13] = {0, 1, 2, 3, 4, 0, 5, 0, 6, 0, 0, 0, 7};
  const auto twice = static_cast<int>(std::fabs(round_to_e2m1(ratio)) * 2.0F);
  return static_cast<uint8_t>(sign_bit(ratio, 3) | kCodes[twice]);
}

uint8_t integer_code(float ratio, uint8_t zero, int largest) {
  constexpr float kFar = 1024.0F;  // beyond every code from every zero point
  const auto steps = static_cast<int>(std::nearbyint(std::clamp(ratio, -kFar, kFar)));
  return static_cast<uint8_t>(std::clamp(steps + zero, 0, largest));
}

void ranges(const RangeRow& call) noexcept {
  for (int64_t g = 0, begin = 0; begin < call.n; ++g, begin += call.group) {
    const auto [low, high] = std::minmax_element(
        call.weights + begin, call.weights + std::min(call.n, begin + call.group));
    call.low[g] = *low;
    call.high[g] = *high;
  }
}

void codes(const CodeRow& call) noexcept {
  const int largest = (1 << bits_of(call.element)) - 1;
  for (int64_t i = 0; i < call.n; ++i) {
    const int64_t g = i / call.group;
    const float ratio = call.weights[i] / call.steps[g];
    switch (call.element) {
      case WeightElement::kE4M3:
        call.codes[i] = e4m3_code(ratio);
        break;
      case WeightElement::kE2M1:
        call.codes[i] = e2m1_code(ratio);
        break;
      default:
        call.codes[i] = integer_code(ratio, call.zeros[g], largest);
    }
  }
}

void pack_nibbles(const uint8_t* codes, int64_t n, uint8_t* packed) noexcept {
  for (int64_t i = 0; i + 1 < n; i += 2)
    packed[i / 2] = static_cast<uint8_t>(codes[i] | codes[i + 1] << 4);
  if (n % 2 != 0) packed[n / 2] = codes[n - 1];
}

}  // namespace

const WeightRowOps kWeightRowOps = {ranges, codes, pack_nibbles};

}  // namespace gantry::scalar
