// The forward of one rank of several: what it computes of whose tokens, and how sums come together.

#include "runtime/device_forward.h"

namespace gantry {

// Sums of ranks are made before what every rank can do for itself: identity experts, scale, norm.
void DeviceForward::run_on_ranks(const DeviceMoeInput& input, bool exact, float* out) {
  const MoeLayerSpec& spec = weights_.spec;
  num_tokens_ = input.num_tokens;
  if (num_tokens_ > 0) route(input);
  const DispatchedTokens tokens =
      exchange_->dispatch({input.hidden_states, topk_ids_, topk_weights_, &id_map(input)},
                          input.num_tokens, input.group_tokens, exact, scratch_, stream_);
  after_kernel_ = false;  // the transport
  if (!tokens.any) return;
  DeviceMoeInput computed = input;
  computed.num_tokens = tokens.num_tokens;
  computed.hidden_states = tokens.hidden_states;
  if (exchange_->ordered()) return run_ordered(input, computed, tokens, out);
  topk_ids_ = tokens.topk_ids;
  topk_weights_ = tokens.topk_weights;
  float* partial = exchange_->sums_in_place() ? out : scratch_.partial;
  if (tokens.num_tokens > 0) run_partial(computed, tokens, partial);
  // With all_to_all no rank has every token, so the owner adds what is added once.
  const bool owner_adds = exchange_->by_lists() && weights_.latent_out_bias.size() > 0;
  exchange_->reduce(partial, tokens, owner_adds ? weights_.latent_out_bias.as<float>() : nullptr,
                    scratch_, out, stream_);
  after_kernel_ = false;
  num_tokens_ = input.num_tokens;
  if (num_tokens_ == 0) return;
  if (identity_ != nullptr || spec.output_scale != 1.0F) {
    kernels_.combine({.base = out,
                      .identity = identity_,
                      .x = input.hidden_states,
                      .scale = spec.output_scale,
                      .num_tokens = num_tokens_,
                      .top_k = spec.routing.num_slots(),
                      .n = spec.hidden_size,
                      .out = out},
                     attributes_, next());
  }
  normalize(out);
}

void DeviceForward::run_ordered(const DeviceMoeInput& input, const DeviceMoeInput& computed,
                                const DispatchedTokens& tokens, float* out) {
  const MoeLayerSpec& spec = weights_.spec;
  const Slice own = exchange_->own_tokens();
  const int64_t k = spec.routing.num_slots();
  const int32_t* const ids = topk_ids_;
  const float* const own_weights = topk_weights_;
  topk_ids_ = tokens.topk_ids;
  topk_weights_ = tokens.topk_weights;
  if (tokens.num_tokens > 0) {
    num_tokens_ = tokens.num_tokens;
    plan(computed);
    run_routed(computed);
  }
  const ReturnedChoices returned =
      exchange_->return_choices(scratch_.y, scratch_.choice_row, spec.expert_hidden_size, tokens,
                                id_map(input), scratch_, stream_);
  after_kernel_ = false;
  const float* shared = nullptr;
  if (spec.shared.intermediate_size > 0 && !options_.skip_shared_experts) {
    num_tokens_ = input.num_tokens;
    if (num_tokens_ > 0) run_shared(input);
    shared = exchange_->return_shared(scratch_.shared_y, scratch_, stream_);
    after_kernel_ = false;
  }
  num_tokens_ = own.size();
  if (num_tokens_ > 0) {
    const float* x = input.hidden_states + own.begin * spec.hidden_size;
    topk_ids_ = ids + own.begin * k;
    topk_weights_ = own_weights + own.begin * k;
    CombineRows sums = routed_sums(input, spec.hidden_size, scratch_.own_sum);
    sums.y = returned.y;
    sums.choice_row = returned.choice_row;
    if (spec.has_latent()) {
      project_latent(sums, weights_.latent_out_bias);
      sums.base = base_;
      sums.y = nullptr;
    }
    if (identity_ != nullptr) sums.identity = identity_ + own.begin;
    sums.x = x;
    sums.shared = shared;
    if (shared != nullptr && weights_.shared_gate.size() > 0) {
      linear(x, weights_.shared_gate, {}, scratch_.gate, 1, spec.hidden_size,
             LinearEpilogue::kSigmoid);
      sums.gate = scratch_.gate;
    }
    sums.scale = spec.output_scale;
    kernels_.combine(sums, attributes_, next());
  }
  exchange_->gather_group(scratch_.own_sum, out, stream_);
  after_kernel_ = false;
  num_tokens_ = input.num_tokens;
  if (num_tokens_ > 0) normalize(out);
}

void DeviceForward::run_partial(const DeviceMoeInput& computed, const DispatchedTokens& tokens,
                                float* partial) {
  const MoeLayerSpec& spec = weights_.spec;
  num_tokens_ = computed.num_tokens;
  plan(computed);
  run_experts(computed);
  CombineRows sums = routed_sums(computed, spec.hidden_size, partial);
  sums.base = base_;
  if (spec.has_latent()) sums.y = nullptr;
  kernels_.combine(sums, attributes_, next());
  if (!runs_shared() || tokens.group_tokens == 0) return;
  const int64_t begin = tokens.group_begin * spec.hidden_size;
  DeviceMoeInput group = computed;
  group.num_tokens = num_tokens_ = tokens.group_tokens;
  group.hidden_states += begin;
  run_shared(group);
  kernels_.combine({.base = partial + begin,
                    .shared = scratch_.shared_y,
                    .gate = weights_.shared_gate.size() > 0 ? scratch_.gate : nullptr,
                    .scale = 1.0F,
                    .num_tokens = num_tokens_,
                    .top_k = spec.routing.num_slots(),
                    .n = spec.hidden_size,
                    .out = partial + begin},
                   attributes_, next());
}

}  // namespace gantry
