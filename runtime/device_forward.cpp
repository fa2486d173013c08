#include "runtime/device_forward.h"

#include <cmath>

namespace gantry {
namespace {

template <typename T>
const T* pointer(const DeviceBuffer& buffer) {
  return buffer.size() > 0 ? buffer.as<T>() : nullptr;
}

}  // namespace

DeviceRouting device_routing(const RoutingSpec& spec) {
  return {.method = spec.method,
          .scoring = spec.scoring,
          .group_score = spec.group_score,
          .select_on_logits = spec.select_on_logits,
          .renormalize = spec.renormalize,
          .num_experts = spec.num_experts,
          .top_k = spec.top_k,
          .num_groups = spec.num_groups,
          .topk_group = spec.topk_group,
          .num_zero_experts = spec.num_zero_experts,
          .num_fused_shared_experts = spec.num_fused_shared_experts,
          .masked_score = spec.masked_score,
          .renorm_epsilon = spec.renorm_epsilon,
          .renorm_min = spec.renorm_min,
          .scaling = spec.scaling,
          .jitter_epsilon = spec.jitter_epsilon,
          .shared_weight = spec.shared_weight};
}

DeviceForward::DeviceForward(const DeviceWeights& weights, const DeviceExperts& experts,
                             const DeviceMoeOptions& options, const DeviceKernelPlan& kernel_plan,
                             DeviceExchange* exchange, DeviceScratch& scratch, StreamHandle stream)
    : weights_(weights),
      experts_(experts),
      options_(options),
      kernel_plan_(kernel_plan),
      exchange_(exchange),
      scratch_(scratch),
      stream_(stream),
      attributes_(weights.device->attributes()),
      kernels_(weights.device->kernels()) {}

void DeviceForward::run(const DeviceMoeInput& input, bool exact, float* out) {
  if (exchange_ != nullptr) return run_on_ranks(input, exact, out);
  num_tokens_ = input.num_tokens;
  if (num_tokens_ == 0) return;
  if (scratch_.side != nullptr) fork_shared(input);
  route(input);
  plan(input);
  run_experts(input);
  if (scratch_.side != nullptr) {
    join_shared();
  } else {
    run_shared(input);
  }
  combine(input, out);
}

CombineRows DeviceForward::routed_sums(const DeviceMoeInput& input, int64_t n, float* out) const {
  const MoeLayerSpec& spec = weights_.spec;
  return {.y = scratch_.y,
          .choice_row = scratch_.choice_row,
          .topk_ids = topk_ids_,
          .id_rank = id_map(input).rank.as<int32_t>(),
          .weights = spec.router_weight_on_input ? nullptr : topk_weights_,
          .scale = 1.0F,
          .num_tokens = num_tokens_,
          .top_k = spec.routing.num_slots(),
          .n = n,
          .out = out};
}

StreamPlace DeviceForward::next() {
  const StreamPlace place(stream_, after_kernel_);
  after_kernel_ = true;
  return place;
}

void DeviceForward::fork_shared(const DeviceMoeInput& input) {
  const StreamHandle own = stream_;
  Device& device = *weights_.device;
  device.record(scratch_.fork->handle(), own);
  device.wait_for(scratch_.fork->handle(), scratch_.side->handle());
  stream_ = scratch_.side->handle();
  run_shared(input);
  device.record(scratch_.join->handle(), stream_);
  stream_ = own;
  after_kernel_ = false;  // the fork
}

void DeviceForward::join_shared() {
  weights_.device->wait_for(scratch_.join->handle(), stream_);
  after_kernel_ = false;
}

void DeviceForward::linear(const float* x, const DeviceBuffer& w, const DeviceBuffer& bias,
                           float* y, int64_t n, int64_t k, LinearEpilogue epilogue, float softcap) {
  kernels_.linear({.x = x,
                   .w = w.as<float>(),
                   .bias = pointer<float>(bias),
                   .y = y,
                   .num_tokens = num_tokens_,
                   .n = n,
                   .k = k,
                   .epilogue = epilogue,
                   .softcap = softcap},
                  attributes_, next());
}

void DeviceForward::route(const DeviceMoeInput& input) {
  const MoeLayerSpec& spec = weights_.spec;
  const int64_t h = spec.hidden_size;
  if (input.topk_ids != nullptr) {  // of experts that were chosen elsewhere nobody is the identity
    topk_ids_ = input.topk_ids;
    topk_weights_ = input.topk_weights;
    return;
  }
  const float* logits = input.router_logits;
  if (logits == nullptr) {
    const float* seen =
        input.router_hidden_states != nullptr ? input.router_hidden_states : input.hidden_states;
    if (spec.router_input_norm) {  // Gemma 4: x / rms(x) * scale / sqrt(H)
      kernels_.rms_norm({.x = seen,
                         .weight = weights_.router_scale.as<float>(),
                         .y = scratch_.router_input,
                         .num_tokens = num_tokens_,
                         .k = h,
                         .epsilon = spec.norm_epsilon,
                         .factor = 1.0F / std::sqrt(static_cast<float>(h))},
                        attributes_, next());
      seen = scratch_.router_input;
    }
    const bool capped = spec.router_logit_softcap > 0.0F;
    linear(seen, weights_.router, weights_.router_bias, scratch_.logits, spec.routing.num_experts,
           h, capped ? LinearEpilogue::kSoftcap : LinearEpilogue::kNone, spec.router_logit_softcap);
    logits = scratch_.logits;
  }
  kernels_.route({.spec = device_routing(spec.routing),
                  .logits = logits,
                  .token_ids = input.token_ids,
                  .correction_bias = pointer<float>(weights_.correction_bias),
                  .per_expert_scale = pointer<float>(weights_.per_expert_scale),
                  .hash_table = pointer<int32_t>(weights_.hash_table),
                  .vocab = weights_.vocab,
                  .topk_ids = scratch_.topk_ids,
                  .topk_weights = scratch_.topk_weights,
                  .identity_weights = scratch_.identity,
                  .num_tokens = num_tokens_},
                 attributes_, next());
  topk_ids_ = scratch_.topk_ids;
  topk_weights_ = scratch_.topk_weights;
  if (spec.routing.num_zero_experts > 0) identity_ = scratch_.identity;
}

void DeviceForward::plan(const DeviceMoeInput& input) {
  const DeviceExperts::IdMap& ids = id_map(input);
  const int64_t choices = num_tokens_ * weights_.spec.routing.num_slots();
  gemm_ =
      options_.batch_invariant ? 2 : choose_gemm(choices, experts_.num_slots, kernel_plan_.prefill);
  plan_ = {.topk_ids = topk_ids_,
           .expert_to_slot = ids.slot.as<int32_t>(),
           .num_choices = choices,
           .num_ids = ids.num_ids,
           .num_slots = static_cast<int32_t>(experts_.num_slots),
           .tile_rows = static_cast<int32_t>(8 * kGemmColumns[static_cast<size_t>(gemm_)]),
           .chunk_rows = scratch_.chunk_rows,
           .choice_row = scratch_.choice_row,
           .row_choice = scratch_.row_choice,
           .tiles = scratch_.tiles,
           .totals = scratch_.totals};
  scratch_.last_choices = input.physical_ids ? 0 : choices;
  scratch_.last_ids = topk_ids_;
  if (PlanBatch::takes(plan_)) {
    kernels_.plan_batch({plan_}, attributes_, next());
    return;
  }
  kernels_.count_choices({plan_}, attributes_, next());
  kernels_.scan_counts({plan_}, attributes_, next());
  kernels_.place_choices({plan_}, attributes_, next());
}

void DeviceForward::run_experts(const DeviceMoeInput& input) {
  const MoeLayerSpec& spec = weights_.spec;
  run_routed(input);
  if (!spec.has_latent()) return;
  // The projection is linear, so it may be applied to partial sums; its bias is added once.
  static const DeviceBuffer kNone;
  const bool adds_bias =
      weights_.parallel.rank == 0 && (exchange_ == nullptr || !exchange_->by_lists());
  project_latent(routed_sums(input, spec.expert_hidden_size, scratch_.latent_sum),
                 adds_bias ? weights_.latent_out_bias : kNone);
}

void DeviceForward::project_latent(const CombineRows& sums, const DeviceBuffer& bias) {
  const MoeLayerSpec& spec = weights_.spec;
  CombineRows narrow = sums;
  narrow.n = spec.expert_hidden_size;
  narrow.out = scratch_.latent_sum;
  kernels_.combine(narrow, attributes_, next());
  linear(scratch_.latent_sum, weights_.latent_out, bias, scratch_.base, spec.hidden_size,
         spec.expert_hidden_size);
  base_ = scratch_.base;
}

void DeviceForward::run_routed(const DeviceMoeInput& input) {
  const MoeLayerSpec& spec = weights_.spec;
  const float* x = input.hidden_states;
  if (spec.has_latent()) {
    linear(x, weights_.latent_in, weights_.latent_in_bias, scratch_.expert_input,
           spec.expert_hidden_size, spec.hidden_size);
    x = scratch_.expert_input;
  }
  const ExpertGemm common{
      .slots = experts_.slots.data(),
      .slot_stride = weights_.layout.stride_bytes,
      .tiles = scratch_.tiles,
      .totals = scratch_.totals,
      .max_tiles = RowPlan::max_tiles(plan_.num_choices, plan_.num_slots, plan_.tile_rows),
      .activation = spec.activation};
  if (kernel_plan_.rows.quantizes()) {
    run_routed_codes(common, x);
  } else {
    run_routed_rows16(common, x);
  }
}

void DeviceForward::run_routed_rows16(const ExpertGemm& common, const float* x) {
  const MoeLayerSpec& spec = weights_.spec;
  const DeviceMatrix& w13 = weights_.layout.w13;
  const bool f16 = w13.element == DeviceElement::kF16;
  kernels_.gather({.x = x,
                   .row_choice = scratch_.row_choice,
                   .totals = scratch_.totals,
                   .scale = spec.router_weight_on_input ? topk_weights_ : nullptr,
                   .num_tokens = num_tokens_,
                   .top_k = spec.routing.num_slots(),
                   .k = w13.k,
                   .padded_k = w13.padded_k,
                   .max_rows = RowPlan::max_rows(plan_.num_choices, plan_.num_slots),
                   .f16 = f16,
                   .rows = scratch_.rows},
                  attributes_, next());
  run_gemms(common, weights_.layout, scratch_.rows, scratch_.intermediate, scratch_.y, gemm_);
}

// What is between the GEMMs is rounded to bf16 and then quantized, as vLLM does.
void DeviceForward::run_routed_codes(const ExpertGemm& common, const float* x) {
  const DeviceSlotLayout& layout = weights_.layout;
  QuantizeExpertRows quantize{
      .x = x,
      .choice_scale = weights_.spec.router_weight_on_input ? topk_weights_ : nullptr,
      .top_k = weights_.spec.routing.num_slots(),
      .row_choice = scratch_.row_choice,
      .totals = scratch_.totals,
      .max_rows = RowPlan::max_rows(plan_.num_choices, plan_.num_slots),
      .kind = kernel_plan_.rows.kind,
      .powers_of_two = kernel_plan_.rows.power_of_two_scales,
      .static_scales = pointer<float>(weights_.input_scales),
      .topk_ids = plan_.topk_ids,
      .expert_to_slot = plan_.expert_to_slot,
      .scales = scratch_.row_scales};
  ExpertGemm w13 =
      quantize_rows(common, quantize, layout.w13, layout.b13_offset, scratch_.rows8, scratch_.rows);
  w13.activated = true;
  w13.rows = scratch_.intermediate;
  gemm_of_codes(w13)(w13, attributes_, next());

  quantize.x = nullptr;
  quantize.rows = scratch_.intermediate;
  if (quantize.static_scales != nullptr) quantize.static_scales += experts_.num_slots;
  quantize.scales = scratch_.intermediate_scales;
  ExpertGemm w2 = quantize_rows(common, quantize, layout.w2, layout.b2_offset,
                                reinterpret_cast<uint8_t*>(scratch_.intermediate_codes),
                                scratch_.intermediate_codes);
  w2.matrix_offset = layout.w2_offset;
  w2.y = scratch_.y;
  gemm_of_codes(w2)(w2, attributes_, next());
}

ExpertGemm DeviceForward::quantize_rows(const ExpertGemm& common, QuantizeExpertRows& quantize,
                                        const DeviceMatrix& matrix, int64_t bias_offset,
                                        uint8_t* codes8, uint16_t* codes16) {
  const bool e4m3 = kernel_plan_.rows8 && gemm_ == kWgmmaGemm;
  quantize.k = matrix.k;
  quantize.padded_k = matrix.padded_k;
  quantize.codes = e4m3 ? codes8 : nullptr;
  quantize.codes16 = e4m3 ? nullptr : codes16;
  kernels_.quantize(quantize, attributes_, next());
  ExpertGemm gemm = common;
  gemm.matrix = matrix;
  gemm.bias_offset = bias_offset;
  gemm.x8 = quantize.codes;
  gemm.x = quantize.codes16;
  gemm.x_scales = quantize.scales;
  gemm.x_groups = quantize.num_groups();
  gemm.x_scale_stride = quantize.max_rows;
  return gemm;
}

KernelLaunch<ExpertGemm> DeviceForward::gemm_of_codes(const ExpertGemm& gemm) const {
  const auto columns = static_cast<size_t>(gemm_);
  if (gemm.x8 != nullptr) return kernels_.gemm_rows8;
  if (gemm.x_groups > 1) return kernels_.gemm_row_groups[columns];
  return kernels_.gemm[static_cast<size_t>(gemm.matrix.element)][columns];
}

void DeviceForward::run_gemms(const ExpertGemm& common, const DeviceSlotLayout& layout,
                              const uint16_t* rows, uint16_t* intermediate, float* y,
                              int columns_index) {
  const auto columns = static_cast<size_t>(columns_index);
  ExpertGemm first = common;
  first.matrix_offset = 0;
  first.bias_offset = layout.b13_offset;
  first.matrix = layout.w13;
  first.x = rows;
  first.activated = true;
  first.f16 = layout.w2.element == DeviceElement::kF16;
  first.rows = intermediate;
  kernels_.gemm[static_cast<size_t>(layout.w13.element)][columns](first, attributes_, next());
  ExpertGemm second = common;
  second.matrix_offset = layout.w2_offset;
  second.bias_offset = layout.b2_offset;
  second.matrix = layout.w2;
  second.x = intermediate;
  second.y = y;
  kernels_.gemm[static_cast<size_t>(layout.w2.element)][columns](second, attributes_, next());
}

void DeviceForward::run_shared(const DeviceMoeInput& input) {
  if (!runs_shared()) return;
  const DeviceMatrix& w13 = weights_.shared_layout.w13;
  kernels_.gather({.x = input.hidden_states,
                   .num_tokens = num_tokens_,
                   .top_k = 1,
                   .k = w13.k,
                   .padded_k = w13.padded_k,
                   .max_rows = align_to(num_tokens_, kTokenTile),
                   .f16 = w13.element == DeviceElement::kF16,
                   .rows = scratch_.shared_rows},
                  attributes_, next());
  const int columns =
      options_.batch_invariant ? 2 : choose_gemm(num_tokens_, 1, kernel_plan_.shared);
  const ExpertGemm common{
      .slots = weights_.shared.data(),
      .slot_stride = weights_.shared_layout.stride_bytes,
      .dense_rows = num_tokens_,
      .max_tiles = ceil_div(num_tokens_, int64_t{8} * kGemmColumns[static_cast<size_t>(columns)]),
      .activation = weights_.spec.shared.activation};
  run_gemms(common, weights_.shared_layout, scratch_.shared_rows, scratch_.shared_intermediate,
            scratch_.shared_y, columns);
  if (weights_.shared_gate.size() > 0) {
    linear(input.hidden_states, weights_.shared_gate, {}, scratch_.gate, 1,
           weights_.spec.hidden_size, LinearEpilogue::kSigmoid);
  }
}

void DeviceForward::combine(const DeviceMoeInput& input, float* out) {
  const MoeLayerSpec& spec = weights_.spec;
  const bool has_shared = runs_shared();
  const bool has_gate = has_shared && weights_.shared_gate.size() > 0;
  CombineRows sums = routed_sums(input, spec.hidden_size, out);
  sums.base = base_;
  if (spec.has_latent()) sums.y = nullptr;
  sums.identity = identity_;
  sums.x = input.hidden_states;
  if (has_shared) sums.shared = scratch_.shared_y;
  if (has_gate) sums.gate = scratch_.gate;
  sums.scale = spec.output_scale;
  kernels_.combine(sums, attributes_, next());
  normalize(out);
}

void DeviceForward::normalize(float* out) {
  const MoeLayerSpec& spec = weights_.spec;
  if (!spec.output_norm) return;
  kernels_.rms_norm({.x = out,
                     .weight = weights_.output_norm.as<float>(),
                     .y = out,
                     .num_tokens = num_tokens_,
                     .k = spec.hidden_size,
                     .epsilon = spec.norm_epsilon,
                     .factor = 1.0F},
                    attributes_, next());
}

}  // namespace gantry
