#include "runtime/input_check.h"

#include <string_view>

#include "kernels/base/check.h"

namespace gantry {

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

}  // namespace gantry
