#include "runtime/device_weights.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "kernels/cuda/pack_device.h"
#include "runtime/layer_operands.h"

namespace gantry {
namespace {

template <typename T>
DeviceBuffer upload(const std::shared_ptr<Device>& device, const T* values, size_t count) {
  DeviceBuffer buffer(device, count * sizeof(T));
  device->copy_in(buffer.data(), values, buffer.size(), nullptr);
  return buffer;
}

template <typename T>
DeviceBuffer upload(const std::shared_ptr<Device>& device, const Buffer<T>& values) {
  return upload(device, values.data(), values.size());
}

DeviceExperts::IdMap upload_ids(const std::shared_ptr<Device>& device,
                                const std::vector<int32_t>& slots,
                                const std::vector<int32_t>& ranks,
                                const std::vector<int32_t>& ep_ranks) {
  return {upload(device, slots.data(), slots.size()), upload(device, ranks.data(), ranks.size()),
          upload(device, ep_ranks.data(), ep_ranks.size()), static_cast<int32_t>(slots.size())};
}

void pack_matrix_tiles(const PackedLayout& layout, const DeviceMatrix& matrix,
                       const std::byte* panels, const Threads& threads, std::byte* target) {
  constexpr int64_t kTilesOfTask = 4;
  parallel_for(threads, ceil_div(matrix.num_tiles, kTilesOfTask), [&](int64_t task) {
    const int64_t begin = task * kTilesOfTask;
    pack_device_tiles(layout, matrix, panels, begin,
                      std::min(matrix.num_tiles, begin + kTilesOfTask), target);
  });
}

// Each rank of a TP group has w2's whole bias; the first one adds it.
void pack_slot(const SlotLayout& host, const DeviceSlotLayout& layout, const std::byte* slot,
               bool adds_w2_bias, const Threads& threads, std::byte* target) {
  std::memset(target, 0, static_cast<size_t>(layout.stride_bytes));
  pack_matrix_tiles(host.w13_panels, layout.w13, slot + host.w13.offset, threads, target);
  pack_matrix_tiles(host.w2_panels, layout.w2, slot + host.w2.offset, threads,
                    target + layout.w2_offset);
  if (!host.bias) return;
  std::memcpy(target + layout.b13_offset, slot + host.b13.offset,
              static_cast<size_t>(host.b13.bytes));
  if (!adds_w2_bias) return;
  std::memcpy(target + layout.b2_offset, slot + host.b2.offset, static_cast<size_t>(host.b2.bytes));
}

// Two pieces of pinned memory, each with its stream: one is packed while the other is copied.
DeviceBuffer upload_slots(const std::shared_ptr<Device>& device, const SlotLayout& host,
                          const DeviceSlotLayout& layout, const std::byte* slots, int64_t count,
                          bool adds_w2_bias, const Threads& threads) {
  const auto bytes = static_cast<size_t>(layout.stride_bytes);
  DeviceBuffer target(device, static_cast<size_t>(count) * bytes);
  std::array<PinnedBuffer, 2> staging = {PinnedBuffer(device, bytes), PinnedBuffer(device, bytes)};
  std::array<OwnedStream, 2> streams = {OwnedStream(device), OwnedStream(device)};
  for (int64_t s = 0; s < count; ++s) {
    const auto turn = static_cast<size_t>(s % 2);
    device->synchronize(streams[turn].handle());
    pack_slot(host, layout, slots + s * host.stride_bytes, adds_w2_bias, threads,
              staging[turn].data());
    device->copy_in(target.data() + s * layout.stride_bytes, staging[turn].data(), bytes,
                    streams[turn].handle());
  }
  for (const OwnedStream& stream : streams)
    device->synchronize(stream.handle());
  return target;
}

std::string static_scale_obstacle(const MoeLayerWeights& weights) {
  if (!weights.layout.static_inputs) return "no static input scales were loaded";
  for (int64_t slot = 0; slot < weights.num_slots; ++slot) {
    const float w1 = input_scale(weights, slot, Part::kW1);
    if (!(w1 > 0.0F) || !(input_scale(weights, slot, Part::kW2) > 0.0F)) {
      return fmt::format("slot {}: an input scale is missing or not above 0", slot);
    }
    if (!weights.layout.gated || input_scale(weights, slot, Part::kW3) == w1) continue;
    return fmt::format("slot {}: the static input scales of w1 and w3 differ ({} and {})", slot, w1,
                       input_scale(weights, slot, Part::kW3));
  }
  return "";
}

// A rank has a piece of w2's inputs: of its own scale only if no other rank has a part of what the
// scale follows from.
bool scales_span_ranks(const MoeLayerWeights& weights) {
  const RowFormat& format = weights.activations.format;
  for (int rank = 1; format.needs_amax() && rank < weights.parallel.tp_size; ++rank) {
    const Slice slice = split_in_units(weights.spec.intermediate_size, weights.cut_unit,
                                       weights.parallel.tp_size, rank);
    if (format.group_size == 0 || slice.begin % format.group_size != 0) return true;
  }
  return false;
}

std::string find_activations_obstacle(const MoeLayerWeights& weights) {
  if (!weights.activations.refusal.empty()) return weights.activations.refusal;
  if (scales_span_ranks(weights)) return "scales of w2's inputs follow from several ranks' columns";
  return weights.activations.format.is_static() ? static_scale_obstacle(weights) : "";
}

DeviceSlotLayout layout_of(const SlotLayout& host, int layer, std::string_view what) {
  if (!host.w13_panels.format.coded() && host.dtype == DType::kF32) {
    log(LogLevel::kWarn, "layer {}: {}: f32 weights are rounded to bf16 for the GPU", layer, what);
  }
  return device_slot_layout(host.w13_panels, host.w2_panels, host.bias);
}

void check_supported(const MoeLayerWeights& weights) {
  const MoeLayerSpec& spec = weights.spec;
  GANTRY_CHECK(!weights.parallel.sequence_parallel, ErrorCode::kUnsupported,
               "layer {}: on GPUs every rank of a token group has all of its tokens; sequence "
               "parallel ranks have parts",
               spec.layer);
  GANTRY_CHECK(weights.num_slots > 0, ErrorCode::kUnsupported,
               "layer {}: rank {} holds no expert, which GPU kernels cannot plan for", spec.layer,
               weights.parallel.rank);
  GANTRY_CHECK(spec.routing.method != RoutingMethod::kCustom, ErrorCode::kUnsupported,
               "layer {}: custom routing is a host function; hand in topk_ids and topk_weights",
               spec.layer);
  for (const int32_t id : weights.hash_table.span()) {
    GANTRY_CHECK(id >= 0 && id < spec.routing.num_experts, ErrorCode::kInvalidArgument,
                 "layer {}: hash table: expected expert ids below {}, found {}", spec.layer,
                 spec.routing.num_experts, id);
  }
}

}  // namespace

DeviceExperts::DeviceExperts(const std::shared_ptr<Device>& device, ExpertMap experts, int ep_rank,
                             DeviceBuffer memory)
    : map(std::move(experts)), num_slots(map.num_slots(ep_rank)), slots(std::move(memory)) {
  std::vector<int32_t> order(static_cast<size_t>(map.num_experts()));
  std::iota(order.begin(), order.end(), 0);
  std::vector<int32_t> ep_ranks;
  for (int expert = 0; expert < map.num_experts(); ++expert)
    ep_ranks.push_back(map.computing_rank(expert));
  const std::vector<int32_t> computed = map.computed_slots(ep_rank);
  logical = upload_ids(device, computed, order, ep_ranks);
  std::vector<int32_t> physical_slots;
  std::vector<int32_t> owners;
  std::vector<int32_t> logical_of;
  for (int p = 0; p < map.num_physical(); ++p) {
    physical_slots.push_back(map.owner(p) == ep_rank ? map.slot(p) : -1);
    logical_of.push_back(map.logical(p));
    owners.push_back(map.owner(p));
  }
  physical = upload_ids(device, physical_slots, logical_of, owners);
  device->synchronize(nullptr);  // the vectors above end here
}

DeviceWeights::DeviceWeights(std::shared_ptr<Device> target, const MoeLayerWeights& weights,
                             const ExpertMap& map, const Threads& threads)
    : device(std::move(target)),
      spec(weights.spec),
      activations(weights.activations),
      parallel(weights.parallel) {
  check_supported(weights);
  const int ep_rank = parallel.ep_rank();
  GANTRY_CHECK(map.num_experts() == spec.num_experts && map.ep_size() == parallel.ep_size &&
                   map.num_slots(ep_rank) == weights.num_slots,
               ErrorCode::kInvalidArgument, "layer {}: weights were loaded for another expert map",
               spec.layer);
  layout = layout_of(weights.layout, spec.layer, "experts");
  activations_obstacle = find_activations_obstacle(weights);
  std::vector<float> static_scales;
  if (activations.format.is_static() && activations_obstacle.empty()) {
    for (const Part part : {Part::kW1, Part::kW2}) {
      for (int64_t slot = 0; slot < weights.num_slots; ++slot)
        static_scales.push_back(input_scale(weights, slot, part));
    }
  }
  input_scales = upload(device, static_scales.data(), static_scales.size());
  const bool adds_w2_bias = parallel.tp_rank() == 0;
  experts = std::make_shared<const DeviceExperts>(
      device, map, ep_rank,
      upload_slots(device, weights.layout, layout, weights.slots.data(), weights.num_slots,
                   adds_w2_bias, threads));
  if (weights.shared.size() > 0) {
    shared_layout = layout_of(weights.shared_layout, spec.layer, "shared experts");
    shared = upload_slots(device, weights.shared_layout, shared_layout, weights.shared.data(), 1,
                          adds_w2_bias, threads);
  }
  router = upload(device, weights.router);
  router_bias = upload(device, weights.router_bias);
  correction_bias = upload(device, weights.correction_bias);
  per_expert_scale = upload(device, weights.per_expert_scale);
  router_scale = upload(device, weights.router_scale);
  output_norm = upload(device, weights.output_norm);
  hash_table = upload(device, weights.hash_table);
  vocab = static_cast<int64_t>(weights.hash_table.size()) / std::max(1, spec.routing.top_k);
  shared_gate = upload(device, weights.shared_gate);
  latent_in = upload(device, weights.latent_in);
  latent_out = upload(device, weights.latent_out);
  latent_in_bias = upload(device, weights.latent_in_bias);
  latent_out_bias = upload(device, weights.latent_out_bias);
  device->synchronize(nullptr);
}

}  // namespace gantry
