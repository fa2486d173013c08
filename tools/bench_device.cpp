#include "tools/bench_device.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/base/check.h"
#include "runtime/device_moe_layer.h"
#include "tools/cublas_experts.h"

namespace gantry::cli {
namespace {

template <typename T>
DeviceBuffer upload(const std::shared_ptr<Device>& device, const std::vector<T>& values) {
  DeviceBuffer buffer(device, values.size() * sizeof(T));
  device->copy_in(buffer.data(), values.data(), buffer.size(), nullptr);
  return buffer;
}

/// A batch on the device.
struct Call {
  size_t layer;
  DeviceBuffer hidden_states;
  DeviceBuffer topk_ids;
  DeviceBuffer topk_weights;
};

class DeviceBench {
 public:
  DeviceBench(const DeviceBenchOptions& options, std::shared_ptr<Device> device)
      : options_(options), device_(std::move(device)), stream_(device_) {
    FusedMoeOptions host;
    host.threads = options.threads;
    const auto bytes = static_cast<int64_t>(options.rotate_gb * 1e9);
    model_ = options.directory.empty()
                 ? make_bench_model(options.shape, options.format, bytes, host, options.activations,
                                    options.seed)
                 : load_bench_model(options.directory, bytes, host, options.activations,
                                    options.allow, {.placement = {}, .gpu = true});
    GANTRY_CHECK(model_.activations.dtype == ActivationDType::kBF16 ||
                     model_.activations.dtype == ActivationDType::kScheme,
                 ErrorCode::kInvalidArgument,
                 "bench on a device: expected --activations bf16 or scheme, found {}",
                 options.activations);
    for (const auto& layer : model_.layers) {
      const auto weights = layer->weights();
      layers_.push_back(std::make_unique<DeviceMoeLayer>(
          device_, *weights, ExpertMap::create(weights->spec.num_experts, 1, Placement::kLinear),
          DeviceMoeOptions{.threads = options.threads,
                           .skip_shared_experts = true,
                           .quantize_rows = model_.activations.dtype == ActivationDType::kScheme,
                           .generic_kernels = options.generic_kernels,
                           .batch_invariant = options.batch_invariant}));
    }
    result_.kernels = layers_[0]->kernel_text();
    result_.ceilings = measure_device_ceilings(device_, options.ceilings);
  }

  const DeviceBenchResult& result() const noexcept { return result_; }

  BenchRow run(int64_t num_tokens, BenchRouting routing) {
    const std::vector<BenchBatch> batches = make_batches(
        model_, num_tokens, routing, static_cast<int64_t>(options_.rotate_gb * 1e9), options_.seed);
    // One after the other: a workspace and an output serve all.
    DeviceWorkspace workspace = layers_[0]->make_workspace(num_tokens);
    const size_t values = batches[0].hidden_states.size();
    const DeviceBuffer out(device_, values * sizeof(float));
    std::vector<Call> calls;
    for (const BenchBatch& batch : batches)
      calls.push_back(upload_batch(batch));
    device_->synchronize(nullptr);
    const auto forward = [&](const Call& call) {
      layers_[call.layer]->forward({.num_tokens = num_tokens,
                                    .hidden_states = call.hidden_states.as<float>(),
                                    .topk_ids = call.topk_ids.as<int32_t>(),
                                    .topk_weights = call.topk_weights.as<float>()},
                                   workspace, out.as<float>(), stream_.handle());
    };
    forward(calls[0]);
    std::vector<float> first(values);
    device_->copy_out(first.data(), out.data(), out.size(), stream_.handle());
    device_->synchronize(stream_.handle());

    // One graph of all calls, as engines capture all layers of a step.
    const OwnedGraph graph(device_, stream_.handle(), [&] {
      for (const Call& call : calls)
        forward(call);
    });
    BenchRow row = time(static_cast<int>(calls.size()), [&] { graph.launch(stream_.handle()); });
    row.rel_err = output_error(*model_.layers[batches[0].layer], batches[0], first, 4);
    row.shape = model_.shape;
    row.impl = fmt::format("gantry {} {}", device_->attributes().name, model_.format);
    row.routing = to_string(routing);
    row.tokens = num_tokens;
    add_ceiling(batches, static_cast<double>(expert_bytes(*model_.layers[0]->weights())),
                peak_tflops(), row);
    return row;
  }

  /// The rows of the first batch through cuBLAS, with bf16 weights of one layer.
  BenchRow run_cublas(int64_t num_tokens, BenchRouting routing) {
    const auto weights = model_.layers[0]->weights();
    const MoeLayerSpec& spec = weights->spec;
    const CublasExpertsShape shape{.num_experts = spec.num_experts,
                                   .hidden_size = spec.hidden_size,
                                   .intermediate_size = spec.intermediate_size,
                                   .parts = spec.gated() ? 2 : 1,
                                   .max_rows = num_tokens * spec.routing.num_slots()};
    CublasExperts experts(device_, options_.cublas_library, shape, options_.seed);
    std::vector<BenchBatch> batches = make_batches(model_, num_tokens, routing, 0, options_.seed);
    batches.resize(1);
    std::vector<int64_t> rows(static_cast<size_t>(spec.num_experts), 0);
    for (const int32_t id : batches[0].topk_ids)
      ++rows[static_cast<size_t>(id)];
    experts.set_rows(rows);
    BenchRow row = time(1, [&] { experts.run(stream_.handle()); });
    row.shape = model_.shape;
    row.impl = fmt::format("cublas grouped {} bf16", device_->attributes().name);
    row.routing = to_string(routing);
    row.tokens = num_tokens;
    const double bytes = 2.0 * static_cast<double>(shape.parts + 1) *
                         static_cast<double>(shape.hidden_size * shape.intermediate_size);
    add_ceiling(batches, bytes, result_.ceilings.bf16_tflops(), row);
    return row;
  }

 private:
  Call upload_batch(const BenchBatch& batch) {
    return {batch.layer, upload(device_, batch.hidden_states), upload(device_, batch.topk_ids),
            upload(device_, batch.topk_weights)};
  }

  // Rounds until the time is up, three at least; the time of a call is that of its round over the
  // round's calls.
  BenchRow time(int calls, const std::function<void()>& launch) {
    const OwnedEvent start(device_);
    const OwnedEvent end(device_);
    std::vector<double> ms;
    using Clock = std::chrono::steady_clock;
    const auto until = Clock::now() + std::chrono::duration<double>(options_.seconds);
    for (int round = 0; ms.size() < 3 || Clock::now() < until; ++round) {
      device_->record(start.handle(), stream_.handle());
      launch();
      device_->record(end.handle(), stream_.handle());
      device_->synchronize(stream_.handle());
      if (round == 0) continue;  // warms up
      ms.push_back(device_->elapsed_ms(start.handle(), end.handle()) / calls);
    }
    std::sort(ms.begin(), ms.end());
    const auto at = [&](double share) {
      return ms[static_cast<size_t>(share * static_cast<double>(ms.size() - 1))];
    };
    BenchRow row;
    row.ms_min = ms.front();
    row.ms_median = at(0.5);
    row.ms_p90 = at(0.9);
    return row;
  }

  [[nodiscard]] double peak_tflops() const {
    const bool e4m3 = result_.kernels.find("e4m3 x e4m3") != std::string::npos;
    return e4m3 ? result_.ceilings.wgmma_e4m3_tflops : result_.ceilings.bf16_tflops();
  }

  void add_ceiling(const std::vector<BenchBatch>& batches, double bytes_of_expert, double peak,
                   BenchRow& row) const {
    const auto weights = model_.layers[0]->weights();
    const MoeLayerSpec& spec = weights->spec;
    double experts = 0.0;
    for (const BenchBatch& batch : batches)
      experts += static_cast<double>(batch.touched_experts);
    const double bytes = experts / static_cast<double>(batches.size()) * bytes_of_expert;
    const double flops = static_cast<double>(row.tokens * spec.routing.num_slots()) * 2.0 *
                         (spec.gated() ? 3.0 : 2.0) * static_cast<double>(spec.hidden_size) *
                         static_cast<double>(spec.intermediate_size);
    row.weight_gb_s = bytes / row.ms_median / 1e6;
    row.tflops = flops / row.ms_median / 1e9;
    row.ceiling_ms = std::max(bytes / result_.ceilings.read_gb_s / 1e6, flops / peak / 1e9);
    row.of_ceiling = row.ceiling_ms / row.ms_median;
  }

  const DeviceBenchOptions& options_;
  std::shared_ptr<Device> device_;
  OwnedStream stream_;
  BenchModel model_;
  std::vector<std::unique_ptr<DeviceMoeLayer>> layers_;
  DeviceBenchResult result_;
};

}  // namespace

DeviceBenchResult bench_on_device(const DeviceBenchOptions& options,
                                  const std::shared_ptr<Device>& device,
                                  const std::function<void(const DeviceBenchResult&)>& on_start,
                                  const std::function<void(const BenchRow&)>& on_row) {
  DeviceBench bench(options, device);
  DeviceBenchResult result = bench.result();
  on_start(result);
  for (const BenchRouting routing : options.routing) {
    for (const int64_t tokens : options.tokens) {
      result.rows.push_back(bench.run(tokens, routing));
      on_row(result.rows.back());
      if (!options.cublas) continue;
      result.rows.push_back(bench.run_cublas(tokens, routing));
      on_row(result.rows.back());
    }
  }
  return result;
}

}  // namespace gantry::cli
