#include "kernels/quant/quantize_weights.h"

#include <algorithm>
#include <array>

#include "kernels/base/check.h"
#include "kernels/quant/element_formats.h"

namespace gantry {
namespace {

void check_sizes(std::span<const float> weights, int64_t out, int64_t in) {
  GANTRY_CHECK(out > 0 && in > 0 && static_cast<int64_t>(weights.size()) == out * in,
               ErrorCode::kInvalidArgument, "expected [{}, {}] weights, found {}", out, in,
               weights.size());
}

// Ranges of each scale's weights, [row blocks, groups].
std::vector<WeightRange> scale_ranges(const WeightQuantization& quantization,
                                      std::span<const float> weights, int64_t out, int64_t in,
                                      const WeightRowOps& ops) {
  const int64_t groups = quantization.num_groups(in);
  const int64_t group = quantization.group > 0 ? quantization.group : in;
  const int64_t rows = quantization.rows > 0 ? quantization.rows : out;
  std::vector<WeightRange> ranges(static_cast<size_t>(quantization.num_row_blocks(out) * groups));
  std::vector<float> low(static_cast<size_t>(groups));
  std::vector<float> high(static_cast<size_t>(groups));
  for (int64_t o = 0; o < out; ++o) {
    ops.ranges({weights.data() + o * in, in, group, low.data(), high.data()});
    for (int64_t g = 0; g < groups; ++g) {
      WeightRange& range = ranges[static_cast<size_t>(o / rows * groups + g)];
      const auto at = static_cast<size_t>(g);
      range = o % rows == 0
                  ? WeightRange{low[at], high[at]}
                  : WeightRange{std::min(range.low, low[at]), std::max(range.high, high[at])};
    }
  }
  return ranges;
}

void clip(std::span<WeightRange> ranges, std::span<const float> clips) {
  if (clips.empty()) return;
  GANTRY_CHECK(clips.size() == ranges.size(), ErrorCode::kInvalidArgument,
               "expected {} clips, found {}", ranges.size(), clips.size());
  for (size_t i = 0; i < ranges.size(); ++i)
    ranges[i] = {ranges[i].low * clips[i], ranges[i].high * clips[i]};
}

// group_scale of every group under a second scale, all at once.
void set_two_level_scales(QuantizedWeights& quantized, std::span<const WeightRange> ranges,
                          const WeightRowOps& ops) {
  constexpr float kLargestE2M1 = 6.0F;
  constexpr float kSmallest = 0x1p-9F;
  const float second = quantized.second;
  const float sixths = kLargestE2M1 * second;
  const bool divides = quantized.quantization.divides;
  std::vector<float> ratios(ranges.size());
  for (size_t i = 0; i < ranges.size(); ++i) {
    const float amax = ranges[i].amax();
    ratios[i] = divides ? second * (amax / kLargestE2M1) : amax / sixths;
  }
  std::vector<uint8_t> codes(ratios.size());
  const auto count = static_cast<int64_t>(ratios.size());
  const float one = 1.0F;
  ops.codes({WeightElement::kE4M3, ratios.data(), count, count, &one, nullptr, codes.data()});
  quantized.scales.resize(ratios.size());
  for (size_t i = 0; i < ratios.size(); ++i) {
    const float stored = std::max(e4m3_to_f32(codes[i]), kSmallest);
    quantized.scales[i] = ranges[i].amax() == 0.0F ? 1.0F : stored;
  }
}

void set_codes(QuantizedWeights& quantized, std::span<const float> weights,
               const WeightRowOps& ops) {
  const auto& [quantization, out, in, codes, scales, zeros, second, input_groups] = quantized;
  const int64_t groups = quantization.num_groups(in);
  const int64_t rows = quantization.rows > 0 ? quantization.rows : out;
  quantized.codes.resize(weights.size());
  std::vector<float> steps(static_cast<size_t>(groups));
  for (int64_t o = 0; o < out; ++o) {
    const int64_t first = o / rows * groups;
    if (o % rows == 0) {
      // As stored_group_scale has it.
      const float* stored = scales.data() + first;
      for (size_t g = 0; g < steps.size(); ++g) {
        steps[g] = !quantization.two_levels() ? stored[g]
                   : quantization.divides     ? stored[g] / second
                                              : stored[g] * second;
      }
    }
    ops.codes({quantization.element, weights.data() + o * in, in,
               quantization.group > 0 ? quantization.group : in, steps.data(),
               zeros.empty() ? nullptr : zeros.data() + first, quantized.codes.data() + o * in});
  }
}

}  // namespace

const WeightRowOps& weight_row_ops(IsaSet available) noexcept {
  return available.contains(Isa::kAvx512) ? avx512::kWeightRowOps : scalar::kWeightRowOps;
}

WeightRange weight_range(std::span<const float> weights, IsaSet available) noexcept {
  WeightRange range;
  const auto n = static_cast<int64_t>(weights.size());
  if (n > 0) weight_row_ops(available).ranges({weights.data(), n, n, &range.low, &range.high});
  return range;
}

GroupScale QuantizedWeights::scale_of(int64_t o, int64_t i) const noexcept {
  const int64_t block = quantization.rows > 0 ? o / quantization.rows : 0;
  const int64_t group = !input_groups.empty()    ? input_groups[static_cast<size_t>(i)]
                        : quantization.group > 0 ? i / quantization.group
                                                 : 0;
  const auto at = static_cast<size_t>(block * quantization.num_groups(in) + group);
  return stored_group_scale(quantization, scales[at], zeros.empty() ? uint8_t{0} : zeros[at],
                            second);
}

QuantizedWeights quantize_weights(const WeightQuantization& quantization,
                                  std::span<const float> weights, int64_t out, int64_t in,
                                  float shared_amax, std::span<const float> clips,
                                  IsaSet available) {
  check_sizes(weights, out, in);
  const WeightRowOps& ops = weight_row_ops(available);
  QuantizedWeights quantized{.quantization = quantization, .out = out, .in = in};
  std::vector<WeightRange> ranges = scale_ranges(quantization, weights, out, in, ops);
  clip(ranges, clips);
  if (quantization.two_levels()) {
    const float amax = shared_amax > 0.0F ? shared_amax : weight_range(weights, available).amax();
    quantized.second = second_scale(quantization, amax);
  } else if (ranges.size() == 1 && quantization.rows == 0 && shared_amax > 0.0F) {
    ranges[0] = {-shared_amax, shared_amax};
  }
  if (quantization.two_levels()) {
    set_two_level_scales(quantized, ranges, ops);
    set_codes(quantized, weights, ops);
    return quantized;
  }
  for (const WeightRange& range : ranges) {
    const GroupScale scale = group_scale(quantization, range, quantized.second);
    quantized.scales.push_back(scale.stored);
    if (quantization.is_integer()) quantized.zeros.push_back(scale.zero);
  }
  set_codes(quantized, weights, ops);
  return quantized;
}

QuantizedWeights quantize_like(const QuantizedWeights& like, std::span<const float> weights,
                               IsaSet available) {
  check_sizes(weights, like.out, like.in);
  QuantizedWeights quantized = like;
  set_codes(quantized, weights, weight_row_ops(available));
  return quantized;
}

std::vector<float> dequantize(const QuantizedWeights& weights) {
  const WeightQuantization& quantization = weights.quantization;
  // What each code is worth with a step of 1 and no zero point.
  std::array<float, 256> values{};
  for (size_t code = 0; code < values.size(); ++code)
    values[code] = weight_value(quantization.element, static_cast<uint8_t>(code), GroupScale());
  // Columns of one group that stand side by side.
  const int64_t group = !weights.input_groups.empty() ? 1
                        : quantization.group > 0      ? quantization.group
                                                      : weights.in;
  std::vector<float> decoded(weights.codes.size());
  for (int64_t o = 0; o < weights.out; ++o) {
    for (int64_t begin = 0; begin < weights.in; begin += group) {
      const GroupScale scale = weights.scale_of(o, begin);
      const auto zero = static_cast<float>(scale.zero);
      const int64_t end = std::min(weights.in, begin + group);
      for (int64_t i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(o * weights.in + i);
        decoded[at] = (values[weights.codes[at]] - zero) * scale.step;
      }
    }
  }
  return decoded;
}

}  // namespace gantry
