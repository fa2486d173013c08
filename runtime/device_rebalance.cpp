#include "runtime/device_rebalance.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/base/check.h"
#include "kernels/cuda/device_kernels.h"
#include "runtime/device_kernel_plan.h"
#include "runtime/device_weights.h"
#include "runtime/slot_transfer.h"

namespace gantry {
namespace {

class DeviceSlots final : public SlotMemory {
 public:
  DeviceSlots(int64_t slot_bytes, const std::byte* old_slots, std::byte* new_slots,
              DeviceCommunicator& world, StreamHandle stream)
      : slot_bytes_(slot_bytes),
        old_slots_(old_slots),
        new_slots_(new_slots),
        world_(world),
        device_(*world.device()),
        stream_(stream),
        sums_(world.device(), size_t{2} * DigestWords::kMaxBlocks * sizeof(uint64_t)) {}

  [[nodiscard]] int64_t slot_bytes() const override { return slot_bytes_; }
  void copy_old(int32_t to_slot, int32_t from_old_slot) override {
    device_.copy_within(new_slot(to_slot), old_slot(from_old_slot), bytes(), stream_);
  }
  void copy_new(int32_t to_slot, int32_t from_new_slot) override {
    device_.copy_within(new_slot(to_slot), new_slot(from_new_slot), bytes(), stream_);
  }
  Digest digest_old(int32_t slot) override { return digest(old_slot(slot)); }
  Digest digest_new(int32_t slot) override { return digest(new_slot(slot)); }

  void exchange(int send_peer, int32_t old, int receive_peer, int32_t arriving) override {
    std::vector<SendPart> sends;
    std::vector<ReceivePart> receives;
    if (send_peer >= 0) sends.push_back({send_peer, {old_slot(old), bytes()}});
    if (receive_peer >= 0) receives.push_back({receive_peer, {new_slot(arriving), bytes()}});
    world_.send_receive(sends, receives, stream_);
    world_.wait(stream_);
  }

 private:
  [[nodiscard]] size_t bytes() const { return static_cast<size_t>(slot_bytes_); }
  [[nodiscard]] const std::byte* old_slot(int32_t slot) const {
    return old_slots_ + slot * slot_bytes_;
  }
  [[nodiscard]] std::byte* new_slot(int32_t slot) const { return new_slots_ + slot * slot_bytes_; }

  Digest digest(const std::byte* slot) {
    const DigestWords kernel{reinterpret_cast<const uint64_t*>(slot), slot_bytes_ / 8,
                             sums_.as<uint64_t>()};
    device_.kernels().digest_words(kernel, device_.attributes(), stream_);
    std::vector<uint64_t> sums(2 * static_cast<size_t>(kernel.launch_shape().blocks));
    device_.copy_out(sums.data(), sums_.data(), sums.size() * sizeof(uint64_t), stream_);
    world_.wait(stream_);
    Digest digest;
    for (size_t i = 0; i < sums.size(); i += 2) {
      digest.low += sums[i];
      digest.high += sums[i + 1];
    }
    return digest;
  }

  int64_t slot_bytes_;
  const std::byte* old_slots_;
  std::byte* new_slots_;
  DeviceCommunicator& world_;
  Device& device_;
  StreamHandle stream_;
  DeviceBuffer sums_;
};

Digest digest_of_layout(const DeviceSlotLayout& layout) {
  DigestBuilder builder;
  for (const int64_t number :
       {layout.stride_bytes, layout.w2_offset, layout.b13_offset, layout.b2_offset}) {
    builder.add(number);
  }
  for (const DeviceMatrix* matrix : {&layout.w13, &layout.w2}) {
    for (const int64_t number :
         {static_cast<int64_t>(matrix->element), static_cast<int64_t>(matrix->scale),
          int64_t{matrix->gated}, int64_t{matrix->zero_points}, matrix->group, matrix->n, matrix->k,
          matrix->codes, matrix->bytes}) {
      builder.add(number);
    }
  }
  return builder.digest();
}

}  // namespace

StagedDeviceRebalance::StagedDeviceRebalance(DeviceMoeLayer& layer, const ExpertMap& new_map,
                                             Communicator& host, DeviceCommunicator& world,
                                             StreamHandle stream, const RebalanceOptions& options)
    : layer_(&layer), before_(layer.experts()) {
  const auto start = std::chrono::steady_clock::now();
  StallWatchdog watchdog(
      fmt::format("rebalance of layer {} (rank {})", layer.weights().spec.layer, host.rank()),
      options.stall, [&](const std::string& what) {
        world.abort(what.c_str());
        host.abort(what.c_str());
      });
  try {
    stage(new_map, host, world, stream, watchdog);
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
  log_moves(layer.weights().spec.layer, host.rank(), stats_);
}

void StagedDeviceRebalance::stage(const ExpertMap& new_map, Communicator& host,
                                  DeviceCommunicator& world, StreamHandle stream,
                                  StallWatchdog& watchdog) {
  const DeviceWeights& weights = layer_->weights();
  const ParallelConfig& parallel = weights.parallel;
  const std::string operation = fmt::format("rebalance of layer {}", weights.spec.layer);
  for (const auto& [rank, size] :
       {std::pair(host.rank(), host.size()), std::pair(world.rank(), world.size())}) {
    GANTRY_CHECK(size == parallel.world_size() && rank == parallel.rank,
                 ErrorCode::kInvalidArgument,
                 "{}: expected rank {} of {}, the communicator is rank {} of {}", operation,
                 parallel.rank, parallel.world_size(), rank, size);
  }
  watchdog.progress("agreeing on the maps");
  std::optional<RankProblem> problem;
  MovePlan plan;
  DeviceBuffer slots;
  const int64_t stride = weights.layout.stride_bytes;
  try {
    {
      const std::scoped_lock lock(layer_->mutex_);
      GANTRY_CHECK(!layer_->moving_ && layer_->experts_ == before_, ErrorCode::kInvalidArgument,
                   "its experts are already being moved");
      layer_->moving_ = holds_layer_ = true;
    }
    GANTRY_CHECK(!layer_->plan_->rows.quantizes() || weights.input_scales.size() == 0,
                 ErrorCode::kUnsupported,
                 "rows are quantized by static scales, which on a GPU do not move with experts: "
                 "run it with bf16 activations");
    plan = plan_moves(before_->map, new_map);
    for (int rank = 0; rank < new_map.ep_size(); ++rank) {
      GANTRY_CHECK(new_map.num_slots(rank) > 0, ErrorCode::kUnsupported,
                   "EP rank {} would hold no expert, which GPU kernels cannot plan for", rank);
    }
    slots = DeviceBuffer(weights.device,
                         static_cast<size_t>(new_map.num_slots(parallel.ep_rank()) * stride));
  } catch (...) {
    problem = current_problem();
  }
  const std::optional<RankProblem> differs =
      disagreement({.old_map = digest_of_map(before_->map),
                    .new_map = digest_of_map(new_map),
                    .layout = digest_of_layout(weights.layout),
                    .layer = weights.spec.layer,
                    .tp_rank = parallel.tp_rank()},
                   host);
  vote_to_go_on(host, operation, problem ? problem : differs);

  DeviceSlots memory(stride, before_->slots.data(), slots.data(), world, stream);
  SlotTransfer(parallel, plan, memory, stats_).run(host, watchdog, operation, [&] {
    world.wait(stream);
    after_ = std::make_shared<const DeviceExperts>(weights.device, new_map, parallel.ep_rank(),
                                                   std::move(slots));
  });
}

StagedDeviceRebalance::~StagedDeviceRebalance() {
  if (!after_) return;
  const std::scoped_lock lock(layer_->mutex_);
  layer_->moving_ = false;
}

void StagedDeviceRebalance::commit() noexcept {
  if (!after_) return;
  const std::scoped_lock lock(layer_->mutex_);
  layer_->experts_ = std::move(after_);
  layer_->moving_ = false;
}

RebalanceStats rebalance(DeviceMoeLayer& layer, const ExpertMap& new_map, Communicator& host,
                         DeviceCommunicator& world, StreamHandle stream,
                         const RebalanceOptions& options) {
  StagedDeviceRebalance staged(layer, new_map, host, world, stream, options);
  staged.commit();
  world.wait(stream);  // forward calls on the old slots
  return staged.stats();
}

}  // namespace gantry
