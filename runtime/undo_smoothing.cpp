#include "runtime/undo_smoothing.h"

#include <array>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

constexpr std::array<std::string_view, 4> kNorms = {"post_attention_layernorm", "ffn_norm",
                                                    "pre_feedforward_layernorm", "input_layernorm"};

struct Norm {
  std::string name;
  std::vector<float> weight;
};

Norm read_norm(const MoeModel& model, const MoeLayerSpec& spec) {
  const NameMap& names = model.tensors().names();
  for (const std::string_view norm : kNorms) {
    const std::string name = fmt::format("{}{}.{}.{}.weight", names.prefix(),
                                         names.family().container, spec.layer, norm);
    const CheckpointTensor* tensor = model.checkpoint().find(name);
    if (tensor == nullptr) continue;
    const TensorInfo& info = tensor->info;
    GANTRY_CHECK(is_plain_float(info.dtype) && info.num_elements() == spec.hidden_size,
                 ErrorCode::kFormat, "{}: expected {} floats, found {}", name, spec.hidden_size,
                 describe(info));
    std::vector<uint32_t> raw(static_cast<size_t>((info.num_bytes() + 3) / 4));
    model.checkpoint().files()[static_cast<size_t>(tensor->file)].read(info.begin, raw.data(),
                                                                       info.num_bytes());
    Norm found{name, std::vector<float>(static_cast<size_t>(info.num_elements()))};
    convert_to_f32(raw.data(), info.dtype, info.num_elements(), found.weight.data());
    return found;
  }
  fail(ErrorCode::kUnsupported, "layer {}: no norm in front of its experts under a known name",
       spec.layer);
}

// Brings vectors of b, `count` elements `step` apart, nearest to a's.
void fit(const float* a, float* b, int64_t count, int64_t step) {
  double ab = 0.0;
  double bb = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    ab += static_cast<double>(a[i * step]) * b[i * step];
    bb += static_cast<double>(b[i * step]) * b[i * step];
  }
  if (!(bb > 0.0)) return;
  const auto factor = static_cast<float>(ab / bb);
  for (int64_t i = 0; i < count; ++i)
    b[i * step] *= factor;
}

}  // namespace

std::vector<float> norm_ratio(const MoeModel& a, const MoeModel& b, const MoeLayerSpec& spec) {
  const Norm norm_a = read_norm(a, spec);
  const Norm norm_b = read_norm(b, spec);
  std::vector<float> ratio(norm_a.weight.size());
  for (size_t i = 0; i < ratio.size(); ++i)
    ratio[i] = norm_a.weight[i] == 0.0F ? 1.0F : norm_b.weight[i] / norm_a.weight[i];
  log(LogLevel::kInfo, "layer {}: scales folded into {} are taken out of w1 and w3", spec.layer,
      norm_b.name);
  return ratio;
}

void undo_smoothing(const std::vector<float>& a, Part part, const std::vector<float>& norm_ratio,
                    std::vector<float>& b) {
  const auto size = static_cast<int64_t>(b.size());
  const auto hidden = static_cast<int64_t>(norm_ratio.size());
  if (part == Part::kW2) {  // [H, I]
    const int64_t in = size / hidden;
    for (int64_t i = 0; i < in; ++i)
      fit(a.data() + i, b.data() + i, hidden, in);
    return;
  }
  for (int64_t i = 0; i < size; ++i)
    b[static_cast<size_t>(i)] *= norm_ratio[static_cast<size_t>(i % hidden)];
  if (part != Part::kW3) return;
  for (int64_t row = 0; row < size; row += hidden)
    fit(a.data() + row, b.data() + row, hidden, 1);
}

}  // namespace gantry
