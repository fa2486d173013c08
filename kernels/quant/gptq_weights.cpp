#include "kernels/quant/gptq_weights.h"

#include <algorithm>

namespace gantry {
namespace {

class WeightGrid final : public GptqGrid {
 public:
  WeightGrid(const WeightQuantization& quantization, float second)
      : quantization_(quantization), second_(second), ops_(weight_row_ops(host_isas())) {}

  [[nodiscard]] GptqScale choose(std::span<const float> weights) const override {
    const GroupScale scale = group_scale(quantization_, weight_range(weights), second_);
    return {scale.stored, scale.step, scale.zero};
  }

  void round(int64_t count, const float* weights, const GptqScale* scales, uint8_t* codes,
             float* values) const override {
    constexpr int64_t kChunk = 64;
    float steps[kChunk];
    uint8_t zeros[kChunk];
    for (int64_t begin = 0; begin < count; begin += kChunk) {
      const int64_t n = std::min(kChunk, count - begin);
      for (int64_t i = 0; i < n; ++i) {
        steps[i] = scales[begin + i].step;
        zeros[i] = scales[begin + i].zero;
      }
      ops_.codes({quantization_.element, weights + begin, n, 1, steps, zeros, codes + begin});
      for (int64_t i = 0; i < n; ++i) {
        values[begin + i] = weight_value(quantization_.element, codes[begin + i],
                                         {.step = steps[i], .zero = zeros[i]});
      }
    }
  }

 private:
  const WeightQuantization& quantization_;
  float second_;
  const WeightRowOps& ops_;
};

}  // namespace

QuantizedWeights gptq_weights(const WeightQuantization& quantization,
                              std::span<const float> weights, int64_t out,
                              const GptqHessian& hessian, float shared_amax, const Threads& threads,
                              bool order_groups) {
  const int64_t in = hessian.size();
  QuantizedWeights quantized = quantize_weights(quantization, weights, out, in, shared_amax);
  const int64_t groups = quantization.num_groups(in);
  const bool chosen_on_the_way = quantization.rows == 1 && (hessian.in_order() || order_groups);
  GptqScales scales{.group = quantization.group, .fixed = {}};
  if (!chosen_on_the_way) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t g = 0; g < groups; ++g) {
        const GroupScale scale = quantized.scale_of(o, g * quantization.group);
        scales.fixed.push_back({scale.stored, scale.step, scale.zero});
      }
    }
  }
  const WeightGrid grid(quantization, quantized.second);
  GptqMatrix solved = gptq_quantize(weights, out, hessian, scales, grid, threads);
  quantized.codes = std::move(solved.codes);
  quantized.input_groups = std::move(solved.input_groups);
  if (!chosen_on_the_way) return quantized;
  for (size_t s = 0; s < solved.scales.size(); ++s) {
    quantized.scales[s] = solved.scales[s].stored;
    if (!quantized.zeros.empty()) quantized.zeros[s] = solved.scales[s].zero;
  }
  return quantized;
}

}  // namespace gantry
