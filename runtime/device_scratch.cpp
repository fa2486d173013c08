#include "runtime/device_scratch.h"

#include <functional>
#include <vector>

namespace gantry {

DeviceScratch::DeviceScratch(const DeviceWeights& weights, const DeviceExperts& experts,
                             const DeviceMoeOptions& options, const DeviceKernelPlan& plan,
                             int64_t max_num_tokens)
    : max_tokens(max_num_tokens),
      max_all(max_num_tokens * weights.parallel.dp_size),
      num_slots(experts.num_slots),
      max_own(ceil_div(max_num_tokens, int64_t{weights.parallel.token_group_size()})) {
  const MoeLayerSpec& spec = weights.spec;
  const int64_t t = max_tokens;
  const int64_t h = spec.hidden_size;
  const int64_t he = spec.expert_hidden_size;
  const int64_t all = max_all;
  const int64_t choices = all * spec.routing.num_slots();
  const ParallelConfig& ranks = weights.parallel;
  const bool by_lists = ranks.world_size() > 1 && options.exchange.kind == ExchangeKind::kAllToAll;
  const bool ordered = ranks.world_size() > 1 && options.exchange.combine == CombineOrder::kOrdered;
  const bool groups = ranks.dp_size > 1 || by_lists;  // tokens are not where the caller has them
  const int64_t shared_tokens = weights.shared.size() > 0 ? align_to(t, kTokenTile) : 0;
  max_rows = RowPlan::max_rows(choices, num_slots);

  std::vector<std::function<void()>> slices;  // run when the memory is there
  int64_t end = 0;
  const auto slice = [&](auto& pointer, int64_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    if (count == 0) return;
    const int64_t offset = end;
    slices.emplace_back(
        [this, &pointer, offset] { pointer = reinterpret_cast<T*>(memory.data() + offset); });
    end = align_to(end + count * static_cast<int64_t>(sizeof(T)), kDeviceAlignment);
  };
  slice(router_input, spec.router_input_norm ? t * h : 0);
  slice(logits, t * spec.routing.num_experts);
  slice(topk_ids, t * spec.routing.num_slots());
  slice(topk_weights, t * spec.routing.num_slots());
  slice(identity, t);
  slice(gate, t);
  slice(expert_input, spec.has_latent() ? all * he : 0);
  slice(latent_sum, spec.has_latent() ? all * he : 0);
  slice(base, spec.has_latent() ? all * h : 0);
  slice(all_x, groups ? all * h : 0);
  slice(all_ids, groups ? choices : 0);
  slice(all_weights, groups ? choices : 0);
  slice(partial, groups && !ordered ? all * h : 0);
  slice(own_sum, groups || ordered ? max_own * h : 0);
  slice(token_counts, ranks.world_size() > 1 ? ranks.world_size() : 0);
  const int64_t ep = ranks.ep_size;
  const int64_t num_lists = by_lists ? ep + ranks.token_group_size() : 0;
  slice(lists, num_lists * max_own);
  slice(list_counts, num_lists);
  slice(list_rows, by_lists ? ep * max_own : 0);
  slice(lost, by_lists ? ep : 0);
  slice(pair_counts, by_lists || ordered ? 2 * (ep + ranks.world_size()) : 0);
  const int64_t sent = by_lists && ranks.dp_size > 1 ? ep * max_own : 0;
  slice(send_x, sent * h);
  slice(send_ids, sent * spec.routing.num_slots());
  slice(send_weights, sent * spec.routing.num_slots());
  const int64_t own_choice_rows = RowPlan::max_rows(max_own * spec.routing.num_slots(), ep);
  slice(returned, ordered ? ranks.tp_size * own_choice_rows * he
                          : (by_lists ? ranks.world_size() * max_own * h : 0));
  if (ordered) {
    const int64_t own = max_own * spec.routing.num_slots();
    slice(own_choices.chunk_rows, RowPlan::chunk_row_values(own, ep));
    slice(own_choices.choice_row, own);
    slice(own_choices.row_choice, own_choice_rows);
    slice(own_choices.tiles, RowPlan::max_tiles(own, ep, kTokenTile));
    slice(own_choices.totals, 2);
    slice(choice_list, choices);
    slice(choice_count, 1);
    slice(choice_rows, choices * he);
    slice(returned_shared, spec.shared.intermediate_size > 0 ? ranks.tp_size * max_own * h : 0);
  }
  slice(chunk_rows, RowPlan::chunk_row_values(choices, num_slots));
  slice(choice_row, choices);
  slice(row_choice, max_rows);
  slice(tiles, RowPlan::max_tiles(choices, num_slots, kTokenTile));
  slice(totals, 2);
  slice(rows, max_rows * weights.layout.w13.padded_k);
  slice(intermediate, max_rows * weights.layout.w13.padded_outputs());
  slice(y, max_rows * he);
  if (plan.rows.quantizes()) {
    const DeviceMatrix& w13 = weights.layout.w13;
    if (plan.rows8) slice(rows8, max_rows * w13.padded_k);  // else in `rows`
    slice(row_scales, max_rows * plan.rows.num_groups(w13.padded_k));
    slice(intermediate_codes, max_rows * w13.padded_outputs());
    slice(intermediate_scales, max_rows * plan.rows.num_groups(w13.padded_outputs()));
  }
  slice(shared_rows, shared_tokens * weights.shared_layout.w13.padded_k);
  slice(shared_intermediate, shared_tokens * weights.shared_layout.w13.padded_outputs());
  slice(shared_y, shared_tokens * h);
  slice(host_x, t * h);
  slice(host_router_x, t * h);
  slice(host_out, t * h);
  slice(host_token_ids, t);
  if (shared_tokens > 0 && options.overlap_shared_experts && !options.skip_shared_experts) {
    side = std::make_unique<OwnedStream>(weights.device);
    fork = std::make_unique<OwnedEvent>(weights.device);
    join = std::make_unique<OwnedEvent>(weights.device);
  }
  memory = DeviceBuffer(weights.device, static_cast<size_t>(end));
  for (const auto& set : slices)
    set();
}

}  // namespace gantry
