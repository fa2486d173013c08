#include "runtime/layer_operands.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/float_convert.h"
#include "kernels/base/log_format.h"

namespace gantry {
namespace {

FusedExpertsKernels select(const SlotLayout& layout, const FusedMoeOptions& options, int layer,
                           std::string_view what, bool int8_rows = false) {
  const KernelRequest request{.weights = layout.dtype,
                              .activations = options.activations,
                              .isas = options.isas,
                              .avx512_dot = options.avx512_dot,
                              .batch_invariant = options.batch_invariant,
                              .int8_rows = int8_rows};
  const FusedExpertsKernels kernels =
      select_fused_experts(request, layout.w13_panels.format, layout.w2_panels.format);
  log(LogLevel::kDebug, "layer {}: {}: {} weights: {}; w2 {}: {} ({})", layer, what,
      to_string(layout.w13_panels), to_string(kernels.w13), to_string(layout.w2_panels),
      to_string(kernels.w2), fmt::join(refused_panel_gemms(request), "; "));
  return kernels;
}

bool all_bf16(const Buffer<float>& values) {
  return std::all_of(values.data(), values.data() + values.size(),
                     [](float value) { return round_to_bf16(value) == value; });
}

DenseOperand pack_dense(const Buffer<float>& matrix, const Buffer<float>& bias, int64_t n,
                        int64_t k, FusedMoeOptions options, int layer, std::string_view what) {
  DenseOperand operand;
  if (matrix.size() == 0) return operand;
  SlotLayout weights;
  weights.dtype = all_bf16(matrix) ? DType::kBF16 : DType::kF32;
  operand.layout = {weights.dtype, /*gated=*/false, n, k};
  operand.panels = ByteBuffer(static_cast<size_t>(operand.layout.bytes()));
  pack_matrix(operand.layout, matrix.data(), operand.panels.data());
  operand.bias = bias.size() > 0 ? bias.data() : nullptr;
  options.activations = ActivationDType::kF32;
  operand.kernels = select(weights, options, layer, what);
  return operand;
}

void check_input_scales(const MoeLayerWeights& weights) {
  if (!weights.layout.static_inputs) return;
  for (int64_t slot = 0; slot < weights.num_slots; ++slot) {
    for (const Part part : kExpertParts) {
      if (part == Part::kW3 && !weights.layout.gated) continue;
      GANTRY_CHECK(input_scale(weights, slot, part) > 0.0F, ErrorCode::kUnsupported,
                   "layer {}, slot {}: the input scale of {} is missing or not above 0; bf16 and "
                   "f32 activations can run",
                   weights.spec.layer, slot, to_string(part));
    }
  }
}

// Whether w1 and w3 of some expert cannot share the rows that they read.
bool input_scales_differ(const MoeLayerWeights& weights) {
  if (!weights.layout.static_inputs || !weights.layout.gated) return false;
  for (int64_t slot = 0; slot < weights.num_slots; ++slot) {
    if (input_scale(weights, slot, Part::kW1) != input_scale(weights, slot, Part::kW3)) return true;
  }
  return false;
}

RowQuantizer make_quantizer(const MoeLayerWeights& weights, const RowFormat& format, Part part) {
  RowQuantizer quantizer;
  quantizer.format = format;
  if (format.is_static()) {
    quantizer.scale_offset = weights.layout.input_scale_offset(part);
  }
  const ParallelConfig& parallel = weights.parallel;
  if (part != Part::kW2) {
    quantizer.whole_columns = weights.spec.expert_hidden_size;
    return quantizer;
  }
  quantizer.whole_columns = weights.spec.intermediate_size;
  for (int rank = 0; rank < parallel.tp_size; ++rank) {
    const Slice slice =
        split_in_units(quantizer.whole_columns, weights.cut_unit, parallel.tp_size, rank);
    if (rank == parallel.tp_rank()) quantizer.first_column = slice.begin;
    const int64_t group = quantizer.format.group_size;
    const bool cuts_group = rank > 0 && group > 0 && slice.begin % group != 0;
    const bool cuts_row = rank > 0 && quantizer.format.needs_whole_row();
    quantizer.spans_ranks |= quantizer.format.needs_amax() && (cuts_group || cuts_row);
  }
  return quantizer;
}

}  // namespace

float input_scale(const MoeLayerWeights& weights, int64_t slot, Part part) {
  const SlotLayout& layout = weights.layout;
  return *reinterpret_cast<const float*>(weights.slots.data() + slot * layout.stride_bytes +
                                         layout.input_scale_offset(part));
}

LayerOperands::LayerOperands(MoeLayerWeights loaded, ExpertMap map, const FusedMoeOptions& options)
    : weights(std::move(loaded)), experts(std::move(map)) {
  const MoeLayerSpec& spec = weights.spec;
  const int ep_rank = weights.parallel.ep_rank();
  routed = weights.layout.experts(weights.slots.data(), weights.num_slots);
  if (options.activations == ActivationDType::kScheme) {
    GANTRY_CHECK(weights.activations.refusal.empty(), ErrorCode::kUnsupported,
                 "layer {}: activations cannot be quantized as the checkpoint declares: {}",
                 spec.layer, weights.activations.refusal);
    check_input_scales(weights);
    log(LogLevel::kDebug, "layer {}: inputs of the experts: {}", spec.layer,
        describe(weights.activations));
  }
  const RowFormat format = options.activations == ActivationDType::kScheme
                               ? weights.activations.format
                               : RowFormat{.kind = RowQuantization::kInt8Token};
  FusedMoeOptions routed_options = options;
  bool int8_rows = false;
  if (options.activations == ActivationDType::kScheme ||
      options.activations == ActivationDType::kInt8) {
    routed_options.activations = ActivationDType::kScheme;
    x_quantizer = make_quantizer(weights, format, Part::kW1);
    const bool differ = format.is_static() && input_scales_differ(weights);
    const bool experts_move = weights.parallel.ep_size > 1;
    room_for_up_rows = differ || (experts_move && format.is_static() && weights.layout.gated);
    if (differ) {
      up_quantizer = make_quantizer(weights, format, Part::kW3);
      log(LogLevel::kInfo,
          "layer {}: static input scales of w1 and w3 differ: their inputs are quantized apart",
          spec.layer);
    }
    intermediate_quantizer = make_quantizer(weights, format, Part::kW2);
    int8_rows =
        format.kind == RowQuantization::kInt8Token || format.kind == RowQuantization::kInt8Static;
  }
  routed_activations = routed_options.activations;
  routed_kernels = select(weights.layout, routed_options, spec.layer, "experts", int8_rows);
  if (weights.shared.size() > 0) {
    shared = weights.shared_layout.experts(weights.shared.data(), 1);
    shared_kernels = select(weights.shared_layout, routed_options, spec.layer, "shared experts");
  }
  const auto dense = [&](const Buffer<float>& matrix, const Buffer<float>& bias, int64_t n,
                         int64_t k, std::string_view what) {
    return pack_dense(matrix, bias, n, k, options, spec.layer, what);
  };
  router = dense(weights.router, weights.router_bias, spec.routing.num_experts, spec.hidden_size,
                 "router");
  latent_in = dense(weights.latent_in, weights.latent_in_bias, spec.expert_hidden_size,
                    spec.hidden_size, "latent in");
  latent_out = dense(weights.latent_out, weights.latent_out_bias, spec.hidden_size,
                     spec.expert_hidden_size, "latent out");

  logical_to_slot = experts.computed_slots(ep_rank);
  for (int e = 0; e < experts.num_experts(); ++e)
    logical_to_rank.push_back(experts.computing_rank(e));
  for (int p = 0; p < experts.num_physical(); ++p) {
    physical_to_rank.push_back(experts.owner(p));
    physical_to_slot.push_back(experts.owner(p) == ep_rank ? experts.slot(p) : -1);
    physical_to_logical.push_back(experts.logical(p));
  }
  if (options.spread_replicas && experts.has_replicas()) {
    replicas = ReplicaTable(experts);
    log(LogLevel::kDebug, "layer {}: tokens are spread over {} copies of {} experts", spec.layer,
        experts.num_physical(), experts.num_experts());
  }
  const auto logical = experts.slot_to_logical(ep_rank);
  slot_order.resize(logical.size());
  std::iota(slot_order.begin(), slot_order.end(), 0);
  std::stable_sort(slot_order.begin(), slot_order.end(), [&](int32_t a, int32_t b) {
    return logical[static_cast<size_t>(a)] < logical[static_cast<size_t>(b)];
  });
}

}  // namespace gantry
