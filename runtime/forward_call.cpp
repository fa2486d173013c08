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
  [[nodiscard]] double elapsed_us() const {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - last_)
        .count();
  }
  double lap_us() {
    const double us = elapsed_us();
    last_ += std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double, std::micro>(us));
    return us;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

struct Magnitudes {
  TokenExchange* exchange;
  ExchangeScratch* scratch;
};

void max_over_tp(void* context, std::span<float> amax) {
  const auto& magnitudes = *static_cast<const Magnitudes*>(context);
  magnitudes.exchange->max_over_tp(amax, *magnitudes.scratch);
}

}  // namespace

bool ForwardCall::run(const MoeInput& input, int64_t remaining, std::span<float> out) {
  ForwardTimes& times = workspace_.times_;
  Stopwatch watch;
  route(input);
  times.route_us += watch.lap_us();
  const ExchangedTokens tokens = dispatch(input, remaining);
  times.dispatch_us += watch.lap_us();
  permute(input, tokens);
  if (exchange_ == nullptr || options_.no_reduce) {
    run_partial(tokens, /*with_latent_bias=*/weights_.parallel.rank == 0, out);
    if (tokens.group_begin >= 0) {
      if (weights_.parallel.tp_rank() == 0 && weights_.parallel.leads_dp_group()) {
        add_identity_experts(input.hidden_states, workspace_.routing_.identity_weights, out);
      }
      if (runs_shared_experts()) run_shared_experts(input.hidden_states, /*clear=*/false, out);
    }
    times.experts_us += watch.lap_us();
  } else {
    const auto h = static_cast<size_t>(weights_.spec.hidden_size);
    const bool gathers = exchange_->gathers();
    const std::span<float> own =
        gathers ? workspace_.own_.span().first(static_cast<size_t>(tokens.own_tokens) * h) : out;
    const double experts_us =
        exchange_->ordered() ? run_ordered(input, tokens, own) : run_ranked(input, tokens, own);
    if (gathers) exchange_->gather(own, out, workspace_.exchange_);
    times.experts_us += experts_us;
    times.combine_us += watch.lap_us() - experts_us;
  }
  finish(out);
  times.combine_us += watch.lap_us();
  return tokens.more;
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

ExchangedTokens ForwardCall::dispatch(const MoeInput& input, int64_t remaining) {
  const Routing& routing = workspace_.routing_;
  std::span<const int32_t> ids = routing.topk_ids;
  if (!operands_.replicas.empty() && !input.physical_ids) {
    workspace_.physical_ids_.resize(ids.size());
    operands_.replicas.choose(ids, weights_.spec.routing.num_slots(), weights_.parallel.dp_rank(),
                              workspace_.physical_ids_);
    ids = workspace_.physical_ids_;
  }
  if (exchange_ == nullptr || options_.no_reduce) {
    ExchangedTokens tokens;
    tokens.num_tokens =
        static_cast<int64_t>(input.hidden_states.size()) / weights_.spec.hidden_size;
    tokens.hidden_states = input.hidden_states;
    tokens.topk_ids = ids;
    tokens.topk_weights = routing.topk_weights;
    // An engine that dispatches itself gives tokens of any group.
    tokens.group_begin = weights_.parallel.dp_size == 1 ? 0 : -1;
    tokens.more = remaining > 0;
    return tokens;
  }
  const bool physical = uses_physical_ids(input);
  return exchange_->dispatch(
      {.hidden_states = input.hidden_states,
       .topk_ids = ids,
       .topk_weights = routing.topk_weights,
       .id_to_rank = physical ? operands_.physical_to_rank : operands_.logical_to_rank,
       .id_to_logical = physical ? std::span<const int32_t>(operands_.physical_to_logical)
                                 : std::span<const int32_t>(),
       .remaining = remaining},
      workspace_.exchange_);
}

void ForwardCall::permute(const MoeInput& input, const ExchangedTokens& tokens) {
  TokenPermutation& permutation = workspace_.permutation_;
  permute_tokens(tokens.topk_ids, tokens.num_tokens, weights_.spec.routing.num_slots(),
                 uses_physical_ids(input) ? operands_.physical_to_slot : operands_.logical_to_slot,
                 weights_.num_slots, permutation);
  count_tokens(tokens, uses_physical_ids(input));
  for (size_t slot = 0; slot < workspace_.tokens_per_slot_.size(); ++slot) {
    workspace_.tokens_per_slot_[slot] +=
        permutation.expert_offsets[slot + 1] - permutation.expert_offsets[slot];
  }
}

void ForwardCall::run_experts(const ExchangedTokens& tokens, std::span<const float> x,
                              const int32_t* out_row, std::span<float> sum) {
  const MoeLayerSpec& spec = weights_.spec;
  const TokenPermutation& permutation = workspace_.permutation_;
  Magnitudes magnitudes{exchange_, &workspace_.exchange_};
  const std::span<const float> none;
  // Rows that stay apart are weighed by the owner of the token.
  const bool weigh = !spec.router_weight_on_input && out_row == nullptr;
  fused_experts({.experts = operands_.routed,
                 .activation = spec.activation,
                 .activations = operands_.routed_activations,
                 .x_quantizer = operands_.x_quantizer,
                 .up_quantizer = operands_.up_quantizer,
                 .intermediate_quantizer = operands_.intermediate_quantizer,
                 .amax_exchange = {exchange_ == nullptr ? nullptr : max_over_tp, &magnitudes},
                 .rows = {.token = permutation.row_token.data(),
                          .choice = permutation.row_choice.data(),
                          .offsets = permutation.expert_offsets,
                          .order = operands_.slot_order,
                          .out_row = out_row},
                 .x = x,
                 .input_weights = spec.router_weight_on_input ? tokens.topk_weights : none,
                 .weights = weigh ? tokens.topk_weights : none,
                 .add_w2_bias = weights_.parallel.tp_rank() == 0,
                 .clear = true,
                 .out = sum},
                operands_.routed_kernels, options_.threads, workspace_.experts_);
}

// What the experts read: the hidden states, or their latent projection.
std::span<const float> ForwardCall::expert_input(const ExchangedTokens& tokens) {
  if (!weights_.spec.has_latent()) return tokens.hidden_states;
  const std::span<float> projected = workspace_.expert_input_.span().first(
      static_cast<size_t>(tokens.num_tokens * weights_.spec.expert_hidden_size));
  linear(tokens.hidden_states, operands_.latent_in.layout, operands_.latent_in.panels.data(),
         operands_.latent_in.bias, projected, operands_.latent_in.kernels, options_.threads,
         workspace_.experts_);
  return projected;
}

void ForwardCall::project_latent(std::span<const float> sum, bool with_bias, std::span<float> out) {
  linear(sum, operands_.latent_out.layout, operands_.latent_out.panels.data(),
         with_bias ? operands_.latent_out.bias : nullptr, out, operands_.latent_out.kernels,
         options_.threads, workspace_.experts_);
}

// This rank's part of the routed sum of every token, [T', H].
void ForwardCall::run_partial(const ExchangedTokens& tokens, bool with_latent_bias,
                              std::span<float> partial) {
  const std::span<const float> x = expert_input(tokens);
  if (!weights_.spec.has_latent()) return run_experts(tokens, x, nullptr, partial);
  const std::span<float> sum = workspace_.latent_sum_.span().first(x.size());
  run_experts(tokens, x, nullptr, sum);
  // The projection is linear, so it may be applied to partial sums; its bias is added once.
  project_latent(sum, with_latent_bias, partial);
}

double ForwardCall::run_ranked(const MoeInput& input, const ExchangedTokens& tokens,
                               std::span<float> own) {
  const Stopwatch watch;
  const int64_t h = weights_.spec.hidden_size;
  const std::span<float> partial =
      workspace_.partial_.span().first(static_cast<size_t>(tokens.num_tokens * h));
  run_partial(tokens, /*with_latent_bias=*/false, partial);
  if (runs_shared_experts()) {
    const auto begin = static_cast<size_t>(tokens.group_begin * h);
    const auto count = static_cast<size_t>(tokens.group_tokens * h);
    run_shared_experts(tokens.hidden_states.subspan(begin, count), /*clear=*/false,
                       partial.subspan(begin, count));
  }
  const double experts_us = watch.elapsed_us();
  exchange_->reduce(partial, h, own, workspace_.exchange_);
  add_latent_bias(own);
  add_own_identity_experts(input, tokens, own);
  return experts_us;
}

// The sums of a single rank, in its order: experts, latent projection, identity, shared experts.
double ForwardCall::run_ordered(const MoeInput& input, const ExchangedTokens& tokens,
                                std::span<float> own) {
  const Stopwatch watch;
  const MoeLayerSpec& spec = weights_.spec;
  const int64_t he = spec.expert_hidden_size;
  const TokenPermutation& permutation = workspace_.permutation_;
  for (size_t row = 0; row < permutation.row_choice.size(); ++row) {
    workspace_.row_target_[row] =
        tokens.choice_row[static_cast<size_t>(permutation.row_choice[row])];
  }
  const std::span<float> rows =
      workspace_.partial_.span().first(static_cast<size_t>(tokens.num_rows * he));
  run_experts(tokens, expert_input(tokens), workspace_.row_target_.data(), rows);
  std::span<float> shared;
  if (runs_shared_experts()) {
    const auto begin = static_cast<size_t>(tokens.group_begin * spec.hidden_size);
    const auto count = static_cast<size_t>(tokens.group_tokens * spec.hidden_size);
    shared = workspace_.shared_sum_.span().first(count);
    run_shared_experts(tokens.hidden_states.subspan(begin, count), /*clear=*/true, shared);
  }
  const double experts_us = watch.elapsed_us();
  const std::span<float> sum =
      spec.has_latent()
          ? workspace_.latent_sum_.span().first(static_cast<size_t>(tokens.own_tokens * he))
          : own;
  exchange_->reduce_ordered(rows, he, !spec.router_weight_on_input, sum, workspace_.exchange_);
  if (spec.has_latent()) project_latent(sum, /*with_bias=*/true, own);
  add_own_identity_experts(input, tokens, own);
  if (adds_shared_experts(spec, options_)) exchange_->add_shared(shared, own, workspace_.exchange_);
  return experts_us;
}

void ForwardCall::add_latent_bias(std::span<float> own) const {
  const float* bias = operands_.latent_out.bias;
  if (!weights_.spec.has_latent() || bias == nullptr) return;
  const auto h = static_cast<size_t>(weights_.spec.hidden_size);
  for (size_t i = 0; i < own.size(); ++i)
    own[i] += bias[i % h];
}

void ForwardCall::add_identity_experts(std::span<const float> x, std::span<const float> weights,
                                       std::span<float> sum) const {
  const auto h = static_cast<size_t>(weights_.spec.hidden_size);
  for (size_t t = 0; t < weights.size(); ++t) {
    if (weights[t] == 0.0F) continue;
    for (size_t i = t * h; i < (t + 1) * h; ++i)
      sum[i] += weights[t] * x[i];
  }
}

// The owner of a token has its hidden state and its routing.
void ForwardCall::add_own_identity_experts(const MoeInput& input, const ExchangedTokens& tokens,
                                           std::span<float> own) const {
  const std::span<const float> identity = workspace_.routing_.identity_weights;
  if (identity.empty()) return;
  const auto first = static_cast<size_t>(tokens.own_first);
  const auto count = static_cast<size_t>(tokens.own_tokens);
  const auto h = static_cast<size_t>(weights_.spec.hidden_size);
  add_identity_experts(input.hidden_states.subspan(first * h, count * h),
                       identity.subspan(first, count), own);
}

void ForwardCall::run_shared_experts(std::span<const float> x, bool clear, std::span<float> sum) {
  const auto h = static_cast<size_t>(weights_.spec.hidden_size);
  const size_t num_tokens = x.size() / h;
  std::span<const float> scale;
  if (weights_.shared_gate.size() > 0) {
    workspace_.gate_.resize(num_tokens);
    for (size_t t = 0; t < num_tokens; ++t) {
      double dot = 0.0;
      for (size_t i = 0; i < h; ++i)
        dot += static_cast<double>(x[t * h + i]) * weights_.shared_gate[i];
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
                 .x = x,
                 .input_weights = {},
                 .weights = scale,
                 .add_w2_bias = weights_.parallel.tp_rank() == 0,
                 .clear = clear,
                 .out = sum},
                operands_.shared_kernels, options_.threads, workspace_.experts_);
}

void ForwardCall::finish(std::span<float> out) const {
  const MoeLayerSpec& spec = weights_.spec;
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
