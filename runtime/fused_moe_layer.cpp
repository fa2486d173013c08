#include "runtime/fused_moe_layer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "runtime/forward_call.h"
#include "runtime/input_check.h"
#include "runtime/router.h"

namespace gantry {
namespace {

template <typename T>
std::span<const T> rows_of(std::span<const T> all, int64_t begin, int64_t count, int64_t width) {
  if (all.empty()) return {};
  return all.subspan(static_cast<size_t>(begin * width), static_cast<size_t>(count * width));
}

void check_belongs(const MoeLayerWeights& weights, const ExpertMap& experts) {
  GANTRY_CHECK(experts.num_experts() == weights.spec.num_experts &&
                   experts.num_slots(weights.parallel.ep_rank()) == weights.num_slots,
               ErrorCode::kInvalidArgument, "layer {}: weights were loaded for another expert map",
               weights.spec.layer);
  validate(weights.spec.routing, routing_tensors(weights));
}

void check_exchange(const MoeLayerSpec& spec, const ParallelConfig& parallel,
                    const FusedMoeOptions& options) {
  if (parallel.world_size() == 1) return;
  const std::string infeasible = infeasible_reduction(options.exchange, options.batch_invariant);
  GANTRY_CHECK(infeasible.empty(), ErrorCode::kUnsupported, "layer {}: reduce 'native': {}",
               spec.layer, infeasible);
  if (!options.no_reduce) return;
  const auto check = [&](bool possible, std::string_view why) {
    GANTRY_CHECK(possible, ErrorCode::kUnsupported, "layer {}: no_reduce: {}", spec.layer, why);
  };
  check(options.exchange.reduce == ReduceOrder::kRank, "reduce 'native' has nothing to add");
  check(options.exchange.combine == CombineOrder::kRank,
        "combine 'ordered' adds at the owner of a token, but nothing is to be added");
  check(options.exchange.kind != ExchangeKind::kAllToAll,
        "exchange 'all_to_all' sends tokens, but nothing is to be sent");
  check(!parallel.sequence_parallel,
        "with sequence_parallel the ranks of a token group have to exchange their parts");
  check(!spec.output_norm, "this layer's output norm needs the whole sum");
  check(parallel.dp_size == 1 || !adds_shared_experts(spec, options),
        "with dp_size > 1 a rank may be given tokens of other groups, and would add shared experts "
        "to those, too: set skip_shared_experts");
  check(parallel.dp_size == 1 || spec.routing.num_zero_experts == 0,
        "with dp_size > 1 identity experts have no owner");
}

}  // namespace

FusedMoeLayer::FusedMoeLayer(MoeLayerWeights weights, ExpertMap experts, FusedMoeOptions options,
                             Communicator* world)
    : options_(std::move(options)) {
  const ParallelConfig& parallel = weights.parallel;
  validate(parallel);
  const int world_size = world == nullptr ? 1 : world->size();
  GANTRY_CHECK(parallel.world_size() == world_size, ErrorCode::kInvalidArgument,
               "layer {}: {} ranks expected by tp {} x ep {}, the communicator has {}",
               weights.spec.layer, parallel.world_size(), parallel.tp_size, parallel.ep_size,
               world_size);
  check_belongs(weights, experts);
  check_exchange(weights.spec, parallel, options_);
  if (world_size > 1) {
    const MoeLayerSpec& spec = weights.spec;
    const bool ordered = options_.exchange.combine == CombineOrder::kOrdered;
    const TokenExchange::Shape shape{
        .hidden_size = spec.hidden_size,
        .top_k = spec.routing.num_slots(),
        .row_width = ordered ? spec.expert_hidden_size : spec.hidden_size,
        .shared_rows = adds_shared_experts(spec, options_),
        .layer = spec.layer};
    exchange_ = std::make_unique<TokenExchange>(parallel, *world, shape, options_.exchange);
  }
  operands_ =
      std::make_shared<const LayerOperands>(std::move(weights), std::move(experts), options_);
}

FusedMoeLayer::~FusedMoeLayer() = default;

std::shared_ptr<const LayerOperands> FusedMoeLayer::operands() const {
  const std::scoped_lock lock(mutex_);
  return operands_;
}

std::shared_ptr<const MoeLayerWeights> FusedMoeLayer::weights() const {
  auto held = operands();
  const MoeLayerWeights* weights = &held->weights;
  return {std::move(held), weights};
}

ExpertMap FusedMoeLayer::experts() const { return operands()->experts; }

std::string FusedMoeLayer::kernel_name() const {
  const auto held = operands();
  const std::string w13 = to_string(held->routed_kernels.w13);
  const std::string w2 = to_string(held->routed_kernels.w2);
  return w13 == w2 ? w13 : fmt::format("w13 {}, w2 {}", w13, w2);
}

ActivationDType FusedMoeLayer::row_type() const { return operands()->routed_kernels.w13.rows; }

void FusedMoeLayer::replace_weights(MoeLayerWeights weights) {
  const auto old = operands();
  const MoeLayerWeights& before = old->weights;
  GANTRY_CHECK(
      weights.layout == before.layout && weights.activations == before.activations &&
          weights.num_slots == before.num_slots && weights.shared.size() == before.shared.size() &&
          weights.spec.hidden_size == before.spec.hidden_size &&
          weights.spec.num_experts == before.spec.num_experts &&
          weights.spec.routing.num_experts == before.spec.routing.num_experts &&
          weights.spec.routing.num_slots() == before.spec.routing.num_slots() &&
          weights.parallel == before.parallel,
      ErrorCode::kInvalidArgument,
      "layer {}: the new weights have another shape or split than those in use", before.spec.layer);
  check_belongs(weights, old->experts);
  auto staged = std::make_shared<const LayerOperands>(std::move(weights), old->experts, options_);
  GANTRY_CHECK(old->room_for_up_rows || !staged->room_for_up_rows, ErrorCode::kInvalidArgument,
               "layer {}: static input scales of w1 and w3 differ in the new weights and did not "
               "before: workspaces in use have no room for both inputs",
               before.spec.layer);
  const std::scoped_lock lock(mutex_);
  GANTRY_CHECK(!moving_ && operands_->experts == staged->experts, ErrorCode::kInvalidArgument,
               "layer {}: weights cannot be replaced while its experts move between ranks",
               staged->weights.spec.layer);
  operands_ = std::move(staged);
}

// Sizes are those of a call of max_num_tokens tokens on every rank.
Workspace FusedMoeLayer::make_workspace(int64_t max_num_tokens, int64_t max_slots) const {
  GANTRY_CHECK(max_num_tokens > 0, ErrorCode::kInvalidArgument,
               "max_num_tokens: expected at least 1, found {}", max_num_tokens);
  const auto held = operands();
  const MoeLayerWeights& weights = held->weights;
  const MoeLayerSpec& spec = weights.spec;
  const bool exchanges = exchange_ != nullptr && !options_.no_reduce;
  const int64_t all_tokens = exchanges ? exchange_->max_all_tokens(max_num_tokens) : max_num_tokens;
  const int64_t group_tokens =
      exchanges ? exchange_->max_group_tokens(max_num_tokens) : max_num_tokens;
  const int64_t pairs = all_tokens * spec.routing.num_slots();
  Workspace workspace;
  workspace.max_num_tokens_ = max_num_tokens;
  const auto tokens = static_cast<size_t>(max_num_tokens);
  const auto choices = tokens * static_cast<size_t>(spec.routing.num_slots());
  workspace.routing_.logits.reserve(tokens * static_cast<size_t>(spec.routing.num_experts));
  workspace.routing_.topk_ids.reserve(choices);
  workspace.routing_.topk_weights.reserve(choices);
  workspace.routing_.identity_weights.reserve(tokens);
  workspace.gate_.reserve(static_cast<size_t>(group_tokens));
  workspace.topk_.resize(static_cast<size_t>(options_.threads.resolved_count()));
  for (TopkScratch& scratch : workspace.topk_)
    scratch.reserve(spec.routing);
  workspace.num_slots_ = std::max(weights.num_slots, max_slots);
  workspace.permutation_.reserve(pairs, workspace.num_slots_);
  workspace.tokens_per_slot_.reserve(static_cast<size_t>(workspace.num_slots_));
  workspace.physical_ids_.reserve(choices);
  workspace.tokens_per_expert_.assign(static_cast<size_t>(spec.num_experts), 0);

  FusedExpertsScratchSize size =
      fused_experts_scratch(held->routed, held->routed_kernels, pairs, held->room_for_up_rows);
  size.num_slots = workspace.num_slots_;
  size.amax_values = amax_scratch_values(held->intermediate_quantizer, pairs);
  if (held->shared.num_slots > 0) {
    size.cover(fused_experts_scratch(held->shared, held->shared_kernels, group_tokens));
  }
  for (const DenseOperand* dense : {&held->router, &held->latent_in, &held->latent_out}) {
    if (dense->layout.n > 0) {
      size.cover(linear_scratch(dense->layout, dense->kernels, all_tokens));
    }
  }
  workspace.experts_ = FusedExpertsScratch(size);
  const auto values = [](int64_t count, int64_t width) {
    return Buffer<float>(static_cast<size_t>(count * width));
  };
  if (spec.router_input_norm) workspace.router_input_ = values(max_num_tokens, spec.hidden_size);
  if (spec.has_latent()) {
    workspace.expert_input_ = values(all_tokens, spec.expert_hidden_size);
    workspace.latent_sum_ = values(all_tokens, spec.expert_hidden_size);
  }
  if (exchange_ != nullptr) {
    workspace.exchange_ = exchange_->make_scratch(max_num_tokens, size.amax_values);
  }
  if (exchanges) {
    const bool ordered = exchange_->ordered();
    workspace.partial_ =
        ordered ? values(pairs, spec.expert_hidden_size) : values(all_tokens, spec.hidden_size);
    if (ordered) workspace.row_target_ = Buffer<int32_t>(static_cast<size_t>(pairs));
    if (ordered && held->shared.num_slots > 0) {
      workspace.shared_sum_ = values(group_tokens, spec.hidden_size);
    }
    if (exchange_->gathers()) {
      workspace.own_ = values(exchange_->max_own_tokens(max_num_tokens), spec.hidden_size);
    }
  }
  return workspace;
}

int64_t Workspace::bytes() const noexcept {
  const size_t words =
      routing_.logits.capacity() + routing_.topk_ids.capacity() + routing_.topk_weights.capacity() +
      routing_.identity_weights.capacity() + gate_.capacity() + permutation_.row_token.capacity() +
      permutation_.row_choice.capacity() + permutation_.expert_offsets.capacity() +
      physical_ids_.capacity() + 2 * tokens_per_slot_.capacity() +
      2 * tokens_per_expert_.capacity() + router_input_.size() + expert_input_.size() +
      latent_sum_.size() + partial_.size() + own_.size() + shared_sum_.size() + row_target_.size();
  return static_cast<int64_t>(words * 4 + experts_.bytes()) + exchange_.bytes();
}

void FusedMoeLayer::forward(const MoeInput& input, Workspace& workspace,
                            std::span<float> out) const {
  const auto held = operands();
  const MoeLayerSpec& spec = held->weights.spec;
  check_input(spec, input, out);
  const int64_t h = spec.hidden_size;
  const int64_t k = spec.routing.num_slots();
  const int64_t num_tokens = static_cast<int64_t>(input.hidden_states.size()) / h;
  GANTRY_CHECK(workspace.max_num_tokens_ > 0 &&
                   workspace.tokens_per_expert_.size() == static_cast<size_t>(spec.num_experts),
               ErrorCode::kInvalidArgument,
               "layer {}: the workspace was made for {} tokens and {} experts, expected {} experts",
               spec.layer, workspace.max_num_tokens_, workspace.tokens_per_expert_.size(),
               spec.num_experts);
  GANTRY_CHECK(workspace.num_slots_ >= held->weights.num_slots, ErrorCode::kInvalidArgument,
               "layer {}: the workspace was made for {} expert slots, this rank holds {}: make a "
               "new one after a rebalance",
               spec.layer, workspace.num_slots_, held->weights.num_slots);
  workspace.times_ = {};
  workspace.tokens_per_slot_.assign(static_cast<size_t>(held->weights.num_slots), 0);
  ForwardCall call(*held, options_, exchange_.get(), workspace);
  const int64_t chunk = workspace.max_num_tokens_;
  const ParallelConfig& parallel = held->weights.parallel;
  // Ranks that exchange magnitudes make the same number of calls, and nobody tells how many.
  GANTRY_CHECK(
      !options_.no_reduce || parallel.dp_size == 1 || !held->intermediate_quantizer.spans_ranks ||
          num_tokens <= chunk,
      ErrorCode::kInvalidArgument,
      "layer {}: {} tokens, the workspace was made for {}: without dispatch, batches whose "
      "TP ranks share scales of activations cannot run in chunks",
      spec.layer, num_tokens, chunk);
  GANTRY_CHECK(
      !options_.no_reduce || parallel.dp_size == 1 || input.physical_ids || num_tokens == 0,
      ErrorCode::kInvalidArgument,
      "layer {}: no_reduce with dp_size {}: expected the physical ids of an engine that "
      "dispatched the tokens itself",
      spec.layer, parallel.dp_size);
  int64_t begin = 0;
  bool more = false;  // here or on another rank
  do {
    const int64_t count = std::min(chunk, num_tokens - begin);
    const MoeInput part{
        .hidden_states = rows_of(input.hidden_states, begin, count, h),
        .router_hidden_states = rows_of(input.router_hidden_states, begin, count, h),
        .router_logits = rows_of(input.router_logits, begin, count, spec.routing.num_experts),
        .topk_ids = rows_of(input.topk_ids, begin, count, k),
        .topk_weights = rows_of(input.topk_weights, begin, count, k),
        .physical_ids = input.physical_ids,
        .token_ids = rows_of(input.token_ids, begin, count, 1)};
    more = call.run(part, num_tokens - begin - count,
                    out.subspan(static_cast<size_t>(begin * h), static_cast<size_t>(count * h)));
    begin += count;
  } while (more);
}

}  // namespace gantry
