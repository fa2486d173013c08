#include "runtime/calibration.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/quant/gram_matrix.h"
#include "loader/matrix_reader.h"
#include "loader/safetensors_writer.h"
#include "runtime/expert_inputs.h"
#include "runtime/input_statistics.h"
#include "runtime/latent_projection.h"
#include "runtime/token_router.h"

namespace gantry {
namespace {

constexpr int64_t kMaxChunkTokens = 2048;
constexpr std::string_view kFormatName = "gantry-calibration-1";

// What is collected for one expert's two inputs; without a Hessian the matrix is null.
struct ExpertRecord {
  std::optional<ExpertInputs> weights;
  InputStatistics gate_up;
  InputStatistics down;
  std::unique_ptr<GramMatrix> gate_up_hessian;
  std::unique_ptr<GramMatrix> down_hessian;
};

class LayerCalibrator {
 public:
  LayerCalibrator(MoeModel& model, const MoeLayerSpec& spec, const ActivationFiles& activations,
                  const CalibrationSettings& settings, const std::filesystem::path& directory)
      : model_(model),
        spec_(spec),
        activations_(activations),
        settings_(settings),
        path_(directory / calibration_file_name(spec.layer)),
        reader_(model.checkpoint(), model.config(), model.tensors()) {
    result_.layer = spec.layer;
    result_.num_tokens = activations.num_tokens(spec.layer);
  }

  LayerCalibration run() {
    GANTRY_CHECK(!settings_.route_all || !spec_.router_weight_on_input, ErrorCode::kUnsupported,
                 "layer {}: every token to every expert: their inputs are weighted by the router, "
                 "and have no weight where it does not send them",
                 spec_.layer);
    if (std::filesystem::exists(path_)) return resume();
    plan_memory();
    route();
    std::vector<TensorInfo> tensors = list_tensors();
    writer_ = std::make_unique<SafetensorsWriter>(path_, std::move(tensors), metadata());
    for (int first = 0; first < spec_.num_experts; first += batch_)
      run_batch(first, std::min(spec_.num_experts, first + batch_));
    write_layer_tensors();
    if (settings_.outputs) write_outputs();
    writer_->finish();
    return std::move(result_);
  }

 private:
  [[nodiscard]] int64_t hidden() const { return spec_.expert_hidden_size; }

  // ---- what fits into memory ----------------------------------------------------------------

  // Rows of captures (also as the experts see them, gathered, and in panels' rows), intermediates.
  [[nodiscard]] int64_t chunk_bytes(int64_t tokens) const {
    return tokens * 4 * (2 * spec_.hidden_size + hidden()) +
           ExpertInputs::scratch_bytes(spec_, tokens);
  }

  [[nodiscard]] int64_t expert_bytes() const {
    int64_t bytes = ExpertInputs::bytes(spec_) + 12 * (hidden() + spec_.intermediate_size) +
                    2 * 8 * static_cast<int64_t>(InputStatistics::kNumBins);
    if (settings_.hessians) {
      bytes += GramMatrix::bytes(spec_.intermediate_size);
      if (!settings_.route_all) bytes += GramMatrix::bytes(hidden());
    }
    return bytes;
  }

  void plan_memory() {
    const int64_t n = std::max(hidden(), spec_.intermediate_size);
    // Each thread that reads an expert holds one matrix, raw and in f32.
    int64_t fixed = settings_.threads.resolved_count() * 8 * hidden() * spec_.intermediate_size +
                    result_.num_tokens * 8 * std::max(spec_.routing.top_k, settings_.top_k);
    if (settings_.hessians) {
      fixed += 4 * n * n;  // one written at a time
      if (settings_.route_all) fixed += GramMatrix::bytes(hidden());
    }
    chunk_ = std::clamp<int64_t>(result_.num_tokens, 1, kMaxChunkTokens);
    const auto left = [&] { return settings_.memory_bytes - fixed - chunk_bytes(chunk_); };
    while (chunk_ > 64 && left() < expert_bytes())
      chunk_ /= 2;
    GANTRY_CHECK(left() >= expert_bytes(), ErrorCode::kInvalidArgument,
                 "layer {}: {} MB of memory do not hold one expert: {} MB are needed", spec_.layer,
                 settings_.memory_bytes >> 20,
                 (settings_.memory_bytes - left() + expert_bytes() + (1 << 20) - 1) >> 20);
    batch_ = static_cast<int>(
        std::clamp<int64_t>(left() / expert_bytes(), 1, int64_t{spec_.num_experts}));
    result_.num_batches = (spec_.num_experts + batch_ - 1) / batch_;
    log(LogLevel::kInfo,
        "layer {}: {} tokens in chunks of {}, {} experts in {} batch(es) of {} ({} MB each)",
        spec_.layer, result_.num_tokens, chunk_, spec_.num_experts, result_.num_batches, batch_,
        expert_bytes() >> 20);
  }

  // ---- tokens ------------------------------------------------------------------------------

  void route() {
    const std::vector<int32_t> ids = activations_.token_ids(spec_.layer);
    GANTRY_CHECK(!spec_.hash_table || !ids.empty(), ErrorCode::kInvalidArgument,
                 "layer {}: it routes by token ids, and the captures have no 'input_ids' [T]",
                 spec_.layer);
    routed_ = route_tokens(
        model_, spec_.layer, settings_.top_k, result_.num_tokens,
        [&](int64_t first, int64_t count, std::span<float> rows) {
          activations_.read_router_input(spec_.layer, first, count, rows);
        },
        spec_.hash_table ? std::span<const int32_t>(ids) : std::span<const int32_t>(),
        settings_.threads);
    result_.tokens_per_expert = routed_.per_expert;
    result_.samples_per_expert = routed_.per_expert;
    if (settings_.route_all) {
      std::fill(result_.samples_per_expert.begin(), result_.samples_per_expert.end(),
                result_.num_tokens);
    }
  }

  // The rows of a chunk that an expert sees; all of them with route_all.
  std::span<const float> rows_of(int expert, int64_t first, int64_t count,
                                 std::span<const float> chunk) {
    if (settings_.route_all) return chunk;
    gathered_.clear();
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t k = 0; k < routed_.num_slots; ++k) {
        const auto slot = static_cast<size_t>((first + t) * routed_.num_slots + k);
        if (routed_.ids[slot] != expert) continue;
        const float* row = chunk.data() + t * hidden();
        const float weight = spec_.router_weight_on_input ? routed_.weights[slot] : 1.0F;
        for (int64_t i = 0; i < hidden(); ++i)
          gathered_.push_back(row[i] * weight);
      }
    }
    return gathered_;
  }

  // ---- experts -----------------------------------------------------------------------------

  void run_batch(int begin, int end) {
    std::vector<ExpertRecord> records(static_cast<size_t>(end - begin));
    parallel_for(settings_.threads, end - begin, [&](int64_t i) {
      const int e = begin + static_cast<int>(i);
      ExpertRecord& record = records[static_cast<size_t>(i)];
      record.weights.emplace(reader_, spec_, e);
      record.gate_up = InputStatistics(settings_.route_all ? 0 : hidden());
      record.down = InputStatistics(spec_.intermediate_size);
      if (!settings_.hessians) return;
      record.down_hessian = std::make_unique<GramMatrix>(spec_.intermediate_size);
      if (!settings_.route_all) record.gate_up_hessian = std::make_unique<GramMatrix>(hidden());
    });
    if (begin == 0 && settings_.route_all) {
      shared_.gate_up = InputStatistics(hidden());
      if (settings_.hessians) shared_.gate_up_hessian = std::make_unique<GramMatrix>(hidden());
    }
    ExpertInputs::Scratch scratch(spec_, chunk_);
    const LatentProjection latent(reader_, spec_);
    std::vector<float> rows(static_cast<size_t>(chunk_ * spec_.hidden_size));
    for (int64_t first = 0; first < result_.num_tokens; first += chunk_) {
      const int64_t count = std::min(chunk_, result_.num_tokens - first);
      const auto raw = std::span(rows).first(static_cast<size_t>(count * spec_.hidden_size));
      activations_.read(spec_.layer, first, count, raw);
      const std::span<const float> x = latent.apply(raw, settings_.threads);
      if (begin == 0 && settings_.route_all) add(shared_, x, count);
      for (int e = begin; e < end; ++e) {
        ExpertRecord& record = records[static_cast<size_t>(e - begin)];
        const std::span<const float> own = rows_of(e, first, count, x);
        const auto num_rows = static_cast<int64_t>(own.size()) / hidden();
        if (num_rows == 0) continue;
        if (!settings_.route_all) add(record, own, num_rows);
        const std::span<const float> h =
            record.weights->run(own, num_rows, settings_.threads, scratch);
        record.down.add(h, num_rows, settings_.threads);
        if (record.down_hessian) {
          record.down_hessian->add(h, num_rows, spec_.intermediate_size, settings_.threads);
        }
        if (settings_.progress && first + chunk_ >= result_.num_tokens) settings_.progress(1);
      }
    }
    for (int e = begin; e < end; ++e)
      write_expert(e, records[static_cast<size_t>(e - begin)]);
  }

  // The input of w1 and w3.
  void add(ExpertRecord& record, std::span<const float> x, int64_t count) {
    record.gate_up.add(x, count, settings_.threads);
    if (record.gate_up_hessian) record.gate_up_hessian->add(x, count, hidden(), settings_.threads);
  }

  // ---- the file ----------------------------------------------------------------------------

  [[nodiscard]] std::map<std::string, std::string> metadata() const {
    return {{"format", std::string(kFormatName)},
            {"layer", std::to_string(spec_.layer)},
            {"num_experts", std::to_string(spec_.num_experts)},
            {"hidden_size", std::to_string(hidden())},
            {"intermediate_size", std::to_string(spec_.intermediate_size)},
            {"num_tokens", std::to_string(result_.num_tokens)},
            {"route_all", settings_.route_all ? "true" : "false"},
            {"hessians", settings_.hessians ? "true" : "false"},
            {"outputs", settings_.outputs ? "true" : "false"},
            {"top_k", std::to_string(settings_.top_k > 0 ? settings_.top_k : spec_.routing.top_k)},
            {"groups", fmt::format("{}", fmt::join(settings_.groups, ","))},
            {"weights", reader_.name(spec_.layer, 0, Part::kW2)},
            {"captures", activations_.describe(spec_.layer)}};
  }

  [[nodiscard]] std::vector<TensorInfo> list_tensors() const {
    std::vector<TensorInfo> tensors;
    const auto add = [&](std::string name, DType dtype, std::vector<int64_t> shape) {
      tensors.push_back({std::move(name), dtype, std::move(shape)});
    };
    const int64_t experts = spec_.num_experts;
    add("tokens_per_expert", DType::kI64, {experts});
    add("samples_per_expert", DType::kI64, {experts});
    for (const auto& [input, n] : {std::pair<std::string, int64_t>{"gate_up", hidden()},
                                   {"down", spec_.intermediate_size}}) {
      add(input + ".amax", DType::kF32, {experts});
      add(input + ".layer_amax", DType::kF32, {1});
      add(input + ".channel_amax", DType::kF32, {experts, n});
      add(input + ".channel_mean_abs", DType::kF32, {experts, n});
      add(input + ".histogram", DType::kI64,
          {experts, static_cast<int64_t>(InputStatistics::kNumBins)});
      for (const int64_t group : settings_.groups)
        add(fmt::format("{}.group_amax_{}", input, group), DType::kF32,
            {experts, (n + group - 1) / group});
      const bool shared = settings_.route_all && input == "gate_up";
      if (settings_.hessians) add(input + ".hessian", DType::kF32, {shared ? 1 : experts, n, n});
    }
    if (settings_.outputs) {
      add("output", DType::kF32, {result_.num_tokens, spec_.hidden_size});
    }
    return tensors;
  }

  // Row `row` of a tensor whose rows are these values.
  template <typename T>
  void write_row(const std::string& name, int64_t row, std::span<const T> values) {
    const auto bytes = std::as_bytes(values);
    writer_->write(name, row * static_cast<int64_t>(bytes.size()), bytes);
  }

  void write_statistics(const std::string& input, int expert, const InputStatistics& statistics,
                        float& layer_amax) {
    const float amax = statistics.amax();
    layer_amax = std::max(layer_amax, amax);
    write_row<float>(input + ".amax", expert, std::span(&amax, 1));
    write_row<float>(input + ".channel_amax", expert, statistics.channel_amax());
    write_row<float>(input + ".channel_mean_abs", expert, statistics.channel_mean_abs());
    write_row<int64_t>(input + ".histogram", expert, statistics.histogram());
    for (const int64_t group : settings_.groups) {
      write_row<float>(fmt::format("{}.group_amax_{}", input, group), expert,
                       statistics.group_amax(group));
    }
  }

  void write_hessian(const std::string& input, int expert, const GramMatrix& hessian) {
    std::vector<float> matrix(static_cast<size_t>(hessian.size() * hessian.size()));
    hessian.copy_to(matrix);
    write_row<float>(input + ".hessian", expert, matrix);
  }

  void write_expert(int expert, const ExpertRecord& record) {
    const ExpertRecord& gate_up = settings_.route_all ? shared_ : record;
    write_statistics("gate_up", expert, gate_up.gate_up, gate_up_amax_);
    write_statistics("down", expert, record.down, down_amax_);
    if (record.gate_up_hessian) write_hessian("gate_up", expert, *record.gate_up_hessian);
    if (record.down_hessian) write_hessian("down", expert, *record.down_hessian);
  }

  void write_layer_tensors() {
    write_row<int64_t>("tokens_per_expert", 0, result_.tokens_per_expert);
    write_row<int64_t>("samples_per_expert", 0, result_.samples_per_expert);
    write_row<float>("gate_up.layer_amax", 0, std::span(&gate_up_amax_, 1));
    write_row<float>("down.layer_amax", 0, std::span(&down_amax_, 1));
    if (shared_.gate_up_hessian) write_hessian("gate_up", 0, *shared_.gate_up_hessian);
  }

  // The layer as the model runs it: its own routing, whatever calibration did.
  void write_outputs() {
    const WeightLoader loader(model_.checkpoint(), model_.config(), model_.tensors());
    const ExpertMap experts = ExpertMap::create(spec_.num_experts, 1, Placement::kLinear);
    const int64_t needed =
        loader.plan(spec_.layer, {}, experts).bytes_owned + 16 * chunk_ * spec_.hidden_size;
    GANTRY_CHECK(needed <= settings_.memory_bytes, ErrorCode::kInvalidArgument,
                 "layer {}: its output needs the whole layer in {} MB, {} MB are allowed",
                 spec_.layer, needed >> 20, settings_.memory_bytes >> 20);
    LoadOptions load;
    load.threads = settings_.threads;
    LoadStats stats;
    FusedMoeOptions options;
    options.activations = ActivationDType::kF32;
    options.threads = settings_.threads;
    const FusedMoeLayer layer(
        loader.load_layer(spec_.layer, {}, experts, load, model_.report(), stats), experts, options,
        nullptr);
    Workspace workspace = layer.make_workspace(chunk_);
    const std::vector<int32_t> ids = activations_.token_ids(spec_.layer);
    const auto values = static_cast<size_t>(chunk_ * spec_.hidden_size);
    std::vector<float> x(values);
    std::vector<float> router(values);
    std::vector<float> y(values);
    for (int64_t first = 0; first < result_.num_tokens; first += chunk_) {
      const int64_t count = std::min(chunk_, result_.num_tokens - first);
      const auto size = static_cast<size_t>(count * spec_.hidden_size);
      activations_.read(spec_.layer, first, count, std::span(x).first(size));
      activations_.read_router_input(spec_.layer, first, count, std::span(router).first(size));
      MoeInput input;
      input.hidden_states = std::span(x).first(size);
      input.router_hidden_states = std::span(router).first(size);
      if (!ids.empty()) {
        input.token_ids =
            std::span(ids).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
      }
      layer.forward(input, workspace, std::span(y).first(size));
      writer_->write("output", first * spec_.hidden_size * 4,
                     std::as_bytes(std::span(y).first(size)));
    }
  }

  LayerCalibration resume() {
    const SafetensorsFile file(path_);
    for (const auto& [key, value] : metadata()) {
      const auto found = file.header().metadata.find(key);
      const std::string old = found == file.header().metadata.end() ? "nothing" : found->second;
      GANTRY_CHECK(old == value, ErrorCode::kInvalidArgument,
                   "{}: it was made with {} = {}, this run has {}: remove it or write elsewhere",
                   path_.string(), key, old, value);
    }
    const auto counts = [&](const std::string& name) {
      const TensorInfo* info = file.find(name);
      GANTRY_CHECK(info != nullptr && info->dtype == DType::kI64 &&
                       info->num_elements() == spec_.num_experts,
                   ErrorCode::kFormat, "{}: no {} of {} experts", path_.string(), name,
                   spec_.num_experts);
      std::vector<int64_t> values(static_cast<size_t>(spec_.num_experts));
      file.read(info->begin, values.data(), info->num_bytes());
      return values;
    };
    result_.tokens_per_expert = counts("tokens_per_expert");
    result_.samples_per_expert = counts("samples_per_expert");
    result_.resumed = true;
    if (settings_.progress) settings_.progress(spec_.num_experts);
    return std::move(result_);
  }

  MoeModel& model_;
  const MoeLayerSpec& spec_;
  const ActivationFiles& activations_;
  const CalibrationSettings& settings_;
  std::filesystem::path path_;
  MatrixReader reader_;
  LayerCalibration result_;
  RoutedTokens routed_;
  std::unique_ptr<SafetensorsWriter> writer_;
  int64_t chunk_ = 1;    // tokens
  int batch_ = 1;        // experts
  ExpertRecord shared_;  // gate_up with route_all
  float gate_up_amax_ = 0.0F;
  float down_amax_ = 0.0F;
  std::vector<float> gathered_;
};

}  // namespace

std::string calibration_file_name(int layer) {
  return fmt::format("layer-{:05}.safetensors", layer);
}

std::vector<int> LayerCalibration::uncalibrated() const {
  std::vector<int> experts;
  for (size_t e = 0; e < samples_per_expert.size(); ++e) {
    if (samples_per_expert[e] == 0) experts.push_back(static_cast<int>(e));
  }
  return experts;
}

LayerCalibration calibrate_layer(MoeModel& model, int layer, const ActivationFiles& activations,
                                 const CalibrationSettings& settings,
                                 const std::filesystem::path& directory) {
  const MoeLayerSpec* spec = model.config().find_layer(layer);
  GANTRY_CHECK(spec != nullptr, ErrorCode::kInvalidArgument, "layer {} is not a MoE layer", layer);
  for (const int64_t group : settings.groups) {
    GANTRY_CHECK(group >= 1, ErrorCode::kInvalidArgument, "groups of {} channels", group);
  }
  return LayerCalibrator(model, *spec, activations, settings, directory).run();
}

}  // namespace gantry
