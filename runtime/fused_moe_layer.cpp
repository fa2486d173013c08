#include "runtime/fused_moe_layer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "runtime/rms_norm.h"

namespace gantry {
namespace {

class Stopwatch {
 public:
  double lap_us() {
    const auto now = std::chrono::steady_clock::now();
    const double us = std::chrono::duration<double, std::micro>(now - last_).count();
    last_ = now;
    return us;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// A dense projection y = W x (+ b) with W [n, k] in f32.
void project(std::span<const float> x, const Buffer<float>& weight, const Buffer<float>* bias,
             int64_t n, int64_t k, std::span<float> y, IsaSet isas, const Threads& threads) {
  const ExpertWeights operand{.data = reinterpret_cast<const std::byte*>(weight.data()),
                              .slot_stride_bytes = n * k * 4,
                              .num_slots = 1,
                              .n = n,
                              .k = k,
                              .dtype = DType::kF32,
                              .layout = PackedLayout::kRowMajor,
                              .bias = bias != nullptr && bias->size() > 0 ? bias->data() : nullptr,
                              .bias_stride_bytes = n * 4};
  const std::array<int32_t, 2> offsets = {0,
                                          static_cast<int32_t>(x.size() / static_cast<size_t>(k))};
  grouped_gemm(x, operand, offsets, y, isas, threads);
}

Communicator& world_or_self(Communicator* world, std::unique_ptr<Communicator>& self) {
  if (world != nullptr) return *world;
  self = make_self_communicator();
  return *self;
}

template <typename T>
std::span<const T> rows_of(std::span<const T> all, int64_t begin, int64_t count, int64_t width) {
  if (all.empty()) return {};
  return all.subspan(static_cast<size_t>(begin * width), static_cast<size_t>(count * width));
}

}  // namespace

FusedMoeLayer::FusedMoeLayer(MoeLayerWeights weights, ExpertMap experts, FusedMoeOptions options,
                             Communicator* world)
    : weights_(std::move(weights)),
      experts_(std::move(experts)),
      options_(std::move(options)),
      exchange_(weights_.parallel, world_or_self(world, self_), weights_.spec.hidden_size,
                weights_.spec.routing.num_slots()),
      router_(weights_),
      expert_to_slot_(experts_.computed_slots(weights_.parallel.ep_rank())),
      tokens_per_expert_(static_cast<size_t>(weights_.spec.num_experts), 0) {
  const ParallelConfig& parallel = weights_.parallel;
  validate(parallel);
  const int world_size = world == nullptr ? 1 : world->size();
  GANTRY_CHECK(parallel.world_size() == world_size, ErrorCode::kInvalidArgument,
               "layer {}: {} ranks expected by tp {} x ep {}, the communicator has {}",
               weights_.spec.layer, parallel.world_size(), parallel.tp_size, parallel.ep_size,
               world_size);
  GANTRY_CHECK(experts_.num_experts() == weights_.spec.num_experts &&
                   experts_.num_slots(parallel.ep_rank()) == weights_.num_slots,
               ErrorCode::kInvalidArgument, "layer {}: weights were loaded for another expert map",
               weights_.spec.layer);
  GANTRY_CHECK(options_.max_num_tokens > 0, ErrorCode::kInvalidArgument,
               "max_num_tokens: expected at least 1, found {}", options_.max_num_tokens);
  validate(weights_.spec.routing, {.correction_bias = weights_.correction_bias.span(),
                                   .per_expert_scale = weights_.per_expert_scale.span(),
                                   .hash_table = weights_.hash_table.span()});
}

void FusedMoeLayer::forward(const MoeInput& input, std::span<float> out) {
  const MoeLayerSpec& spec = weights_.spec;
  const int64_t h = spec.hidden_size;
  const int64_t k = spec.routing.num_slots();
  GANTRY_CHECK(input.hidden_states.size() % static_cast<size_t>(h) == 0 &&
                   out.size() == input.hidden_states.size(),
               ErrorCode::kInvalidArgument,
               "layer {}: expected hidden states and output of [T, {}], found {} and {} values",
               spec.layer, h, input.hidden_states.size(), out.size());
  const int64_t num_tokens = static_cast<int64_t>(input.hidden_states.size()) / h;
  const auto check_rows = [&](size_t found, int64_t width, std::string_view what) {
    GANTRY_CHECK(found == 0 || found == static_cast<size_t>(num_tokens * width),
                 ErrorCode::kInvalidArgument, "layer {}: {}: expected [{}, {}], found {} values",
                 spec.layer, what, num_tokens, width, found);
  };
  check_rows(input.router_hidden_states.size(), h, "router_hidden_states");
  check_rows(input.router_logits.size(), spec.routing.num_experts, "router_logits");
  check_rows(input.topk_ids.size(), k, "topk_ids");
  check_rows(input.token_ids.size(), 1, "token_ids");
  GANTRY_CHECK(input.topk_ids.size() == input.topk_weights.size(), ErrorCode::kInvalidArgument,
               "layer {}: {} topk_ids but {} topk_weights", spec.layer, input.topk_ids.size(),
               input.topk_weights.size());

  times_ = {};
  // With token groups the ranks may hold different numbers of tokens: one chunk, so that all make
  // the same number of collective calls.
  const int64_t chunk =
      weights_.parallel.dp_size > 1 ? std::max<int64_t>(1, num_tokens) : options_.max_num_tokens;
  int64_t begin = 0;
  do {
    const int64_t count = std::min(chunk, num_tokens - begin);
    const MoeInput part{
        .hidden_states = rows_of(input.hidden_states, begin, count, h),
        .router_hidden_states = rows_of(input.router_hidden_states, begin, count, h),
        .router_logits = rows_of(input.router_logits, begin, count, spec.routing.num_experts),
        .topk_ids = rows_of(input.topk_ids, begin, count, k),
        .topk_weights = rows_of(input.topk_weights, begin, count, k),
        .token_ids = rows_of(input.token_ids, begin, count, 1)};
    forward_chunk(part,
                  out.subspan(static_cast<size_t>(begin * h), static_cast<size_t>(count * h)));
    begin += count;
  } while (begin < num_tokens);
}

void FusedMoeLayer::forward_chunk(const MoeInput& input, std::span<float> out) {
  const int64_t num_tokens =
      static_cast<int64_t>(input.hidden_states.size()) / weights_.spec.hidden_size;
  Stopwatch watch;
  route(input, num_tokens);
  times_.route_us += watch.lap_us();
  const ExchangedTokens tokens =
      exchange_.dispatch(input.hidden_states, routing_.topk_ids, routing_.topk_weights);
  times_.dispatch_us += watch.lap_us();
  run_experts(tokens);
  add_identity_experts(input, tokens.own_begin);
  add_shared_experts(input, tokens.own_begin);
  times_.experts_us += watch.lap_us();
  exchange_.combine(partial_, out);
  if (weights_.spec.output_scale != 1.0F) {
    for (float& value : out)
      value *= weights_.spec.output_scale;
  }
  if (weights_.spec.output_norm) {
    rms_norm(weights_.output_norm.span(), weights_.spec.norm_epsilon, 1.0, out);
  }
  times_.combine_us += watch.lap_us();
}

void FusedMoeLayer::route(const MoeInput& input, int64_t num_tokens) {
  if (!input.topk_ids.empty()) {
    routing_.topk_ids.assign(input.topk_ids.begin(), input.topk_ids.end());
    routing_.topk_weights.assign(input.topk_weights.begin(), input.topk_weights.end());
    routing_.identity_weights.assign(
        weights_.spec.routing.num_zero_experts > 0 ? static_cast<size_t>(num_tokens) : 0, 0.0F);
    return;
  }
  if (input.router_logits.empty()) {
    const auto& seen =
        input.router_hidden_states.empty() ? input.hidden_states : input.router_hidden_states;
    router_.compute_logits(seen, options_.isas, options_.threads, routing_);
  } else {
    routing_.logits.assign(input.router_logits.begin(), input.router_logits.end());
  }
  router_.select(num_tokens, input.token_ids, routing_);
}

void FusedMoeLayer::run_experts(const ExchangedTokens& tokens) {
  const MoeLayerSpec& spec = weights_.spec;
  const int64_t he = spec.expert_hidden_size;
  permute_tokens(tokens.topk_ids, tokens.num_tokens, spec.routing.num_slots(), expert_to_slot_,
                 weights_.num_slots, permutation_);
  count_tokens(tokens);

  std::span<const float> x = tokens.hidden_states;
  if (spec.has_latent()) {
    expert_input_.resize(static_cast<size_t>(tokens.num_tokens * he));
    project(x, weights_.latent_in, &weights_.latent_in_bias, he, spec.hidden_size, expert_input_,
            options_.isas, options_.threads);
    x = expert_input_;
  }
  const auto row_values = static_cast<size_t>(permutation_.num_rows() * he);
  rows_.resize(row_values);
  row_outputs_.resize(row_values);
  const std::span<const float> none;
  gather_rows(permutation_, x, he, spec.router_weight_on_input ? tokens.topk_weights : none, rows_);
  round_activations(options_.activations, rows_);
  run_expert_mlp(weights_.layout, weights_.slots.data(), weights_.num_slots, spec.activation,
                 options_.activations, rows_, permutation_.expert_offsets,
                 weights_.parallel.tp_rank() == 0, options_.isas, options_.threads, mlp_scratch_,
                 row_outputs_);

  std::vector<float>& sum = spec.has_latent() ? latent_sum_ : partial_;
  sum.assign(static_cast<size_t>(tokens.num_tokens * he), 0.0F);
  unpermute_and_reduce(permutation_, row_outputs_, he,
                       spec.router_weight_on_input ? none : tokens.topk_weights, sum);
  if (spec.has_latent()) {
    // The projection is linear, so it may be applied to partial sums; its bias is added once.
    partial_.resize(static_cast<size_t>(tokens.num_tokens * spec.hidden_size));
    const bool adds_bias = weights_.parallel.rank == 0;
    project(latent_sum_, weights_.latent_out, adds_bias ? &weights_.latent_out_bias : nullptr,
            spec.hidden_size, he, partial_, options_.isas, options_.threads);
  }
}

void FusedMoeLayer::add_identity_experts(const MoeInput& input, int64_t own_begin) {
  if (routing_.identity_weights.empty() || weights_.parallel.tp_rank() != 0 ||
      !weights_.parallel.leads_dp_group()) {
    return;
  }
  const int64_t h = weights_.spec.hidden_size;
  float* out = partial_.data() + own_begin * h;
  for (size_t t = 0; t < routing_.identity_weights.size(); ++t) {
    const float weight = routing_.identity_weights[t];
    if (weight == 0.0F) continue;
    const float* x = input.hidden_states.data() + static_cast<int64_t>(t) * h;
    for (int64_t i = 0; i < h; ++i)
      out[static_cast<int64_t>(t) * h + i] += weight * x[i];
  }
}

void FusedMoeLayer::add_shared_experts(const MoeInput& input, int64_t own_begin) {
  if (weights_.shared.size() == 0 || options_.skip_shared_experts) return;
  const int64_t h = weights_.spec.hidden_size;
  const size_t num_values = input.hidden_states.size();
  const int64_t num_tokens = static_cast<int64_t>(num_values) / h;
  shared_rows_.assign(input.hidden_states.begin(), input.hidden_states.end());
  round_activations(options_.activations, shared_rows_);
  shared_output_.resize(num_values);
  const std::array<int32_t, 2> offsets = {0, static_cast<int32_t>(num_tokens)};
  run_expert_mlp(weights_.shared_layout, weights_.shared.data(), 1, weights_.spec.shared.activation,
                 options_.activations, shared_rows_, offsets, weights_.parallel.tp_rank() == 0,
                 options_.isas, options_.threads, mlp_scratch_, shared_output_);
  for (int64_t t = 0; t < num_tokens; ++t) {
    float scale = 1.0F;
    if (weights_.shared_gate.size() > 0) {
      double dot = 0.0;
      for (int64_t i = 0; i < h; ++i) {
        dot += static_cast<double>(input.hidden_states[static_cast<size_t>(t * h + i)]) *
               weights_.shared_gate[static_cast<size_t>(i)];
      }
      scale = static_cast<float>(1.0 / (1.0 + std::exp(-dot)));
    }
    const float* y = shared_output_.data() + t * h;
    float* out = partial_.data() + (own_begin + t) * h;
    for (int64_t i = 0; i < h; ++i)
      out[i] += scale * y[i];
  }
}

void FusedMoeLayer::count_tokens(const ExchangedTokens& tokens) {
  if (weights_.parallel.tp_rank() != 0) return;
  for (const int32_t id : tokens.topk_ids) {
    if (id >= 0 && expert_to_slot_[static_cast<size_t>(id)] >= 0) {
      ++tokens_per_expert_[static_cast<size_t>(id)];
    }
  }
}

}  // namespace gantry
