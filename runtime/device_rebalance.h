#pragma once

#include <memory>

#include "kernels/base/export.h"
#include "parallel/communicator.h"
#include "parallel/device_communicator.h"
#include "parallel/expert_map.h"
#include "runtime/device_moe_layer.h"
#include "runtime/rebalance.h"

namespace gantry GANTRY_API {

struct DeviceExperts;

/// StagedRebalance for experts in GPU memory: the slots of the new map lie in GPU memory of their
/// own beside the old ones, came from other ranks' devices, and were compared there with their
/// senders' digests (a kernel's, not XXH3). Until commit, forward calls run on the old slots.
///
/// Peak GPU memory: old and new slots of the layer.
class StagedDeviceRebalance {
 public:
  /// Collective. As StagedRebalance; waits for the stream.
  /// @param layer  must outlive this object
  /// @param host   the layer's ranks, for what ranks have to agree on
  /// @param world  the same ranks on the layer's device: slots move over it. The layer's own, or
  /// (to
  ///               move while forward calls run) another one
  /// @param stream on which slots move
  /// @throws Error as StagedRebalance; kUnsupported if a rank would hold no expert, or if
  ///         static scales quantize its rows (they lie beside the slots)
  StagedDeviceRebalance(DeviceMoeLayer& layer, const ExpertMap& new_map, Communicator& host,
                        DeviceCommunicator& world, StreamHandle stream,
                        const RebalanceOptions& options = {});
  StagedDeviceRebalance(const StagedDeviceRebalance&) = delete;
  StagedDeviceRebalance& operator=(const StagedDeviceRebalance&) = delete;
  /// Without commit the old slots stay. After it they are released here: streams that ran forward
  /// calls before the commit must have ended those.
  ~StagedDeviceRebalance();

  /// Not collective, cannot fail. Forward calls from now on use the new slots. A rank that now
  /// holds more slots needs another workspace; CUDA graphs must be captured again.
  void commit() noexcept;

  [[nodiscard]] const RebalanceStats& stats() const noexcept { return stats_; }

 private:
  void stage(const ExpertMap& new_map, Communicator& host, DeviceCommunicator& world,
             StreamHandle stream, StallWatchdog& watchdog);

  DeviceMoeLayer* layer_;
  std::shared_ptr<const DeviceExperts> before_;
  std::shared_ptr<const DeviceExperts> after_;  // null until staged and once committed
  bool holds_layer_ = false;                    // layer_->moving_ is ours
  RebalanceStats stats_;
};

/// Stages, commits, waits for the stream. Collective.
/// @param stream the one that forward calls run on
RebalanceStats rebalance(DeviceMoeLayer& layer, const ExpertMap& new_map, Communicator& host,
                         DeviceCommunicator& world, StreamHandle stream,
                         const RebalanceOptions& options = {});

}  // namespace gantry
