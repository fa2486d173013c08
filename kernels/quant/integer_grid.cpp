#include "kernels/quant/integer_grid.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"

namespace gantry {

IntegerGrid::IntegerGrid(int bits, bool symmetric, DType scale_dtype)
    : largest_((1 << bits) - 1), symmetric_(symmetric), scale_dtype_(scale_dtype) {
  GANTRY_CHECK(bits >= 2 && bits <= 8 && is_plain_float(scale_dtype), ErrorCode::kInvalidArgument,
               "integers of {} bits with {} scales", bits, to_string(scale_dtype));
}

GptqScale IntegerGrid::choose(std::span<const float> weights) const {
  float low = 0.0F;
  float high = 0.0F;
  for (const float weight : weights) {
    low = std::min(low, weight);
    high = std::max(high, weight);
  }
  const auto steps = static_cast<float>(largest_);
  GptqScale scale;
  scale.zero = static_cast<uint8_t>((largest_ + 1) / 2);
  float step = symmetric_ ? 2.0F * std::max(high, -low) / steps : (high - low) / steps;
  const float exact = step;
  convert_from_f32(&exact, 1, scale_dtype_, &scale.stored);
  convert_to_f32(&scale.stored, scale_dtype_, 1, &step);
  GANTRY_CHECK(std::isfinite(step), ErrorCode::kUnsupported,
               "a scale of {} is larger than {} can hold", exact, to_string(scale_dtype_));
  if (!(step > 0.0F)) step = 1.0F;  // zeros, or too small for the dtype
  scale.stored = step;
  scale.step = step;
  if (!symmetric_) {
    scale.zero = static_cast<uint8_t>(std::clamp(std::nearbyint(-low / step), 0.0F, steps));
  }
  return scale;
}

void IntegerGrid::round(int64_t count, const float* weights, const GptqScale* scales,
                        uint8_t* codes, float* values) const {
  const auto largest = static_cast<float>(largest_);
  for (int64_t i = 0; i < count; ++i) {
    const auto zero = static_cast<float>(scales[i].zero);
    const float code =
        std::clamp(std::nearbyint(weights[i] / scales[i].step) + zero, 0.0F, largest);
    codes[i] = static_cast<uint8_t>(code);
    values[i] = (code - zero) * scales[i].step;
  }
}

}  // namespace gantry
