#include "runtime/device_moe_layer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "runtime/device_forward.h"
#include "runtime/device_kernel_plan.h"
#include "runtime/device_scratch.h"
#include "runtime/device_weights.h"
#include "runtime/input_check.h"

namespace gantry {

DeviceWorkspace::DeviceWorkspace(std::unique_ptr<DeviceScratch> scratch, int64_t max_num_tokens)
    : scratch_(std::move(scratch)), max_num_tokens_(max_num_tokens) {}
DeviceWorkspace::DeviceWorkspace(DeviceWorkspace&& other) noexcept = default;
DeviceWorkspace& DeviceWorkspace::operator=(DeviceWorkspace&& other) noexcept = default;
DeviceWorkspace::~DeviceWorkspace() = default;

int64_t DeviceWorkspace::bytes() const noexcept {
  return static_cast<int64_t>(scratch_->memory.size());
}

DeviceMoeLayer::DeviceMoeLayer(std::shared_ptr<Device> device, const MoeLayerWeights& weights,
                               const ExpertMap& experts, DeviceMoeOptions options)
    : device_(std::move(device)),
      options_(std::move(options)),
      weights_(std::make_unique<DeviceWeights>(device_, weights, experts, options_.threads)),
      plan_(std::make_unique<DeviceKernelPlan>(plan_device_kernels(*weights_, options_))) {
  log(LogLevel::kInfo, "layer {}: {} (sm_{}): {}", weights_->spec.layer, device_->attributes().name,
      device_->attributes().compute_capability, plan_->text);
}

DeviceMoeLayer::~DeviceMoeLayer() = default;

int64_t DeviceMoeLayer::weight_bytes() const noexcept {
  return static_cast<int64_t>(weights_->slots.size() + weights_->shared.size());
}

const std::string& DeviceMoeLayer::kernel_text() const noexcept { return plan_->text; }

DeviceWorkspace DeviceMoeLayer::make_workspace(int64_t max_num_tokens) const {
  GANTRY_CHECK(max_num_tokens > 0, ErrorCode::kInvalidArgument,
               "max_num_tokens: expected at least 1, found {}", max_num_tokens);
  return {std::make_unique<DeviceScratch>(*weights_, options_, *plan_, max_num_tokens),
          max_num_tokens};
}

void DeviceMoeLayer::forward(const DeviceMoeInput& input, DeviceWorkspace& workspace, float* out,
                             StreamHandle stream) const {
  const MoeLayerSpec& spec = weights_->spec;
  const int64_t k = spec.routing.num_slots();
  const auto from = [](auto* values, int64_t first) {
    return values == nullptr ? values : values + first;
  };
  for (int64_t begin = 0; begin < input.num_tokens; begin += workspace.max_num_tokens_) {
    DeviceMoeInput part = input;
    part.num_tokens = std::min(workspace.max_num_tokens_, input.num_tokens - begin);
    part.hidden_states = from(input.hidden_states, begin * spec.hidden_size);
    part.router_hidden_states = from(input.router_hidden_states, begin * spec.hidden_size);
    part.router_logits = from(input.router_logits, begin * spec.routing.num_experts);
    part.topk_ids = from(input.topk_ids, begin * k);
    part.topk_weights = from(input.topk_weights, begin * k);
    part.token_ids = from(input.token_ids, begin);
    DeviceForward(*weights_, options_, *plan_, *workspace.scratch_, stream)
        .run(part, out + begin * spec.hidden_size);
  }
}

void DeviceMoeLayer::forward_host(const MoeInput& input, DeviceWorkspace& workspace,
                                  std::span<float> out) const {
  const MoeLayerSpec& spec = weights_->spec;
  check_input(spec, input, out);
  if (spec.hash_table && input.topk_ids.empty()) {
    for (const int32_t id : input.token_ids) {
      GANTRY_CHECK(id >= 0 && id < weights_->vocab, ErrorCode::kInvalidArgument,
                   "hash routing: expected a token id below {}, found {}", weights_->vocab, id);
    }
    GANTRY_CHECK(input.token_ids.size() * static_cast<size_t>(spec.hidden_size) ==
                     input.hidden_states.size(),
                 ErrorCode::kInvalidArgument, "hash routing: expected one token id a token");
  }
  DeviceScratch& scratch = *workspace.scratch_;
  const OwnedStream stream(device_);
  const auto send = [&](auto* target, const auto& values, int64_t begin, int64_t count,
                        int64_t width) {
    if (values.empty()) return static_cast<decltype(target)>(nullptr);
    device_->copy_in(target, values.data() + begin * width,
                     static_cast<size_t>(count * width) * sizeof(*target), stream.handle());
    return target;
  };
  const int64_t h = spec.hidden_size;
  const int64_t k = spec.routing.num_slots();
  const auto num_tokens = static_cast<int64_t>(input.hidden_states.size()) / h;
  for (int64_t begin = 0; begin < num_tokens; begin += workspace.max_num_tokens_) {
    const int64_t count = std::min(workspace.max_num_tokens_, num_tokens - begin);
    DeviceMoeInput part;
    part.num_tokens = count;
    part.hidden_states = send(scratch.host_x, input.hidden_states, begin, count, h);
    part.router_hidden_states =
        send(scratch.host_router_x, input.router_hidden_states, begin, count, h);
    part.router_logits =
        send(scratch.logits, input.router_logits, begin, count, spec.routing.num_experts);
    part.topk_ids = send(scratch.topk_ids, input.topk_ids, begin, count, k);
    part.topk_weights = send(scratch.topk_weights, input.topk_weights, begin, count, k);
    part.physical_ids = input.physical_ids;
    part.token_ids = send(scratch.host_token_ids, input.token_ids, begin, count, 1);
    forward(part, workspace, scratch.host_out, stream.handle());
    device_->copy_out(out.data() + begin * h, scratch.host_out,
                      static_cast<size_t>(count * h) * sizeof(float), stream.handle());
    device_->synchronize(stream.handle());
  }
}

std::vector<int64_t> DeviceMoeLayer::last_tokens_per_expert(
    const DeviceWorkspace& workspace) const {
  const DeviceScratch& scratch = *workspace.scratch_;
  std::vector<int64_t> tokens(static_cast<size_t>(weights_->spec.num_experts), 0);
  std::vector<int32_t> rows(static_cast<size_t>(scratch.last_choices));
  std::vector<int32_t> ids(rows.size());
  if (rows.empty()) return tokens;
  const size_t bytes = rows.size() * sizeof(int32_t);
  device_->copy_out(rows.data(), scratch.choice_row, bytes, nullptr);
  device_->copy_out(ids.data(), scratch.last_ids, bytes, nullptr);
  device_->synchronize(nullptr);
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i] >= 0) ++tokens[static_cast<size_t>(ids[i])];
  return tokens;
}

}  // namespace gantry
