#include "runtime/forward_call.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>

#include "kernels/base/check.h"
#include "runtime/rms_norm.h"
#include "runtime/router.h"

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

void max_over_tp(void* exchange, std::span<float> amax) {
  static_cast<TokenExchange*>(exchange)->max_over_tp(amax);
}

}  // namespace

void ForwardCall::run(const MoeInput& input, std::span<float> out) {
  ForwardTimes& times = workspace_.times_;
  const int64_t h = weights_.spec.hidden_size;
  Stopwatch watch;
  route(input);
  times.route_us += watch.lap_us();
  const ExchangedTokens tokens = dispatch(input);
  times.dispatch_us += watch.lap_us();
  // With one rank the partial sum is the result.
  const auto values = static_cast<size_t>(tokens.num_tokens * h);
  const std::span<float> partial =
      exchange_ == nullptr ? out : workspace_.partial_.span().first(values);
  run_experts(input, tokens, partial);
  const std::span<float> own =
      partial.subspan(static_cast<size_t>(tokens.own_begin * h), input.hidden_states.size());
  add_identity_experts(input, own);
  add_shared_experts(input, own);
  times.experts_us += watch.lap_us();
  combine(partial, out);
  times.combine_us += watch.lap_us();
}

void ForwardCall::route(const MoeInput& input) {
  const RoutingSpec& spec = weights_.spec.routing;
  Routing& routing = workspace_.routing_;
  const int64_t num_tokens =
      static_cast<int64_t>(input.hidden_states.size()) / weights_.spec.hidden_size;
  const auto slots = static_cast<size_t>(num_tokens * spec.num_slots());
  const size_t identity = spec.num_zero_experts > 0 ? static_cast<size_t>(num_tokens) : 0;
  if (!input.topk_ids.empty()) {
    routing.topk_ids.assign(input.topk_ids.begin(), input.topk_ids.end());
    routing.topk_weights.assign(input.topk_weights.begin(), input.topk_weights.end());
    routing.identity_weights.assign(identity, 0.0F);
    return;
  }
  if (input.router_logits.empty()) {
    const auto& seen =
        input.router_hidden_states.empty() ? input.hidden_states : input.router_hidden_states;
    routing.logits.resize(static_cast<size_t>(num_tokens * spec.num_experts));
    router_logits(operands_, seen, workspace_.router_input_.span(), routing.logits,
                  options_.threads, workspace_.experts_);
  } else {
    routing.logits.assign(input.router_logits.begin(), input.router_logits.end());
  }
  routing.topk_ids.resize(slots);
  routing.topk_weights.resize(slots);
  routing.identity_weights.resize(identity);
  route_tokens(weights_, input.token_ids, routing, options_.threads, workspace_.topk_);
}

ExchangedTokens ForwardCall::dispatch(const MoeInput& input) {
  const Routing& routing = workspace_.routing_;
  if (exchange_ == nullptr) {
    return {static_cast<int64_t>(input.hidden_states.size()) / weights_.spec.hidden_size, 0,
            input.hidden_states, routing.topk_ids, routing.topk_weights};
  }
  const ExchangedTokens tokens =
      exchange_->dispatch(input.hidden_states, routing.topk_ids, routing.topk_weights);
  const int64_t most = workspace_.max_num_tokens_ * weights_.parallel.dp_size;
  GANTRY_CHECK(tokens.num_tokens <= most, ErrorCode::kInvalidArgument,
               "layer {}: the ranks hold {} tokens, the workspace was made for {}",
               weights_.spec.layer, tokens.num_tokens, most);
  return tokens;
}

void ForwardCall::run_experts(const MoeInput& input, const ExchangedTokens& tokens,
                              std::span<float> sum) {
  const MoeLayerSpec& spec = weights_.spec;
  const int64_t he = spec.expert_hidden_size;
  TokenPermutation& permutation = workspace_.permutation_;
  permute_tokens(tokens.topk_ids, tokens.num_tokens, spec.routing.num_slots(),
                 input.physical_ids ? operands_.physical_to_slot : operands_.logical_to_slot,
                 weights_.num_slots, permutation);
  count_tokens(tokens, input.physical_ids);

  std::span<const float> x = tokens.hidden_states;
  std::span<float> expert_sum = sum;
  const auto latent_values = static_cast<size_t>(tokens.num_tokens * he);
  if (spec.has_latent()) {
    const std::span<float> projected = workspace_.expert_input_.span().first(latent_values);
    linear(x, operands_.latent_in.layout, operands_.latent_in.panels.data(),
           operands_.latent_in.bias, projected, operands_.dense_kernels, options_.threads,
           workspace_.experts_);
    x = projected;
    expert_sum = workspace_.latent_sum_.span().first(latent_values);
  }
  const std::span<const float> none;
  fused_experts({.experts = operands_.routed,
                 .activation = spec.activation,
                 .activations = operands_.routed_activations,
                 .x_quantizer = operands_.x_quantizer,
                 .intermediate_quantizer = operands_.intermediate_quantizer,
                 .amax_exchange = {exchange_ == nullptr ? nullptr : max_over_tp, exchange_},
                 .rows = {.token = permutation.row_token.data(),
                          .choice = permutation.row_choice.data(),
                          .offsets = permutation.expert_offsets,
                          .order = operands_.slot_order},
                 .x = x,
                 .input_weights = spec.router_weight_on_input ? tokens.topk_weights : none,
                 .weights = spec.router_weight_on_input ? none : tokens.topk_weights,
                 .add_w2_bias = weights_.parallel.tp_rank() == 0,
                 .clear = true,
                 .out = expert_sum},
                operands_.routed_kernels, options_.threads, workspace_.experts_);
  if (spec.has_latent()) {
    // The projection is linear, so it may be applied to partial sums; its bias is added once.
    linear(expert_sum, operands_.latent_out.layout, operands_.latent_out.panels.data(),
           weights_.parallel.rank == 0 ? operands_.latent_out.bias : nullptr, sum,
           operands_.dense_kernels, options_.threads, workspace_.experts_);
  }
}

void ForwardCall::add_identity_experts(const MoeInput& input, std::span<float> own) const {
  const std::vector<float>& identity = workspace_.routing_.identity_weights;
  if (identity.empty() || weights_.parallel.tp_rank() != 0 || !weights_.parallel.leads_dp_group()) {
    return;
  }
  const auto h = static_cast<size_t>(weights_.spec.hidden_size);
  for (size_t t = 0; t < identity.size(); ++t) {
    if (identity[t] == 0.0F) continue;
    for (size_t i = t * h; i < (t + 1) * h; ++i)
      own[i] += identity[t] * input.hidden_states[i];
  }
}

void ForwardCall::add_shared_experts(const MoeInput& input, std::span<float> own) {
  if (operands_.shared.num_slots == 0 || options_.skip_shared_experts) return;
  const auto h = static_cast<size_t>(weights_.spec.hidden_size);
  const size_t num_tokens = input.hidden_states.size() / h;
  std::span<const float> scale;
  if (weights_.shared_gate.size() > 0) {
    workspace_.gate_.resize(num_tokens);
    for (size_t t = 0; t < num_tokens; ++t) {
      double dot = 0.0;
      for (size_t i = 0; i < h; ++i) {
        dot += static_cast<double>(input.hidden_states[t * h + i]) * weights_.shared_gate[i];
      }
      workspace_.gate_[t] = static_cast<float>(1.0 / (1.0 + std::exp(-dot)));
    }
    scale = workspace_.gate_;
  }
  const std::array<int32_t, 2> offsets = {0, static_cast<int32_t>(num_tokens)};
  const std::array<int32_t, 1> order = {0};
  fused_experts({.experts = operands_.shared,
                 .activation = weights_.spec.shared.activation,
                 .activations = operands_.routed_activations,
                 // No quantizers: shared experts are plain. kScheme runs them on f32 rows.
                 .rows = {.token = nullptr, .choice = nullptr, .offsets = offsets, .order = order},
                 .x = input.hidden_states,
                 .input_weights = {},
                 .weights = scale,
                 .add_w2_bias = weights_.parallel.tp_rank() == 0,
                 .clear = false,
                 .out = own},
                operands_.shared_kernels, options_.threads, workspace_.experts_);
}

void ForwardCall::combine(std::span<float> partial, std::span<float> out) {
  const MoeLayerSpec& spec = weights_.spec;
  if (exchange_ != nullptr) exchange_->combine(partial, out);
  if (spec.output_scale != 1.0F) {
    for (float& value : out)
      value *= spec.output_scale;
  }
  if (spec.output_norm) rms_norm(weights_.output_norm.span(), spec.norm_epsilon, 1.0, out);
}

void ForwardCall::count_tokens(const ExchangedTokens& tokens, bool physical_ids) {
  if (weights_.parallel.tp_rank() != 0) return;
  for (const int32_t id : tokens.topk_ids) {
    if (id < 0) continue;
    const auto index = static_cast<size_t>(id);
    if (physical_ids) {
      if (operands_.physical_to_slot[index] < 0) continue;
      ++workspace_.tokens_per_expert_[static_cast<size_t>(operands_.physical_to_logical[index])];
    } else if (operands_.logical_to_slot[index] >= 0) {
      ++workspace_.tokens_per_expert_[index];
    }
  }
}

}  // namespace gantry
