#include "runtime/fused_moe_layer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "runtime/forward_call.h"
#include "runtime/router.h"

namespace gantry {
namespace {

template <typename T>
std::span<const T> rows_of(std::span<const T> all, int64_t begin, int64_t count, int64_t width) {
  if (all.empty()) return {};
  return all.subspan(static_cast<size_t>(begin * width), static_cast<size_t>(count * width));
}

void check_input(const MoeLayerSpec& spec, const MoeInput& input, std::span<const float> out) {
  const int64_t h = spec.hidden_size;
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
  check_rows(input.topk_ids.size(), spec.routing.num_slots(), "topk_ids");
  check_rows(input.token_ids.size(), 1, "token_ids");
  GANTRY_CHECK(input.topk_ids.size() == input.topk_weights.size(), ErrorCode::kInvalidArgument,
               "layer {}: {} topk_ids but {} topk_weights", spec.layer, input.topk_ids.size(),
               input.topk_weights.size());
  GANTRY_CHECK(!input.physical_ids || !input.topk_ids.empty() || num_tokens == 0,
               ErrorCode::kInvalidArgument, "layer {}: physical_ids without topk_ids", spec.layer);
}

void check_belongs(const MoeLayerWeights& weights, const ExpertMap& experts) {
  GANTRY_CHECK(experts.num_experts() == weights.spec.num_experts &&
                   experts.num_slots(weights.parallel.ep_rank()) == weights.num_slots,
               ErrorCode::kInvalidArgument, "layer {}: weights were loaded for another expert map",
               weights.spec.layer);
  validate(weights.spec.routing, routing_tensors(weights));
}

}  // namespace

FusedMoeLayer::FusedMoeLayer(MoeLayerWeights weights, ExpertMap experts, FusedMoeOptions options,
                             Communicator* world)
    : experts_(std::move(experts)), options_(std::move(options)) {
  const ParallelConfig& parallel = weights.parallel;
  validate(parallel);
  const int world_size = world == nullptr ? 1 : world->size();
  GANTRY_CHECK(parallel.world_size() == world_size, ErrorCode::kInvalidArgument,
               "layer {}: {} ranks expected by tp {} x ep {}, the communicator has {}",
               weights.spec.layer, parallel.world_size(), parallel.tp_size, parallel.ep_size,
               world_size);
  check_belongs(weights, experts_);
  if (world_size > 1) {
    exchange_ = std::make_unique<TokenExchange>(parallel, *world, weights.spec.hidden_size,
                                                weights.spec.routing.num_slots());
  }
  operands_ = std::make_shared<const LayerOperands>(std::move(weights), experts_, options_);
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
  check_belongs(weights, experts_);
  auto staged = std::make_shared<const LayerOperands>(std::move(weights), experts_, options_);
  const std::scoped_lock lock(mutex_);
  operands_ = std::move(staged);
}

// Sizes are those of a call of max_num_tokens tokens on every rank.
Workspace FusedMoeLayer::make_workspace(int64_t max_num_tokens) const {
  GANTRY_CHECK(max_num_tokens > 0, ErrorCode::kInvalidArgument,
               "max_num_tokens: expected at least 1, found {}", max_num_tokens);
  const auto held = operands();
  const MoeLayerWeights& weights = held->weights;
  const MoeLayerSpec& spec = weights.spec;
  const int64_t all_tokens = max_num_tokens * weights.parallel.dp_size;
  const int64_t pairs = all_tokens * spec.routing.num_slots();
  Workspace workspace;
  workspace.max_num_tokens_ = max_num_tokens;
  const auto tokens = static_cast<size_t>(max_num_tokens);
  const auto choices = tokens * static_cast<size_t>(spec.routing.num_slots());
  workspace.routing_.logits.reserve(tokens * static_cast<size_t>(spec.routing.num_experts));
  workspace.routing_.topk_ids.reserve(choices);
  workspace.routing_.topk_weights.reserve(choices);
  workspace.routing_.identity_weights.reserve(tokens);
  workspace.gate_.reserve(tokens);
  workspace.topk_.resize(static_cast<size_t>(options_.threads.resolved_count()));
  for (TopkScratch& scratch : workspace.topk_)
    scratch.reserve(spec.routing);
  workspace.permutation_.reserve(pairs, weights.num_slots);
  workspace.tokens_per_expert_.assign(static_cast<size_t>(spec.num_experts), 0);

  FusedExpertsScratchSize size = fused_experts_scratch(held->routed, held->routed_kernels, pairs);
  size.amax_values = amax_scratch_values(held->intermediate_quantizer, pairs);
  if (held->shared.num_slots > 0) {
    size.cover(fused_experts_scratch(held->shared, held->shared_kernels, max_num_tokens));
  }
  for (const DenseOperand* dense : {&held->router, &held->latent_in, &held->latent_out}) {
    if (dense->layout.n > 0) {
      size.cover(linear_scratch(dense->layout, held->dense_kernels, all_tokens));
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
  if (exchange_ != nullptr) workspace.partial_ = values(all_tokens, spec.hidden_size);
  return workspace;
}

int64_t Workspace::bytes() const noexcept {
  const size_t words = routing_.logits.capacity() + routing_.topk_ids.capacity() +
                       routing_.topk_weights.capacity() + routing_.identity_weights.capacity() +
                       gate_.capacity() + permutation_.row_token.capacity() +
                       permutation_.row_choice.capacity() + permutation_.expert_offsets.capacity() +
                       2 * tokens_per_expert_.capacity() + router_input_.size() +
                       expert_input_.size() + latent_sum_.size() + partial_.size();
  return static_cast<int64_t>(words * 4 + experts_.bytes());
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
  workspace.times_ = {};
  ForwardCall call(*held, options_, exchange_.get(), workspace);
  // With token groups the ranks may hold different numbers of tokens: one chunk, so that all make
  // the same number of collective calls.
  const int64_t chunk = held->weights.parallel.dp_size > 1 ? std::max<int64_t>(1, num_tokens)
                                                           : workspace.max_num_tokens_;
  GANTRY_CHECK(held->weights.parallel.dp_size == 1 || num_tokens <= workspace.max_num_tokens_,
               ErrorCode::kInvalidArgument, "layer {}: {} tokens, the workspace was made for {}",
               spec.layer, num_tokens, workspace.max_num_tokens_);
  int64_t begin = 0;
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
    call.run(part, out.subspan(static_cast<size_t>(begin * h), static_cast<size_t>(count * h)));
    begin += count;
  } while (begin < num_tokens);
}

}  // namespace gantry
