#include "runtime/expert_mlp.h"

#include <algorithm>

#include "kernels/base/float_convert.h"
#include "kernels/grouped_gemm/grouped_gemm.h"

namespace gantry {

void round_activations(ActivationDType dtype, std::span<float> values) noexcept {
  if (dtype == ActivationDType::kF32) return;
  for (float& value : values)
    value = round_to_bf16(value);
}

void run_expert_mlp(const SlotLayout& layout, const std::byte* slots, int64_t num_slots,
                    const ActivationSpec& activation, ActivationDType dtype,
                    std::span<const float> rows, std::span<const int32_t> expert_offsets,
                    bool add_w2_bias, IsaSet isas, const Threads& threads,
                    ExpertMlpScratch& scratch, std::span<float> y) {
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / layout.hidden_size;
  const int64_t width = layout.w13_rows();
  const int64_t j = layout.intermediate_size;
  scratch.w13_output.resize(static_cast<size_t>(num_rows * width));
  scratch.intermediate.resize(static_cast<size_t>(num_rows * j));

  grouped_gemm(rows, layout.w13_weights(slots, num_slots), expert_offsets, scratch.w13_output, isas,
               threads);
  // Bands of rows that are large enough to be worth a task.
  constexpr int64_t kBand = 16;
  parallel_for(threads, (num_rows + kBand - 1) / kBand, [&](int64_t band) {
    const int64_t begin = band * kBand;
    const int64_t count = std::min(kBand, num_rows - begin);
    const float* gate = scratch.w13_output.data() + begin * width;
    float* out = scratch.intermediate.data() + begin * j;
    apply_activation(activation, count, j, gate, width, gate + j, width, out, j);
    round_activations(dtype, {out, static_cast<size_t>(count * j)});
  });
  grouped_gemm(scratch.intermediate, layout.w2_weights(slots, num_slots, add_w2_bias),
               expert_offsets, y, isas, threads);
}

}  // namespace gantry
