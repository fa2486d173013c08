// Moves the expert slots of a layer: agree, copy and exchange into new memory, check, vote. Ranks
// that find a mistake keep taking part in the collectives until the vote, so that none waits for
// them; nothing that forward calls see changes before it.

#include "runtime/rebalance.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "parallel/digest.h"
#include "parallel/rank_vote.h"
#include "runtime/layer_operands.h"
#include "runtime/slot_transfer.h"

namespace gantry {
namespace {

Digest digest_of_layout(const SlotLayout& layout) {
  const InputTransforms& transforms = layout.transforms;
  std::string text =
      fmt::format("{} {} {} {} {} {} {} {} {}", to_string(layout.dtype), layout.gated, layout.bias,
                  layout.static_inputs, transforms.order, transforms.factors,
                  transforms.mid_factors, transforms.mid_order, layout.stride_bytes);
  text += to_string(layout.w13_panels);
  text += to_string(layout.w2_panels);
  return digest_of(std::as_bytes(std::span(text)));
}

template <typename T>
Buffer<T> copy_of(const Buffer<T>& buffer) {
  Buffer<T> copy(buffer.size());
  std::copy(buffer.span().begin(), buffer.span().end(), copy.data());
  return copy;
}

// The same weights with other slots. Names every member, so that a new one is not forgotten here.
MoeLayerWeights with_slots(const MoeLayerWeights& weights, SlotBuffer new_slots,
                           int64_t new_num_slots) {
  const auto& [spec, parallel, cut_unit, layout, num_slots, activations, slots, router, router_bias,
               correction_bias, per_expert_scale, router_scale, output_norm, hash_table,
               shared_gate, latent_in, latent_out, latent_in_bias, latent_out_bias, shared_layout,
               shared] = weights;
  ByteBuffer new_shared(shared.size());
  if (shared.size() > 0) std::memcpy(new_shared.data(), shared.data(), shared.size());
  return {.spec = spec,
          .parallel = parallel,
          .cut_unit = cut_unit,
          .layout = layout,
          .num_slots = new_num_slots,
          .activations = activations,
          .slots = std::move(new_slots),
          .router = copy_of(router),
          .router_bias = copy_of(router_bias),
          .correction_bias = copy_of(correction_bias),
          .per_expert_scale = copy_of(per_expert_scale),
          .router_scale = copy_of(router_scale),
          .output_norm = copy_of(output_norm),
          .hash_table = copy_of(hash_table),
          .shared_gate = copy_of(shared_gate),
          .latent_in = copy_of(latent_in),
          .latent_out = copy_of(latent_out),
          .latent_in_bias = copy_of(latent_in_bias),
          .latent_out_bias = copy_of(latent_out_bias),
          .shared_layout = shared_layout,
          .shared = std::move(new_shared)};
}

// Slots in host memory.
class HostSlots final : public SlotMemory {
 public:
  HostSlots(const MoeLayerWeights& weights, std::byte* new_slots, Communicator& world)
      : weights_(weights),
        stride_(weights.layout.stride_bytes),
        new_slots_(new_slots),
        world_(world),
        send_bytes_(static_cast<size_t>(world.size())),
        receive_bytes_(send_bytes_.size()) {}

  [[nodiscard]] int64_t slot_bytes() const override { return stride_; }
  void copy_old(int32_t to_slot, int32_t from_old_slot) override {
    copy(new_slot(to_slot), old_slot(from_old_slot).data());
  }
  void copy_new(int32_t to_slot, int32_t from_new_slot) override {
    copy(new_slot(to_slot), new_slot(from_new_slot).data());
  }
  Digest digest_old(int32_t slot) override { return digest_of(old_slot(slot)); }
  Digest digest_new(int32_t slot) override { return digest_of(new_slot(slot)); }

  void exchange(int send_peer, int32_t old, int receive_peer, int32_t arriving) override {
    std::fill(send_bytes_.begin(), send_bytes_.end(), 0);
    std::fill(receive_bytes_.begin(), receive_bytes_.end(), 0);
    std::span<const std::byte> sent;
    std::span<std::byte> received;
    if (send_peer >= 0) {
      sent = old_slot(old);
      send_bytes_[static_cast<size_t>(send_peer)] = stride_;
    }
    if (receive_peer >= 0) {
      received = new_slot(arriving);
      receive_bytes_[static_cast<size_t>(receive_peer)] = stride_;
    }
    world_.all_to_all(sent, send_bytes_, received, receive_bytes_);
  }

 private:
  [[nodiscard]] std::span<const std::byte> old_slot(int32_t slot) const {
    return {weights_.slots.data() + slot * stride_, static_cast<size_t>(stride_)};
  }
  [[nodiscard]] std::span<std::byte> new_slot(int32_t slot) const {
    return {new_slots_ + slot * stride_, static_cast<size_t>(stride_)};
  }
  static void copy(std::span<std::byte> to, const std::byte* from) {
    std::memcpy(to.data(), from, to.size());
  }

  const MoeLayerWeights& weights_;
  int64_t stride_;
  std::byte* new_slots_;
  Communicator& world_;
  std::vector<int64_t> send_bytes_;
  std::vector<int64_t> receive_bytes_;
};

}  // namespace

StagedRebalance::StagedRebalance(FusedMoeLayer& layer, ExpertMap new_map, Communicator& world,
                                 const RebalanceOptions& options)
    : layer_(&layer), before_(layer.operands()) {
  const auto start = std::chrono::steady_clock::now();
  StallWatchdog watchdog(
      fmt::format("rebalance of layer {} (rank {})", before_->weights.spec.layer, world.rank()),
      options.stall, [&world](const std::string& what) { world.abort(what.c_str()); });
  try {
    stage(std::move(new_map), world, watchdog);
  } catch (...) {
    after_.reset();
    if (holds_layer_) {
      const std::scoped_lock lock(layer_->mutex_);
      layer_->moving_ = false;
    }
    throw;
  }
  stats_.stalls = watchdog.warnings();
  stats_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  log_moves(before_->weights.spec.layer, world.rank(), stats_);
}

void StagedRebalance::stage(ExpertMap new_map, Communicator& world, StallWatchdog& watchdog) {
  const MoeLayerWeights& weights = before_->weights;
  const ParallelConfig& parallel = weights.parallel;
  const std::string operation = fmt::format("rebalance of layer {}", weights.spec.layer);
  GANTRY_CHECK(world.size() == parallel.world_size() && world.rank() == parallel.rank,
               ErrorCode::kInvalidArgument,
               "{}: expected rank {} of {}, the communicator is rank {} of {}", operation,
               parallel.rank, parallel.world_size(), world.rank(), world.size());

  watchdog.progress("agreeing on the maps");
  std::optional<RankProblem> problem;
  MovePlan plan;
  ByteBuffer slots;
  try {
    {
      const std::scoped_lock lock(layer_->mutex_);
      GANTRY_CHECK(!layer_->moving_ && layer_->operands_ == before_, ErrorCode::kInvalidArgument,
                   "its experts are already being moved, or its weights replaced");
      layer_->moving_ = holds_layer_ = true;
    }
    plan = plan_moves(before_->experts, new_map);
    slots = ByteBuffer(
        static_cast<size_t>(new_map.num_slots(parallel.ep_rank()) * weights.layout.stride_bytes));
  } catch (...) {
    problem = current_problem();
  }
  const std::optional<RankProblem> differs =
      disagreement({.old_map = digest_of_map(before_->experts),
                    .new_map = digest_of_map(new_map),
                    .layout = digest_of_layout(weights.layout),
                    .layer = weights.spec.layer,
                    .tp_rank = parallel.tp_rank()},
                   world);
  vote_to_go_on(world, operation, problem ? problem : differs);

  HostSlots memory(weights, slots.data(), world);
  SlotTransfer(parallel, plan, memory, stats_).run(world, watchdog, operation, [&] {
    const int64_t num_slots = new_map.num_slots(parallel.ep_rank());
    after_ = std::make_shared<const LayerOperands>(with_slots(weights, std::move(slots), num_slots),
                                                   std::move(new_map), layer_->options_);
  });
}

StagedRebalance::~StagedRebalance() {
  if (!after_) return;
  const std::scoped_lock lock(layer_->mutex_);
  layer_->moving_ = false;
}

void StagedRebalance::commit() noexcept {
  if (!after_) return;
  {
    const std::scoped_lock lock(layer_->mutex_);
    layer_->operands_ = std::move(after_);
    layer_->moving_ = false;
  }
  before_.reset();  // the old slots go with the last call that uses them
}

RebalanceStats rebalance(FusedMoeLayer& layer, const ExpertMap& new_map, Communicator& world,
                         const RebalanceOptions& options) {
  StagedRebalance staged(layer, new_map, world, options);
  staged.commit();
  return staged.stats();
}

}  // namespace gantry
