#include "kernels/quant/quantize_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/quant/round_formats.h"

// The reference of every quantization of activations: first the magnitudes of groups, then one
// plain loop a group. Divisions are divisions, not products with a reciprocal: those differ in the
// last bit, and a last bit decides ties.

namespace gantry {
namespace {

constexpr float kE4m3Max = 448.0F;
constexpr float kE2m1Max = 6.0F;
constexpr uint32_t kExponentMask = 0x7f800000u;

// The bits of magnitudes are ordered as they are, with NaN above infinity.
uint32_t magnitude_bits(float value) noexcept {
  return std::bit_cast<uint32_t>(value) & 0x7fffffffu;
}

float amax_of(std::span<const float> values) noexcept {
  uint32_t most = 0;
  for (const float value : values)
    most = std::max(most, magnitude_bits(value));
  return std::bit_cast<float>(most);
}

float larger(float a, float b) noexcept {
  return std::bit_cast<float>(std::max(magnitude_bits(a), magnitude_bits(b)));
}

// 2^exponent for exponents from -127 (a subnormal) to 127.
float power_of_two(int exponent) noexcept {
  return std::ldexp(1.0F, std::clamp(exponent, -127, 127));
}

// Of a positive, finite value.
int ceil_log2(float value) noexcept {
  int exponent = 0;
  const float fraction =
      std::frexp(value, &exponent);  // value = fraction * 2^exponent, in [0.5, 1)
  return fraction == 0.5F ? exponent - 1 : exponent;
}

float mxfp4_scale(float amax) noexcept {
  // The carry of half of the last kept mantissa bit reaches the exponent from 1.75 on.
  const uint32_t bits = (std::bit_cast<uint32_t>(amax) + (1u << 21)) & kExponentMask;
  return power_of_two(static_cast<int>(bits >> 23) - 127 - 2);
}

// The rounding is a template argument so that it is inlined and the loop vectorises.
template <float (*kRound)(float) noexcept>
void scale_and_round(std::span<float> values, float scale) noexcept {
  for (float& value : values)
    value = kRound(value / scale) * scale;
}

void quantize_nvfp4(std::span<float> values, float amax, float global_scale) noexcept {
  const float scale = round_to_e4m3(global_scale * (amax * (1.0F / kE2m1Max)));
  const float inverse = scale == 0.0F ? 0.0F : global_scale / scale;
  for (float& value : values)
    value = round_to_e2m1(value * inverse) * scale / global_scale;
}

// One group, or the row where one scale covers it. `global` of NVFP4, or the static scale.
void quantize_group(const RowFormat& format, std::span<float> values, float amax,
                    float global) noexcept {
  if (format.needs_amax() && !std::isfinite(amax)) {
    std::fill(values.begin(), values.end(), std::numeric_limits<float>::quiet_NaN());
    return;
  }
  switch (format.kind) {
    case RowQuantization::kNone:
      return;
    case RowQuantization::kFp8Static:
      return scale_and_round<round_to_e4m3>(values, global);
    case RowQuantization::kInt8Static:
      return scale_and_round<round_to_int8>(values, global);
    case RowQuantization::kFp8Token:
      return scale_and_round<round_to_e4m3>(values,
                                            std::max(amax / kE4m3Max, 1.0F / (kE4m3Max * 512.0F)));
    case RowQuantization::kFp8Group: {
      const float scale = std::max(amax, 1e-10F) / kE4m3Max;
      return scale_and_round<round_to_e4m3>(
          values, format.power_of_two_scales ? power_of_two(ceil_log2(scale)) : scale);
    }
    case RowQuantization::kInt8Token: {
      const float scale = amax / 127.0F;
      if (scale > 0.0F) return scale_and_round<round_to_int8>(values, scale);
      std::fill(values.begin(), values.end(), 0.0F);
      return;
    }
    case RowQuantization::kMxFp8: {
      const float ratio = std::max(amax, std::numeric_limits<float>::min()) / kE4m3Max;
      return scale_and_round<round_to_e4m3>(values, power_of_two(ceil_log2(ratio)));
    }
    case RowQuantization::kMxFp4:
      return scale_and_round<round_to_e2m1>(values, mxfp4_scale(amax));
    case RowQuantization::kNvFp4Static:
    case RowQuantization::kNvFp4Token:
      return quantize_nvfp4(values, amax, global);
  }
}

// Calls visit(group, columns) for each group that the part has columns of.
template <typename Visit>
void for_each_group(const RowFormat& format, const RowPart& row, Visit visit) noexcept {
  const auto n = static_cast<int64_t>(row.values.size());
  if (format.group_size == 0) return visit(int64_t{0}, row.values);
  for (int64_t begin = 0; begin < n;) {
    const int64_t group = (row.first_column + begin) / format.group_size;
    const int64_t end = std::min(n, (group + 1) * format.group_size - row.first_column);
    visit(group, row.values.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    begin = end;
  }
}

// The scale above NVFP4's groups from the magnitude of the row: the largest group gets the largest
// e4m3 scale. Without one the row is zeros, whatever the scale.
float nvfp4_row_scale(float amax) noexcept {
  const float scale = kE4m3Max * kE2m1Max / amax;
  return std::isfinite(scale) ? scale : std::isnan(amax) ? amax : 1.0F;
}

}  // namespace

std::string_view to_string(RowQuantization kind) noexcept {
  switch (kind) {
    case RowQuantization::kFp8Static:
      return "fp8 static";
    case RowQuantization::kFp8Token:
      return "fp8 per token";
    case RowQuantization::kFp8Group:
      return "fp8 per group";
    case RowQuantization::kInt8Static:
      return "int8 static";
    case RowQuantization::kInt8Token:
      return "int8 per token";
    case RowQuantization::kMxFp8:
      return "mxfp8";
    case RowQuantization::kMxFp4:
      return "mxfp4";
    case RowQuantization::kNvFp4Static:
      return "nvfp4 with a static global scale";
    case RowQuantization::kNvFp4Token:
      return "nvfp4 with a global scale per token";
    case RowQuantization::kNone:
      break;
  }
  return "none";
}

void raise_group_amax(const RowFormat& format, const RowPart& row, std::span<float> amax) noexcept {
  for_each_group(format, row, [&](int64_t group, std::span<float> values) {
    float& most = amax[static_cast<size_t>(group)];
    most = larger(most, amax_of(values));
  });
}

void quantize_row(const RowFormat& format, const RowPart& row, std::span<const float> amax,
                  float static_scale) noexcept {
  const bool given = !amax.empty();
  float global = static_scale;
  if (format.kind == RowQuantization::kNvFp4Token) {
    global = nvfp4_row_scale(amax_of(given ? amax : std::span<const float>(row.values)));
  }
  for_each_group(format, row, [&](int64_t group, std::span<float> values) {
    const float most = given                 ? amax[static_cast<size_t>(group)]
                       : format.needs_amax() ? amax_of(values)
                                             : 0.0F;
    quantize_group(format, values, most, global);
  });
}

}  // namespace gantry
