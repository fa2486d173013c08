#include "tests/support/gguf_export.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/base/float_convert.h"
#include "loader/tensor_geometry.h"

namespace gantry::test {
namespace {

class Exporter {
 public:
  Exporter(const MoeModel& model,
           const std::function<GgufEncoding(const std::string& name)>& encoding_of,
           GgufBuilder& builder)
      : model_(model), encoding_of_(encoding_of), builder_(builder) {}

  void add_layer(const MoeLayerSpec& spec) {
    const LayerTensors& tensors = model_.tensors().layer(spec.layer);
    for (const auto& [part, name] : {std::pair{Part::kW1, "ffn_gate_exps"},
                                     {Part::kW3, "ffn_up_exps"},
                                     {Part::kW2, "ffn_down_exps"}}) {
      const MatrixSize size = part_size(part, spec);
      for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
        if (kind == TensorKind::kBias && !tensors.expert_bias) continue;
        std::vector<float> all;
        for (int e = 0; e < spec.num_experts; ++e) {
          const std::vector<float> one =
              values(*tensors.expert_source(e, part, kind), spec, part, kind, e);
          all.insert(all.end(), one.begin(), one.end());
        }
        add(spec.layer, name, kind, shape(size, kind, spec.num_experts), all);
      }
    }
    for (const auto& [part, name] : {std::pair{Part::kRouter, "ffn_gate_inp"},
                                     {Part::kSharedW1, "ffn_gate_shexp"},
                                     {Part::kSharedW3, "ffn_up_shexp"},
                                     {Part::kSharedW2, "ffn_down_shexp"},
                                     {Part::kSharedGate, "ffn_gate_inp_shexp"}}) {
      for (const TensorKind kind : {TensorKind::kWeight, TensorKind::kBias}) {
        const TensorSource* source = tensors.single(part, kind);
        if (source == nullptr) continue;
        auto ne = shape(part_size(part, spec), kind, 0);
        if (part == Part::kSharedGate) ne.pop_back();  // one row: the converter drops the axis
        add(spec.layer, name, kind, ne, values(*source, spec, part, kind, -1));
      }
    }
    if (const TensorSource* bias = tensors.single(Part::kCorrectionBias, TensorKind::kWeight)) {
      add(spec.layer, "exp_probs_b", TensorKind::kBias,
          {static_cast<uint64_t>(spec.routing.num_experts)},
          values(*bias, spec, Part::kCorrectionBias, TensorKind::kWeight, -1));
    }
  }

 private:
  static std::vector<uint64_t> shape(const MatrixSize& size, TensorKind kind, int experts) {
    std::vector<uint64_t> ne;
    if (kind == TensorKind::kWeight) ne.push_back(static_cast<uint64_t>(size.in));
    ne.push_back(static_cast<uint64_t>(size.out));
    if (experts > 0) ne.push_back(static_cast<uint64_t>(experts));
    return ne;
  }

  // [out, in] of one part of one expert, from whatever spelling the checkpoint has.
  std::vector<float> values(const TensorSource& source, const MoeLayerSpec& spec, Part part,
                            TensorKind kind, int expert) const {
    const TensorInfo& info = source.tensor->info;
    std::vector<std::byte> raw(static_cast<size_t>(info.num_bytes()));
    model_.checkpoint().files()[static_cast<size_t>(source.tensor->file)].read(
        info.begin, raw.data(), info.num_bytes());
    const TensorPattern& pattern =
        model_.config().family->tensors[static_cast<size_t>(source.ref.pattern)];
    const FileView view = file_view(pattern, kind, spec, part, expert);
    std::vector<float> matrix;
    for (int64_t o = 0; o < view.size.out; ++o) {
      for (int64_t i = 0; i < view.size.in; ++i) {
        matrix.push_back(load_as_f32(raw.data(), info.dtype,
                                     view.offset + o * view.out_stride + i * view.in_stride));
      }
    }
    return matrix;
  }

  void add(int layer, const std::string& module, TensorKind kind, std::vector<uint64_t> ne,
           const std::vector<float>& matrix) {
    const std::string name = "blk." + std::to_string(layer) + "." + module + "." +
                             (kind == TensorKind::kBias ? "bias" : "weight");
    const GgufEncoding encoding = encoding_of_ ? encoding_of_(name) : GgufEncoding{};
    const auto* bytes = reinterpret_cast<const char*>(matrix.data());
    builder_.tensor({name, std::move(ne), encoding.type,
                     encoding.encode ? encoding.encode(matrix)
                                     : std::string(bytes, matrix.size() * sizeof(float))});
  }

  const MoeModel& model_;
  const std::function<GgufEncoding(const std::string& name)>& encoding_of_;
  GgufBuilder& builder_;
};

struct Q8Block {
  uint16_t scale;
  std::array<int8_t, 32> codes;
};

Q8Block quantize_q8_0(const float* values) {
  float largest = 0.0F;
  for (int i = 0; i < 32; ++i)
    largest = std::max(largest, std::abs(values[i]));
  const float d = largest / 127.0F;
  Q8Block block{f32_to_f16(d), {}};
  for (size_t i = 0; i < 32; ++i)
    block.codes[i] = d == 0.0F ? int8_t{0} : static_cast<int8_t>(std::round(values[i] / d));
  return block;
}

}  // namespace

GgufEncoding bf16_encoding() {
  return {30, [](const std::vector<float>& values) {
            std::string bytes;
            for (const float value : values)
              bytes += GgufBuilder::bytes_of(f32_to_bf16(value));
            return bytes;
          }};
}

GgufEncoding q8_0_encoding() {
  return {8, [](const std::vector<float>& values) {
            std::string bytes;
            for (size_t i = 0; i < values.size(); i += 32) {
              const Q8Block block = quantize_q8_0(values.data() + i);
              bytes += GgufBuilder::bytes_of(block.scale) + GgufBuilder::bytes_of(block.codes);
            }
            return bytes;
          }};
}

GgufEncoding f32_of_q8_0_encoding() {
  return {0, [](const std::vector<float>& values) {
            std::string bytes;
            for (size_t i = 0; i < values.size(); i += 32) {
              const Q8Block block = quantize_q8_0(values.data() + i);
              for (const int8_t code : block.codes)
                bytes += GgufBuilder::bytes_of(f16_to_f32(block.scale) * static_cast<float>(code));
            }
            return bytes;
          }};
}

void export_gguf(const MoeModel& model,
                 const std::function<GgufEncoding(const std::string& name)>& encoding_of,
                 GgufBuilder& builder) {
  Exporter exporter(model, encoding_of, builder);
  for (const MoeLayerSpec& spec : model.config().layers)
    exporter.add_layer(spec);
}

}  // namespace gantry::test
