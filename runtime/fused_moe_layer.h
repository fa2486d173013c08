#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"
#include "loader/layer_weights.h"
#include "parallel/communicator.h"
#include "parallel/exchange_options.h"
#include "parallel/expert_map.h"
#include "parallel/token_exchange.h"
#include "runtime/workspace.h"

namespace gantry GANTRY_API {

struct LayerOperands;
class StagedRebalance;

struct FusedMoeOptions {
  /// kScheme: the inputs of the routed experts are quantized as the checkpoint declares; a layer
  /// that declares nothing runs as with kF32. Shared experts are plain, so theirs are not.
  ActivationDType activations = ActivationDType::kBF16;
  IsaSet isas = host_isas();
  Avx512Dot avx512_dot = avx512_dot_choice().flavour;
  /// Only kernels whose result for a row does not depend on how many rows there are. A row's bits
  /// then depend neither on its batch nor on the number of threads, ranks apart.
  bool batch_invariant = false;
  Threads threads;
  /// Leaves the shared experts to the caller (who overlaps them with something else, say).
  bool skip_shared_experts = false;
  /// Spreads the tokens of an expert over its copies (see ReplicaTable); else only the first copy
  /// computes. Copies hold equal bytes, so either way each expert's output is the same.
  bool spread_replicas = true;
  /// How tokens and results move between ranks. The same on all ranks.
  ExchangeOptions exchange;
  /// For engines that dispatch and reduce themselves: nothing moves, and out holds this rank's part
  /// of the result; the sum over all ranks is the result. With dp_size > 1 the engine gives each
  /// rank the tokens that it is to compute, with physical_ids, and shared experts are its own
  /// business (skip_shared_experts).
  bool no_reduce = false;
};

/// A batch of tokens, with as much of its routing as the caller has.
struct MoeInput {
  std::span<const float> hidden_states{};  // [T, H]
  /// What the router sees where it is not the experts' input (Gemma 4: before the norm); [T, H] or
  /// empty.
  std::span<const float> router_hidden_states{};
  std::span<const float> router_logits{};  // [T, routing.num_experts], or empty: computed
  std::span<const int32_t> topk_ids{};     // [T, K] expert ids, -1 for none, or empty: computed
  std::span<const float> topk_weights{};   // [T, K], with topk_ids
  /// topk_ids are physical ids (see ExpertMap) of an engine that balances and dispatches itself:
  /// this rank computes exactly those that it holds.
  bool physical_ids = false;
  std::span<const int32_t> token_ids{};  // [T], for hash routing
};

/// One MoE layer of one rank: routing, dispatch, experts, combine, shared experts.
///
///   out = output_scale * (sum over selected experts e of w_e * MLP_e(x)
///                         + sum of identity weights * x + [gate(x) *] MLP_shared(x))
///
/// A token's expert outputs are added in ascending logical expert id in f32. Results of a rank do
/// not depend on the number of threads. With CombineOrder::kOrdered and batch_invariant they do not
/// depend on ep_size, dp_size, sequence_parallel or placement either (tp_size cuts the sums of w2).
///
/// Threads: a layer of a single rank may run any number of forward calls at once, each with its own
/// workspace, also while `replace_weights` swaps its weights. With several ranks, every rank must
/// make the same calls in the same order, one at a time.
class FusedMoeLayer {
 public:
  /// @param weights moved in
  /// @param world   ranks of weights.parallel; may be null for a single rank; must outlive the
  /// layer
  /// @throws Error kInvalidArgument if weights, map and world do not belong together
  /// @throws Error kUnsupported if no kernel of `options.isas` reads the weights, or with kScheme
  ///         if the checkpoint's scheme cannot be simulated
  FusedMoeLayer(MoeLayerWeights weights, ExpertMap experts, FusedMoeOptions options,
                Communicator* world);
  FusedMoeLayer(const FusedMoeLayer&) = delete;
  FusedMoeLayer& operator=(const FusedMoeLayer&) = delete;
  ~FusedMoeLayer();

  /// Allocates everything that forward calls of up to `max_num_tokens` tokens a rank need; longer
  /// batches run in chunks, as many on every rank as the longest batch needs. The same number on
  /// all ranks.
  /// @param max_slots the most slots that this rank will hold after a rebalance; 0: those it has
  [[nodiscard]] Workspace make_workspace(int64_t max_num_tokens, int64_t max_slots = 0) const;

  /// Runs one batch. Allocates nothing (not with custom routing; communicators may, while they see
  /// sizes for the first time).
  /// @param out [T, H] f32, written; must not overlap the input
  /// @throws Error kInvalidArgument if a size does not fit, or the workspace is too small
  void forward(const MoeInput& input, Workspace& workspace, std::span<float> out) const;

  /// Swaps in newly loaded weights of the same shape. Calls that are running end with the old ones,
  /// which are released with the last of them; calls that start afterwards see the new ones.
  /// @throws Error kInvalidArgument if the new weights have another shape or split; then the old
  ///         ones stay. Also while a rebalance is under way (see StagedRebalance).
  void replace_weights(MoeLayerWeights weights);

  /// The weights in use. They stay valid as long as the pointer is held.
  [[nodiscard]] std::shared_ptr<const MoeLayerWeights> weights() const;
  /// Which rank holds which expert, in which slot, now.
  [[nodiscard]] ExpertMap experts() const;
  /// The kernels that run the routed experts, for people.
  [[nodiscard]] std::string kernel_name() const;
  /// How the routed experts' inputs are multiplied: f32, bf16 or int8.
  [[nodiscard]] ActivationDType row_type() const;
  /// The exchange that this layer uses, and why; null for a single rank.
  [[nodiscard]] const ExchangeChoice* exchange_choice() const noexcept {
    return exchange_ == nullptr ? nullptr : &exchange_->choice();
  }
  /// What this rank moved for this layer so far; not while a call runs.
  [[nodiscard]] ExchangeBytes bytes_moved() const noexcept {
    return exchange_ == nullptr ? ExchangeBytes{} : exchange_->bytes();
  }

 private:
  friend class StagedRebalance;  // stages operands, then swaps them in

  [[nodiscard]] std::shared_ptr<const LayerOperands> operands() const;

  FusedMoeOptions options_;
  std::unique_ptr<TokenExchange> exchange_;  // with several ranks
  mutable std::mutex mutex_;                 // of operands_ and moving_
  std::shared_ptr<const LayerOperands> operands_;
  bool moving_ = false;  // a rebalance is staged: nothing else may swap operands_
};

}  // namespace gantry
