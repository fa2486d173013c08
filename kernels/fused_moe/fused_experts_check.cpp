#include "kernels/fused_moe/fused_experts_check.h"

#include <algorithm>

#include "kernels/base/check.h"

namespace gantry {

void check_call(const FusedExpertsCall& call, const FusedExpertsScratch& scratch,
                const FusedExpertsScratchSize& needed) {
  const PackedExperts& e = call.experts;
  const int64_t h = e.hidden_size();
  GANTRY_CHECK(e.w2.n == h && e.w13.num_outputs() == e.w2.k && e.w13.dtype == e.w2.dtype &&
                   e.w13.format.coded() == e.w2.format.coded(),
               ErrorCode::kInvalidArgument, "fused_experts: w13 [{}, {}] and w2 [{}, {}]", e.w13.n,
               e.w13.k, e.w2.n, e.w2.k);
  GANTRY_CHECK(is_gated(call.activation.kind) == e.w13.gated, ErrorCode::kInvalidArgument,
               "fused_experts: activation {} and {} w13", to_string(call.activation.kind),
               e.w13.gated ? "a gated" : "an ungated");
  GANTRY_CHECK(!call.has_up_rows() ||
                   (e.w13.gated && call.activations == ActivationDType::kScheme &&
                    call.up_quantizer.format == call.x_quantizer.format &&
                    call.up_quantizer.format.is_static() && call.up_quantizer.scale_offset >= 0 &&
                    call.x_quantizer.scale_offset >= 0),
               ErrorCode::kInvalidArgument,
               "fused_experts: up_quantizer: expected that of x with other static scales, and a "
               "gated w13 under {}",
               to_string(ActivationDType::kScheme));
  const auto slots = static_cast<size_t>(e.num_slots);
  GANTRY_CHECK(call.rows.offsets.size() == slots + 1 && call.rows.order.size() == slots &&
                   call.rows.offsets.front() == 0 &&
                   std::is_sorted(call.rows.offsets.begin(), call.rows.offsets.end()),
               ErrorCode::kInvalidArgument,
               "fused_experts: expected {} slots and ascending row offsets from 0, found {} and {}",
               slots, call.rows.order.size(), call.rows.offsets.size());
  const bool own_rows = call.rows.out_row != nullptr;
  GANTRY_CHECK((own_rows || call.x.size() == call.out.size()) &&
                   call.x.size() % static_cast<size_t>(h) == 0 &&
                   call.out.size() % static_cast<size_t>(h) == 0,
               ErrorCode::kInvalidArgument, "fused_experts: {} inputs, {} outputs of [T, {}]",
               call.x.size(), call.out.size(), h);
  const auto fits = [&](int32_t row) {
    return row >= 0 && static_cast<size_t>(row) < call.out.size() / static_cast<size_t>(h);
  };
  GANTRY_CHECK(!own_rows || (call.rows.choice != nullptr &&
                             std::all_of(call.rows.out_row,
                                         call.rows.out_row + call.rows.offsets.back(), fits)),
               ErrorCode::kInvalidArgument,
               "fused_experts: an output row outside the {} there are, or no choices",
               call.out.size() / static_cast<size_t>(h));
  GANTRY_CHECK(needed.rows_bytes <= static_cast<int64_t>(scratch.rows.size()) &&
                   needed.intermediate_bytes <= static_cast<int64_t>(scratch.intermediate.size()) &&
                   slots < scratch.task_offsets.size(),
               ErrorCode::kInvalidArgument,
               "fused_experts: {} rows need {} + {} bytes of scratch, there are {} + {}",
               call.rows.offsets.back(), needed.rows_bytes, needed.intermediate_bytes,
               scratch.rows.size(), scratch.intermediate.size());
}

}  // namespace gantry
