#include "tools/quantize_run.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <set>
#include <string>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/log_format.h"
#include "kernels/quant/awq.h"
#include "kernels/quant/gptq_weights.h"
#include "loader/carried_files.h"
#include "loader/encodings/quant_config.h"
#include "loader/matrix_reader.h"

namespace gantry::cli {
namespace {

using Bytes = std::vector<std::byte>;

constexpr int64_t kCopyBytes = int64_t{8} << 20;

struct Matrix {
  const MatrixPlan* plan = nullptr;
  MatrixSize size;
  std::vector<float> weights;
};

// What is known of the inputs of an expert's matrices, for AWQ.
struct AwqInputs {
  std::span<const float> scales;   // [in]
  std::span<const float> hessian;  // [in, in], or empty: no sample
};

class Runner {
 public:
  Runner(const MoeModel& model, const QuantizePlan& plan, const QuantizeRun& run)
      : model_(model),
        plan_(plan),
        run_(run),
        reader_(model.checkpoint(), model.config(), model.tensors()),
        writer_(run.directory,
                std::array{run.alone.empty() ? model.checkpoint().directory() : run.alone},
                plan_shards(plan.tensors, run.shard_bytes),
                {.resume = run.resume, .fingerprint = run.fingerprint}) {}

  QuantizeResult run() {
    Threads threads = run_.threads;
    const int64_t job_bytes = std::max(plan_.job_bytes + hessian_bytes(), kCopyBytes);
    const int64_t fitting = run_.memory_bytes / job_bytes;
    GANTRY_CHECK(fitting >= 1, ErrorCode::kOutOfMemory,
                 "--memory: {} bytes; one expert alone needs {}", run_.memory_bytes, job_bytes);
    if (fitting < threads.resolved_count()) {
      threads.count = static_cast<int>(fitting);
      log(LogLevel::kInfo, "{} thread(s): a job needs {:.1f} MB of memory", threads.count,
          static_cast<double>(job_bytes) / 1e6);
    }
    run_copies(threads);
    parallel_for(threads, static_cast<int64_t>(plan_.linear.size()),
                 [&](int64_t i) { run_linear(plan_.linear[static_cast<size_t>(i)]); });
    parallel_for(threads, static_cast<int64_t>(plan_.experts.size()),
                 [&](int64_t i) { run_expert(plan_.experts[static_cast<size_t>(i)]); });
    write_other_files();
    QuantizeResult result{.bytes_read = bytes_read_,
                          .bytes_written = writer_.total_bytes() - writer_.kept_bytes(),
                          .bytes_kept = writer_.kept_bytes()};
    writer_.finish();
    return result;
  }

 private:
  // config.json and what says how weights are quantized are new; tokenizer, code, licence ... are
  // those of the source.
  void write_other_files() {
    std::set<std::string> written = {"config.json"};
    written.insert(quant_sidecar_names().begin(), quant_sidecar_names().end());
    if (run_.alone.empty()) carry_files(model_.checkpoint().directory(), writer_, written);
    writer_.write_text("config.json", plan_.config_text);
    for (const auto& [name, text] : plan_.side_files)
      writer_.write_text(name, text);
  }

  // Of a job with GPTQ: a Hessian, and what making its factors takes (GptqHessian). With AWQ two
  // Hessians as they are and in panels, and trials of one matrix (scaled, codes, difference).
  [[nodiscard]] int64_t hessian_bytes() const {
    int64_t largest = 0;
    if (run_.hessians == nullptr && run_.awq == nullptr) return 0;
    for (const ExpertPlan& expert : plan_.experts) {
      for (const MatrixPlan& matrix : expert.matrices) {
        const auto [out, in] = part_size(matrix.part, *expert.spec);
        largest = std::max(largest, 16 * in * in + (run_.awq == nullptr ? 0 : 16 * out * in));
      }
    }
    return largest;
  }

  void read_bytes(int64_t bytes) {
    bytes_read_ += bytes;
    if (run_.progress) run_.progress(bytes);
  }

  // ---- copies --------------------------------------------------------------------------------

  struct Chunk {
    const CopyPlan* copy;
    int64_t begin;
    int64_t bytes;
  };

  void run_copies(const Threads& threads) {
    std::vector<CopyPlan> copies = plan_.copies;
    for (const LinearPlan& linear : plan_.linear) {
      if (linear.copied())
        copies.push_back({linear.module.name + ".weight", linear.module.tensors.at("weight")});
    }
    std::vector<Chunk> chunks;
    for (const CopyPlan& copy : copies) {
      if (writer_.is_kept(copy.name) || copy_scaled(copy)) continue;
      const int64_t total = copy.tensor->info.num_bytes();
      for (int64_t begin = 0; begin < total; begin += kCopyBytes)
        chunks.push_back({&copy, begin, std::min(kCopyBytes, total - begin)});
    }
    parallel_for(threads, static_cast<int64_t>(chunks.size()), [&](int64_t i) {
      const auto& [copy, begin, bytes] = chunks[static_cast<size_t>(i)];
      const CheckpointTensor* tensor = copy->tensor;
      Bytes data(static_cast<size_t>(bytes));
      model_.checkpoint().files()[static_cast<size_t>(tensor->file)].read(
          tensor->info.begin + begin, data.data(), bytes);
      read_bytes(bytes);
      writer_.write(copy->name, begin, data);
    });
  }

  // A tensor that takes up AWQ's scales of hidden states, or their inverse; false: it does not.
  bool copy_scaled(const CopyPlan& copy) {
    const CheckpointTensor& tensor = *copy.tensor;
    const std::vector<float> factors = factors_of(tensor.info.name);
    if (factors.empty()) return false;
    const TensorInfo& info = tensor.info;
    GANTRY_CHECK(is_plain_float(info.dtype) && !info.shape.empty() &&
                     info.shape.back() == static_cast<int64_t>(factors.size()),
                 ErrorCode::kFormat, "{}: expected floats [.., {}], found {}", info.name,
                 factors.size(), describe(info));
    Bytes data(static_cast<size_t>(info.num_bytes()));
    model_.checkpoint().files()[static_cast<size_t>(tensor.file)].read(info.begin, data.data(),
                                                                       info.num_bytes());
    read_bytes(info.num_bytes());
    std::vector<float> values(static_cast<size_t>(info.num_elements()));
    convert_to_f32(data.data(), info.dtype, info.num_elements(), values.data());
    values = scale_columns(values, factors);
    convert_from_f32(values.data(), info.num_elements(), info.dtype, data.data());
    const int64_t bad = find_non_finite(data.data(), info.dtype, info.num_elements());
    GANTRY_CHECK(bad < 0, ErrorCode::kUnsupported,
                 "{}: element {} is too large for {} times AWQ's scale", info.name, bad,
                 to_string(info.dtype));
    writer_.write(copy.name, 0, data);
    return true;
  }

  [[nodiscard]] std::vector<float> factors_of(const std::string& tensor) const {
    return run_.awq == nullptr ? std::vector<float>() : run_.awq->factors_of(tensor);
  }

  // ---- other linear layers -------------------------------------------------------------------

  void run_linear(const LinearPlan& linear) {
    if (linear.copied()) return;
    const std::string& name = linear.module.name;
    const auto [out, in] = linear.size;
    if (!linear.quantized) {
      const std::string weight = name + ".weight";
      if (writer_.is_kept(weight)) return;
      write_plain(weight, 0, read_module(linear.module));
      return;
    }
    std::vector<std::string> names;
    for (const ExportTensor& tensor : plan_.format.matrix.tensors)
      names.push_back(fmt::format("{}.{}", name, tensor.suffix));
    if (all_kept(names)) return;
    const std::vector<float> weights = read_module(linear.module);
    check_finite(weights, in, name);
    const QuantizedWeights quantized = quantize(weights, linear.size, 0.0F, name, nullptr, nullptr);
    for (size_t t = 0; t < names.size(); ++t) {
      write_new(names[t], 0,
                export_bytes(plan_.format.matrix, plan_.format.matrix.tensors[t], quantized,
                             assumed_hidden_amax(in)));
    }
  }

  std::vector<float> read_module(const LinearModule& module) {
    std::vector<float> weights = read_linear(model_.checkpoint(), module);
    read_bytes(module.bytes());
    const std::vector<float> factors = factors_of(module.tensors.begin()->second->info.name);
    return factors.empty() ? weights : scale_columns(weights, factors);
  }

  // ---- experts -------------------------------------------------------------------------------

  void run_expert(const ExpertPlan& expert) {
    std::vector<std::string> names;
    for (const MatrixPlan& matrix : expert.matrices) {
      names.insert(names.end(), matrix.names.begin(), matrix.names.end());
      if (!matrix.bias_name.empty()) names.push_back(matrix.bias_name);
    }
    if (all_kept(names)) return;
    if (run_.awq != nullptr) return run_awq_expert(expert);
    std::vector<Matrix> inner;  // w1 and w3
    float gate_norm = 1.0F;
    float up_norm = 1.0F;
    for (const MatrixPlan& plan : expert.matrices) {
      Matrix matrix = read(expert, plan);
      if (plan.part == Part::kW2) {
        if (!inner.empty()) write_inner(expert, inner);
        inner.clear();
        const float amax = run_.ranges.amax(expert.spec->layer, /*down=*/true)
                               .value_or(assumed_down_amax(gate_norm, up_norm));
        write_matrices(expert, std::span(&matrix, 1), amax, nullptr);
        continue;
      }
      if (needs_assumed(expert.spec->layer))
        (plan.part == Part::kW1 ? gate_norm : up_norm) =
            largest_row_norm(matrix.weights, matrix.size.in);
      inner.push_back(std::move(matrix));
    }
  }

  [[nodiscard]] bool needs_assumed(int layer) const {
    return plan_.format.static_inputs() && !run_.ranges.amax(layer, /*down=*/true);
  }

  void write_inner(const ExpertPlan& expert, const std::vector<Matrix>& inner) {
    const float amax = run_.ranges.amax(expert.spec->layer, /*down=*/false)
                           .value_or(assumed_hidden_amax(inner[0].size.in));
    write_matrices(expert, inner, amax, nullptr);
  }

  // With scales that AWQ takes out of the experts' inputs: of w1's and w3's into the norm, of w2's
  // into the rows of w3; or all of them into tensors beside the weights.
  void run_awq_expert(const ExpertPlan& expert) {
    const AwqScaling& awq = *run_.awq;
    const MoeLayerSpec& spec = *expert.spec;
    std::vector<Matrix> matrices;
    for (const MatrixPlan& plan : expert.matrices)
      matrices.push_back(read(expert, plan));
    Matrix& w2 = matrices.back();
    const std::vector<float> down = awq.hessians().read(spec, expert.expert, /*down=*/true);
    const std::vector<float> down_scales = awq.down_scales(spec, w2.weights, down);
    const std::vector<float>& input_scales = awq.input_scales(spec.layer);
    const std::span<Matrix> inner = std::span(matrices).first(matrices.size() - 1);
    // What stays plain has no tensor for a factor.
    const auto times = [&](const Matrix& matrix, const std::vector<float>& scales) {
      return matrix.plan->quantized || !awq.keeps_factors() ? scale_columns(matrix.weights, scales)
                                                            : matrix.weights;
    };
    for (Matrix& matrix : inner)
      matrix.weights = times(matrix, input_scales);
    if (spec.gated() && !awq.keeps_factors()) {
      std::vector<float>& w3 = inner.back().weights;
      for (size_t i = 0; i < w3.size(); ++i)
        w3[i] /= down_scales[i / input_scales.size()];
    }
    w2.weights = times(w2, down_scales);
    const auto amax_of = [&](bool is_down, float scaled, float assumed) {
      if (scaled > 0.0F) return scaled;
      return run_.ranges.amax(spec.layer, is_down).value_or(assumed);
    };
    const std::vector<float> hessian = awq.hessians().read(spec, expert.expert, /*down=*/false);
    const AwqInputs gate_up_inputs{input_scales, hessian};
    write_matrices(
        expert, inner,
        amax_of(false, awq.gate_up_amax(spec.layer), assumed_hidden_amax(spec.hidden_size)),
        &gate_up_inputs);
    const AwqInputs down_inputs{down_scales, down};
    const float amax = plan_.format.static_inputs() && !down.empty()
                           ? awq.down_amax(spec, expert.expert, down_scales)
                           : 0.0F;
    write_matrices(expert, std::span(&w2, 1), amax_of(true, amax, assumed_down(matrices)),
                   &down_inputs);
  }

  [[nodiscard]] static float assumed_down(std::span<const Matrix> matrices) {
    const auto norm = [](const Matrix& matrix) {
      return largest_row_norm(matrix.weights, matrix.size.in);
    };
    return assumed_down_amax(norm(matrices[0]), matrices.size() > 2 ? norm(matrices[1]) : 1.0F);
  }

  Matrix read(const ExpertPlan& expert, const MatrixPlan& plan) {
    const MoeLayerSpec& spec = *expert.spec;
    Matrix matrix{&plan, part_size(plan.part, spec),
                  reader_.read(spec.layer, expert.expert, plan.part)};
    read_bytes(source_bytes(expert, plan.part, matrix.size));
    check_finite(
        matrix.weights, matrix.size.in,
        fmt::format("{}, expert {}, {}", reader_.name(spec.layer, expert.expert, plan.part),
                    expert.expert, to_string(plan.part)));
    return matrix;
  }

  // Its part of the source's bytes, for rates.
  [[nodiscard]] int64_t source_bytes(const ExpertPlan& expert, Part part,
                                     const MatrixSize& size) const {
    const LayerTensors& tensors = model_.tensors().layer(expert.spec->layer);
    const TensorInfo& info = tensors.any_source(expert.expert, part)->tensor->info;
    return tensors.is_encoded(expert.expert, part) ? size.out * size.in
                                                   : size.out * size.in * size_of(info.dtype);
  }

  void write_matrices(const ExpertPlan& expert, std::span<const Matrix> matrices, float input_amax,
                      const AwqInputs* awq) {
    float shared = 0.0F;
    if (plan_.format.share_gate_up) {
      for (const Matrix& matrix : matrices)
        shared = std::max(shared, weight_range(matrix.weights).amax());
    }
    std::vector<QuantizedWeights> quantized;
    for (const Matrix& matrix : matrices) {
      if (!matrix.plan->bias_name.empty()) write_bias(expert, *matrix.plan);
      if (!matrix.plan->quantized) {
        write_plain(matrix.plan->names[0], 0, matrix.weights);
        continue;
      }
      const std::string name = reader_.name(expert.spec->layer, expert.expert, matrix.plan->part);
      const auto hessian =
          run_.hessians == nullptr
              ? nullptr
              : run_.hessians->factors(*expert.spec, expert.expert, matrix.plan->part == Part::kW2);
      quantized.push_back(quantize(matrix.weights, matrix.size, shared, name, hessian.get(), awq));
      if (!plan_.format.stacked) {
        write_quantized(*matrix.plan, quantized.back(), input_amax,
                        awq == nullptr ? std::vector<float>() : inverse_of(awq->scales));
      }
    }
    if (plan_.format.stacked) write_stacked(expert, matrices, quantized, input_amax);
  }

  QuantizedWeights quantize(const std::vector<float>& weights, const MatrixSize& size, float shared,
                            const std::string& name, const GptqHessian* hessian,
                            const AwqInputs* awq) const {
    const WeightQuantization& quantization = plan_.format.matrix.quantization;
    try {
      if (awq != nullptr && !awq->hessian.empty())
        return awq_weights(quantization, weights, size.out, awq->scales, awq->hessian, shared);
      if (hessian == nullptr)
        return quantize_weights(quantization, weights, size.out, size.in, shared);
      const Threads one{.count = 1, .executor = {}};  // experts are quantized side by side
      return gptq_weights(quantization, weights, size.out, *hessian, shared, one,
                          plan_.format.desc_act);
    } catch (const Error& error) {
      fail(error.code(), "{}: {}", name, error.what());
    }
  }

  static std::vector<float> inverse_of(std::span<const float> scales) {
    std::vector<float> inverse;
    for (const float scale : scales)
      inverse.push_back(1.0F / scale);
    return inverse;
  }

  void write_quantized(const MatrixPlan& plan, const QuantizedWeights& quantized, float input_amax,
                       std::span<const float> input_factors) {
    const MatrixExport& format = plan_.format.matrix;
    for (size_t t = 0; t < plan.names.size(); ++t) {
      if (writer_.is_kept(plan.names[t])) continue;
      write_new(plan.names[t], 0,
                export_bytes(format, format.tensors[t], quantized, input_amax, input_factors));
    }
  }

  // ---- all experts in one tensor -------------------------------------------------------------

  void write_stacked(const ExpertPlan& expert, std::span<const Matrix> matrices,
                     const std::vector<QuantizedWeights>& quantized, float input_amax) {
    const MatrixExport& format = plan_.format.matrix;
    for (size_t t = 0; t < format.tensors.size(); ++t) {
      std::vector<Bytes> parts;
      for (const QuantizedWeights& weights : quantized)
        parts.push_back(export_bytes(format, format.tensors[t], weights, input_amax));
      write_slab(matrices[0].plan->names[t], expert.expert, joined(parts, matrices[0].size.out));
    }
  }

  // Rows of gate and up as the family's fused tensor has them.
  [[nodiscard]] Bytes joined(const std::vector<Bytes>& parts, int64_t rows) const {
    if (parts.size() == 1) return parts[0];
    const size_t row_bytes = parts[0].size() / static_cast<size_t>(rows);
    const bool interleaved = plan_.gate_up == GateUp::kInterleaved;
    Bytes both(parts[0].size() * 2);
    for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
      for (size_t p = 0; p < 2; ++p) {
        const size_t target = interleaved ? 2 * r + p : p * static_cast<size_t>(rows) + r;
        std::memcpy(both.data() + target * row_bytes, parts[p].data() + r * row_bytes, row_bytes);
      }
    }
    return both;
  }

  void write_slab(const std::string& name, int expert, const Bytes& bytes) {
    write_new(name, expert * static_cast<int64_t>(bytes.size()), bytes);
  }

  // ---- plain ---------------------------------------------------------------------------------

  // Biases of gate and up that share a tensor are written with gate's turn.
  void write_bias(const ExpertPlan& expert, const MatrixPlan& plan) {
    const int layer = expert.spec->layer;
    const bool fused = plan_.format.stacked && expert.spec->gated() && plan.part != Part::kW2;
    if (!fused) {
      const std::vector<float> bias = reader_.read_bias(layer, expert.expert, plan.part);
      const auto size = static_cast<int64_t>(bias.size()) * size_of(plan_.plain_dtype);
      write_plain(plan.bias_name, plan_.format.stacked ? expert.expert * size : 0, bias);
      return;
    }
    if (plan.part != Part::kW1) return;
    std::vector<Bytes> parts;
    for (const Part part : {Part::kW1, Part::kW3})
      parts.push_back(plain_bytes(reader_.read_bias(layer, expert.expert, part)));
    write_slab(plan.bias_name, expert.expert, joined(parts, expert.spec->intermediate_size));
  }

  [[nodiscard]] Bytes plain_bytes(const std::vector<float>& values) const {
    Bytes bytes(values.size() * static_cast<size_t>(size_of(plan_.plain_dtype)));
    convert_from_f32(values.data(), static_cast<int64_t>(values.size()), plan_.plain_dtype,
                     bytes.data());
    return bytes;
  }

  void write_plain(const std::string& name, int64_t offset, const std::vector<float>& values) {
    write_new(name, offset, plain_bytes(values));
  }

  void write_new(const std::string& name, int64_t offset, const Bytes& bytes) {
    if (!writer_.is_kept(name)) writer_.write(name, offset, bytes);
  }

  [[nodiscard]] bool all_kept(const std::vector<std::string>& names) const {
    return std::all_of(names.begin(), names.end(),
                       [&](const std::string& name) { return writer_.is_kept(name); });
  }

  static void check_finite(const std::vector<float>& weights, int64_t in,
                           const std::string& where) {
    const int64_t bad =
        find_non_finite(weights.data(), DType::kF32, static_cast<int64_t>(weights.size()));
    GANTRY_CHECK(bad < 0, ErrorCode::kFormat,
                 "{}: element [{}, {}]: expected a number, found NaN or infinity", where, bad / in,
                 bad % in);
  }

  const MoeModel& model_;
  const QuantizePlan& plan_;
  const QuantizeRun& run_;
  MatrixReader reader_;
  CheckpointWriter writer_;
  std::atomic<int64_t> bytes_read_ = 0;
};

void warn_of_statistics(const MoeModel& model, const QuantizePlan& plan, const QuantizeRun& run) {
  const InputRanges& ranges = run.ranges;
  if (plan.format.static_inputs() && ranges.empty()) {
    log(LogLevel::kWarn,
        "{} has static input scales, and no --stats are given: they are assumed from the weights, "
        "for hidden states behind an RMS norm",
        plan.format.name);
  }
  const bool calibrated_codes = run.hessians != nullptr || run.awq != nullptr;
  if (!plan.format.static_inputs() && !calibrated_codes) return;
  for (const MoeLayerSpec& spec : model.config().layers) {
    const std::vector<int> experts = ranges.uncalibrated(spec.layer);
    if (experts.empty()) continue;
    std::string instead;
    if (plan.format.static_inputs()) {
      instead += ranges.amax(spec.layer, /*down=*/false)
                     ? "; their input scales are those of the layer"
                     : "; their input scales are assumed from the weights";
    }
    if (calibrated_codes) instead += "; their weights are rounded to nearest";
    log(LogLevel::kWarn, "layer {}: experts without calibration tokens: {}{}", spec.layer,
        fmt::join(experts, ", "), instead);
  }
}

}  // namespace

QuantizeResult run_quantize(const MoeModel& model, const QuantizePlan& plan,
                            const QuantizeRun& run) {
  warn_of_statistics(model, plan, run);
  return Runner(model, plan, run).run();
}

}  // namespace gantry::cli
