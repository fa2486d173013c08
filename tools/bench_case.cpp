#include "tools/bench_case.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "loader/input_scale_job.h"
#include "runtime/moe_model.h"
#include "tools/bench_weights.h"
#include "tools/synth_shapes.h"

namespace gantry::cli {
namespace {

// With one MoE layer.
MoeModelConfig shape_config(std::string_view name) {
  std::vector<SynthShape> shapes = synth_shapes();
  const auto found = std::find_if(shapes.begin(), shapes.end(),
                                  [&](const SynthShape& s) { return s.name == name; });
  std::string known;
  for (const SynthShape& s : shapes)
    known += (known.empty() ? "" : ", ") + std::string(s.name);
  GANTRY_CHECK(found != shapes.end(), ErrorCode::kInvalidArgument,
               "--shape: expected one of {}, found '{}'", known, name);
  resize(found->config, 1, 0);
  MoeModelConfig config = read_moe_config(found->config.dump(), "config.json");
  GANTRY_CHECK(!config.layers.empty(), ErrorCode::kInternal, "shape {} has no MoE layer", name);
  return config;
}

MoeLayerWeights make_weights(const MoeLayerSpec& spec, WeightSource& source,
                             const ExpertMap& experts, const BenchRank& rank) {
  MoeLayerWeights weights;
  weights.spec = spec;
  weights.spec.expert_bias = false;
  weights.parallel = rank.config;
  MoeLayerSpec own = spec;
  own.intermediate_size =
      split_evenly(spec.intermediate_size, rank.config.tp_size, rank.config.tp_rank()).size();
  weights.layout = source.layout(own);
  weights.num_slots = experts.num_slots(rank.config.ep_rank());
  weights.slots = ByteBuffer(static_cast<size_t>(weights.num_slots * weights.layout.stride_bytes));
  for (int64_t e = 0; e < weights.num_slots; ++e) {
    std::byte* slot = weights.slots.data() + e * weights.layout.stride_bytes;
    source.fill(weights.layout.w13_panels, slot + weights.layout.w13.offset);
    source.fill(weights.layout.w2_panels, slot + weights.layout.w2.offset);
  }
  // Only the experts are timed: routing comes from outside, and there is nothing around them.
  weights.spec.shared = {};
  weights.spec.hidden_size = spec.expert_hidden_size;
  weights.spec.routing = RoutingSpec{};
  weights.spec.routing.num_experts = spec.num_experts;
  weights.spec.routing.top_k = spec.routing.top_k;
  return weights;
}

// What a layer adds to the bytes to rotate over.
int64_t counted_bytes(const MoeLayerWeights& weights, const BenchRank& rank) {
  if (rank.config.world_size() == 1) return weights.num_slots * expert_bytes(weights);
  const MoeLayerSpec& spec = weights.spec;
  return int64_t{spec.num_experts} * (spec.gated() ? 3 : 2) * spec.hidden_size *
         spec.intermediate_size * 2;
}

// K different experts by sequential draws without replacement, from running sums of the weights.
class ExpertDraw {
 public:
  ExpertDraw(int num_experts, BenchRouting routing, std::mt19937_64& engine)
      : engine_(engine), weights_(static_cast<size_t>(num_experts), 1.0) {
    if (routing == BenchRouting::kUniform) return;
    std::vector<size_t> order(weights_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), engine_);
    for (size_t rank = 0; rank < order.size(); ++rank)
      weights_[order[rank]] = 1.0 / static_cast<double>(rank + 1);
  }

  void draw(std::span<int32_t> ids) {
    std::vector<double> left = weights_;
    for (int32_t& id : ids) {
      std::discrete_distribution<int32_t> pick(left.begin(), left.end());
      id = pick(engine_);
      left[static_cast<size_t>(id)] = 0.0;
    }
  }

 private:
  std::mt19937_64& engine_;
  std::vector<double> weights_;
};

BenchBatch make_batch(const FusedMoeLayer& layer, int64_t num_tokens, ExpertDraw& draw,
                      std::mt19937_64& engine) {
  const MoeLayerSpec& spec = layer.weights()->spec;
  const int64_t k = spec.routing.num_slots();
  BenchBatch batch;
  std::normal_distribution<float> normal;
  batch.hidden_states.resize(static_cast<size_t>(num_tokens * spec.hidden_size));
  for (float& value : batch.hidden_states)
    value = round_to_bf16(normal(engine));
  batch.topk_ids.resize(static_cast<size_t>(num_tokens * k));
  batch.topk_weights.resize(batch.topk_ids.size());
  for (int64_t t = 0; t < num_tokens; ++t) {
    const auto first = static_cast<size_t>(t * k);
    draw.draw(std::span(batch.topk_ids).subspan(first, static_cast<size_t>(k)));
    float sum = 0.0F;
    for (size_t i = first; i < first + static_cast<size_t>(k); ++i)
      sum += batch.topk_weights[i] = std::exp(normal(engine));
    for (size_t i = first; i < first + static_cast<size_t>(k); ++i)
      batch.topk_weights[i] /= sum;
  }
  const std::set<int32_t> touched(batch.topk_ids.begin(), batch.topk_ids.end());
  batch.touched_experts = static_cast<int64_t>(touched.size());
  return batch;
}

// w * W2 f(W13 x) added to y, in double.
void add_expert(const MoeLayerWeights& weights, int64_t expert, double w, const float* x,
                std::vector<double>& y) {
  const SlotLayout& layout = weights.layout;
  const std::byte* slot = weights.slots.data() + expert * layout.stride_bytes;
  const std::vector<float> w13 = read_w13(layout, slot);
  const std::vector<float> w2 = read_w2(layout, slot);
  const auto h = static_cast<size_t>(layout.hidden_size);
  const auto j = static_cast<size_t>(layout.intermediate_size);
  std::vector<float> sums(static_cast<size_t>(layout.w13_rows()));
  const auto* b13 = reinterpret_cast<const float*>(slot + layout.b13.offset);
  const auto* b2 = reinterpret_cast<const float*>(slot + layout.b2.offset);
  for (size_t row = 0; row < sums.size(); ++row) {
    double sum = layout.bias ? b13[row] : 0.0;
    for (size_t i = 0; i < h; ++i)
      sum += static_cast<double>(w13[row * h + i]) * x[i];
    sums[row] = static_cast<float>(sum);
  }
  std::vector<float> mid(j);
  const auto width = static_cast<int64_t>(j);
  apply_activation(weights.spec.activation, 1, width, sums.data(), width,
                   layout.gated ? sums.data() + j : sums.data(), width, mid.data(), width);
  for (size_t row = 0; row < h; ++row) {
    double sum = layout.bias ? b2[row] : 0.0;
    for (size_t i = 0; i < j; ++i)
      sum += static_cast<double>(w2[row * j + i]) * mid[i];
    y[row] += w * sum;
  }
}

}  // namespace

std::string_view to_string(BenchRouting routing) noexcept {
  return routing == BenchRouting::kUniform ? "uniform" : "zipf";
}

int64_t expert_bytes(const MoeLayerWeights& weights) noexcept {
  return std::min(weights.layout.owned_bytes(), weights.layout.stride_bytes);
}

PlacedModel bench_shape_model(std::string_view shape) { return placed_model(shape_config(shape)); }

BenchModel make_bench_model(std::string_view shape, std::string_view format, int64_t min_bytes,
                            FusedMoeOptions options, const std::string& activations, uint64_t seed,
                            const BenchRank& rank) {
  const BenchWeightFormat& weights_format = find_bench_format(format);
  const MoeModelConfig config = shape_config(shape);
  const MoeLayerSpec& spec = config.layers[0];
  ActivationScheme declared;
  declared.format = weights_format.activations;
  BenchModel model{.shape = std::string(shape),
                   .format = std::string(format),
                   .activations = choose_activations(activations, declared),
                   .layers = {}};
  options.activations = model.activations.dtype;
  WeightSource source(weights_format, seed + static_cast<uint64_t>(rank.config.rank));
  for (int64_t bytes = 0; model.layers.empty() || bytes < min_bytes;) {
    ExpertMap experts = rank.placement.map_of(spec.layer, spec.num_experts, rank.config.ep_size);
    MoeLayerWeights weights = make_weights(spec, source, experts, rank);
    weights.activations = declared;
    bytes += counted_bytes(weights, rank);
    model.layers.push_back(std::make_unique<FusedMoeLayer>(std::move(weights), std::move(experts),
                                                           options, rank.world));
  }
  return model;
}

BenchModel load_bench_model(const std::string& directory, int64_t min_bytes,
                            FusedMoeOptions options, const std::string& activations,
                            const std::vector<FindingKind>& allow, const BenchRank& rank) {
  MoeModel opened(directory, /*names_only=*/false);
  for (const FindingKind kind : allow)
    opened.report().allow(kind);
  GANTRY_CHECK(opened.report().ok(), ErrorCode::kFormat, "{}", summarize(opened.report(), 10));
  const WeightLoader loader(opened.checkpoint(), opened.config(), opened.tensors());
  BenchModel model{.shape = directory,
                   .format = "",
                   .activations = choose_activations(
                       activations, model_activations(opened.config(), opened.tensors())),
                   .layers = {}};
  options.activations = model.activations.dtype;
  LoadOptions load;
  load.threads = options.threads;
  load.gpu = rank.gpu;
  LoadStats stats;
  int64_t bytes = 0;
  for (const MoeLayerSpec& spec : opened.config().layers) {
    if (!model.layers.empty() && bytes >= min_bytes) break;
    ExpertMap experts = rank.placement.map_of(spec.layer, spec.num_experts, rank.config.ep_size);
    MoeLayerWeights weights =
        loader.load_layer(spec.layer, rank.config, experts, load, opened.report(), stats);
    GANTRY_CHECK(opened.report().ok(), ErrorCode::kFormat, "{}", summarize(opened.report(), 10));
    bytes += counted_bytes(weights, rank);
    model.format = to_string(weights.layout.w13_panels);
    model.layers.push_back(std::make_unique<FusedMoeLayer>(std::move(weights), std::move(experts),
                                                           options, rank.world));
  }
  GANTRY_CHECK(!model.layers.empty(), ErrorCode::kInvalidArgument, "{}: no MoE layer", directory);
  return model;
}

std::vector<BenchBatch> make_batches(const BenchModel& model, int64_t num_tokens,
                                     BenchRouting routing, int64_t min_bytes, uint64_t seed) {
  constexpr size_t kMost = 512;
  std::mt19937_64 engine(seed + static_cast<uint64_t>(num_tokens));
  std::vector<ExpertDraw> draws;
  int64_t all = 0;
  for (const auto& layer : model.layers) {
    const auto weights = layer->weights();
    draws.emplace_back(weights->spec.num_experts, routing, engine);
    all += weights->num_slots;
  }
  std::set<std::pair<size_t, int32_t>> touched;
  std::vector<BenchBatch> batches;
  int64_t bytes = 0;
  while (
      batches.size() < std::max<size_t>(2, model.layers.size()) ||
      (bytes < min_bytes && static_cast<int64_t>(touched.size()) < all && batches.size() < kMost)) {
    const size_t layer = batches.size() % model.layers.size();
    BenchBatch batch = make_batch(*model.layers[layer], num_tokens, draws[layer], engine);
    batch.layer = layer;
    const int64_t one = expert_bytes(*model.layers[layer]->weights());
    for (const int32_t id : batch.topk_ids)
      bytes += touched.insert({layer, id}).second ? one : 0;
    batches.push_back(std::move(batch));
  }
  return batches;
}

double output_error(const FusedMoeLayer& layer, const BenchBatch& batch,
                    const std::vector<float>& out, int64_t rows) {
  const auto weights = layer.weights();
  const auto h = static_cast<size_t>(weights->spec.hidden_size);
  const auto k = static_cast<size_t>(weights->spec.routing.num_slots());
  const size_t count = std::min(static_cast<size_t>(rows), batch.hidden_states.size() / h);
  double worst = 0.0;
  double largest = 1e-300;
  for (size_t t = 0; t < count; ++t) {
    std::vector<double> y(h, 0.0);
    for (size_t i = t * k; i < (t + 1) * k; ++i) {
      add_expert(*weights, batch.topk_ids[i], batch.topk_weights[i],
                 batch.hidden_states.data() + t * h, y);
    }
    for (size_t i = 0; i < h; ++i) {
      // NaN in the output must not pass for a small error.
      const double off = std::fabs(out[t * h + i] - y[i]);
      worst = std::isnan(off) ? INFINITY : std::max(worst, off);
      largest = std::max(largest, std::fabs(y[i]));
    }
  }
  return worst / largest;
}

}  // namespace gantry::cli
