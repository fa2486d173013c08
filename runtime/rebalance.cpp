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

namespace gantry {
namespace {

Digest digest_of_map(const ExpertMap& map) {
  std::vector<int32_t> words = {map.num_experts(), map.ep_size()};
  for (int rank = 0; rank < map.ep_size(); ++rank) {
    words.push_back(map.num_slots(rank));
    const auto slots = map.slot_to_logical(rank);
    words.insert(words.end(), slots.begin(), slots.end());
  }
  return digest_of(std::as_bytes(std::span(words)));
}

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
MoeLayerWeights with_slots(const MoeLayerWeights& weights, ByteBuffer new_slots,
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

// What all ranks must have in common; the layout only TP ranks of the same shard.
struct Agreement {
  Digest old_map;
  Digest new_map;
  Digest layout;
  int32_t layer = 0;
  int32_t tp_rank = 0;
};

// Collective. What another rank sees differently, if any does.
std::optional<RankProblem> disagreement(const LayerOperands& before, const ExpertMap& new_map,
                                        Communicator& world) {
  const Agreement own{.old_map = digest_of_map(before.experts),
                      .new_map = digest_of_map(new_map),
                      .layout = digest_of_layout(before.weights.layout),
                      .layer = before.weights.spec.layer,
                      .tp_rank = before.weights.parallel.tp_rank()};
  const std::vector<Agreement> all = gather_values(world, own);
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const Agreement& other = all[rank];
    std::string difference;
    if (other.tp_rank == own.tp_rank && other.layout != own.layout) difference = "slot layout";
    if (other.new_map != own.new_map) difference = "new map";
    if (other.old_map != own.old_map) difference = "current map";
    if (other.layer != own.layer) difference = "layer";
    if (difference.empty()) continue;
    return RankProblem{ErrorCode::kInvalidArgument,
                       fmt::format("rank {} has another {}", rank, difference)};
  }
  return std::nullopt;
}

// Moves one rank's slots into new memory.
class SlotTransfer {
 public:
  SlotTransfer(const MoeLayerWeights& weights, const MovePlan& plan, std::byte* new_slots,
               RebalanceStats& stats)
      : weights_(weights),
        plan_(plan),
        ep_rank_(weights.parallel.ep_rank()),
        stride_(weights.layout.stride_bytes),
        new_slots_(new_slots),
        stats_(stats) {}

  // From old slots of this rank.
  void copy_old() {
    for (const SlotMove& move : plan_.copies) {
      if (move.to_rank != ep_rank_) continue;
      copy(new_slot(move.to_slot), old_slot(move.from_slot).data());
      ++(move.to_slot == move.from_slot ? stats_.slots_kept : stats_.slots_copied);
    }
  }

  // From new slots of this rank.
  void copy_received() {
    for (const SlotMove& move : plan_.duplicates) {
      if (move.to_rank != ep_rank_) continue;
      copy(new_slot(move.to_slot), new_slot(move.from_slot).data());
      ++stats_.slots_copied;
    }
  }

  // Collective. Returns the first slot that did not arrive as it was sent.
  std::optional<RankProblem> exchange(Communicator& world, StallWatchdog& watchdog) {
    std::optional<RankProblem> problem;
    const std::vector<Digest> digests = gather_digests(world);
    std::vector<int64_t> send_bytes(static_cast<size_t>(world.size()));
    std::vector<int64_t> receive_bytes(send_bytes.size());
    size_t next = 0;  // of digests
    for (const std::vector<SlotMove>& round : plan_.rounds) {
      watchdog.progress(fmt::format("exchange {} of {}", stats_.rounds + 1, plan_.rounds.size()));
      std::fill(send_bytes.begin(), send_bytes.end(), 0);
      std::fill(receive_bytes.begin(), receive_bytes.end(), 0);
      std::span<const std::byte> sent;
      std::span<std::byte> received;
      const SlotMove* arriving = nullptr;
      Digest expected;
      for (const SlotMove& move : round) {
        if (move.from_rank == ep_rank_) {
          sent = old_slot(move.from_slot);
          send_bytes[world_rank(move.to_rank)] = stride_;
        }
        if (move.to_rank == ep_rank_) {
          arriving = &move;
          expected = digests[next];
          received = new_slot(move.to_slot);
          receive_bytes[world_rank(move.from_rank)] = stride_;
        }
        ++next;
      }
      world.all_to_all(sent, send_bytes, received, receive_bytes);
      ++stats_.rounds;
      stats_.bytes_sent += static_cast<int64_t>(sent.size());
      stats_.bytes_received += static_cast<int64_t>(received.size());
      if (arriving == nullptr) continue;
      ++stats_.slots_received;
      const Digest found = digest_of(received);
      if (found == expected || problem) continue;
      problem = {ErrorCode::kIo,
                 fmt::format("expert {} from rank {} arrived with digest {}, expected {}",
                             arriving->expert, world_rank(arriving->from_rank), to_string(found),
                             to_string(expected))};
    }
    return problem;
  }

 private:
  // Collective. The digest of each slot that crosses between ranks of this rank's shard, in the
  // order of the rounds.
  std::vector<Digest> gather_digests(Communicator& world) {
    std::vector<int64_t> bytes(static_cast<size_t>(world.size()), 0);
    std::vector<Digest> own;
    for (const auto& round : plan_.rounds) {
      for (const SlotMove& move : round) {
        for (int tp = 0; tp < weights_.parallel.tp_size; ++tp) {
          bytes[static_cast<size_t>(move.from_rank * weights_.parallel.tp_size + tp)] +=
              static_cast<int64_t>(sizeof(Digest));
        }
        if (move.from_rank == ep_rank_) own.push_back(digest_of(old_slot(move.from_slot)));
      }
    }
    size_t total = 0;
    std::vector<size_t> cursor;  // where each rank's digests stand
    for (const int64_t of_rank : bytes) {
      cursor.push_back(total);
      total += static_cast<size_t>(of_rank) / sizeof(Digest);
    }
    std::vector<Digest> by_rank(total);
    world.all_gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(by_rank)),
                     bytes);
    std::vector<Digest> by_round;
    for (const auto& round : plan_.rounds) {
      for (const SlotMove& move : round)
        by_round.push_back(by_rank[cursor[world_rank(move.from_rank)]++]);
    }
    return by_round;
  }

  // The rank of the same shard.
  [[nodiscard]] size_t world_rank(int ep_rank) const {
    return static_cast<size_t>(ep_rank * weights_.parallel.tp_size + weights_.parallel.tp_rank());
  }
  [[nodiscard]] std::span<const std::byte> old_slot(int32_t slot) const {
    return {weights_.slots.data() + slot * stride_, static_cast<size_t>(stride_)};
  }
  [[nodiscard]] std::span<std::byte> new_slot(int32_t slot) const {
    return {new_slots_ + slot * stride_, static_cast<size_t>(stride_)};
  }
  void copy(std::span<std::byte> to, const std::byte* from) {
    std::memcpy(to.data(), from, to.size());
    stats_.bytes_copied += stride_;
  }

  const MoeLayerWeights& weights_;
  const MovePlan& plan_;
  int ep_rank_;
  int64_t stride_;
  std::byte* new_slots_;
  RebalanceStats& stats_;
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
  log(world.rank() == 0 ? LogLevel::kInfo : LogLevel::kDebug,
      "layer {}: rank {}: experts moved: {} kept, {} copied, {} received in {} round(s); {} bytes "
      "sent, {} received",
      before_->weights.spec.layer, world.rank(), stats_.slots_kept, stats_.slots_copied,
      stats_.slots_received, stats_.rounds, stats_.bytes_sent, stats_.bytes_received);
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
  const std::optional<RankProblem> differs = disagreement(*before_, new_map, world);
  vote_to_go_on(world, operation, problem ? problem : differs);

  SlotTransfer transfer(weights, plan, slots.data(), stats_);
  transfer.copy_old();
  problem = transfer.exchange(world, watchdog);
  try {
    transfer.copy_received();
    const int64_t num_slots = new_map.num_slots(parallel.ep_rank());
    after_ = std::make_shared<const LayerOperands>(with_slots(weights, std::move(slots), num_slots),
                                                   std::move(new_map), layer_->options_);
  } catch (...) {
    if (!problem) problem = current_problem();
  }
  watchdog.progress("voting on the result");
  vote_to_go_on(world, operation, problem);
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
