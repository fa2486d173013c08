#include "runtime/device_moe_layer.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/log_format.h"
#include "runtime/device_exchange.h"
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
                               const ExpertMap& experts, DeviceMoeOptions options,
                               DeviceCommunicator* world)
    : device_(std::move(device)),
      options_(std::move(options)),
      weights_(std::make_unique<DeviceWeights>(device_, weights, experts, options_.threads)),
      plan_(std::make_unique<DeviceKernelPlan>(plan_device_kernels(*weights_, options_))),
      experts_(weights_->experts) {
  weights_->experts.reset();  // from now on the layer's, which may replace them
  log(LogLevel::kInfo, "layer {}: {} (sm_{}): {}", weights_->spec.layer, device_->attributes().name,
      device_->attributes().compute_capability, plan_->text);
  const ParallelConfig& parallel = weights.parallel;
  if (parallel.world_size() == 1) return;
  GANTRY_CHECK(world != nullptr, ErrorCode::kInvalidArgument,
               "layer {}: {} needs a device communicator, found none", weights.spec.layer,
               describe(parallel));
  exchange_ = std::make_unique<DeviceExchange>(*weights_, options_, *world);
}

DeviceMoeLayer::~DeviceMoeLayer() = default;

int64_t DeviceMoeLayer::weight_bytes() const noexcept {
  return static_cast<int64_t>(experts()->slots.size() + weights_->shared.size());
}

std::shared_ptr<const DeviceExperts> DeviceMoeLayer::experts() const {
  const std::scoped_lock lock(mutex_);
  return experts_;
}

const std::string& DeviceMoeLayer::kernel_text() const noexcept { return plan_->text; }

DeviceWorkspace DeviceMoeLayer::make_workspace(int64_t max_num_tokens) const {
  GANTRY_CHECK(max_num_tokens > 0, ErrorCode::kInvalidArgument,
               "max_num_tokens: expected at least 1, found {}", max_num_tokens);
  if (exchange_ != nullptr) exchange_->reserve(max_num_tokens);
  return {std::make_unique<DeviceScratch>(*weights_, *experts(), options_, *plan_, max_num_tokens),
          max_num_tokens};
}

ExchangeBytes DeviceMoeLayer::bytes_moved() const noexcept {
  return exchange_ == nullptr ? ExchangeBytes() : exchange_->bytes();
}

void DeviceMoeLayer::forward(const DeviceMoeInput& input, DeviceWorkspace& workspace, float* out,
                             StreamHandle stream) const {
  run(input, workspace, out, /*exact=*/false, stream);
}

void DeviceMoeLayer::run(const DeviceMoeInput& input, DeviceWorkspace& workspace, float* out,
                         bool exact, StreamHandle stream) const {
  const MoeLayerSpec& spec = weights_->spec;
  const int64_t k = spec.routing.num_slots();
  const auto from = [](auto* values, int64_t first) {
    return values == nullptr ? values : values + first;
  };
  std::vector<int64_t>& group_tokens = workspace.scratch_->group_tokens;
  const std::shared_ptr<const DeviceExperts> experts = this->experts();
  GANTRY_CHECK(experts->num_slots <= workspace.scratch_->num_slots, ErrorCode::kInvalidArgument,
               "layer {}: the workspace was made for {} expert slots, the rank now has {}",
               spec.layer, workspace.scratch_->num_slots, experts->num_slots);
  const int64_t longest = check_groups(input);
  for (int64_t chunk = 0; chunk < longest; chunk += workspace.max_num_tokens_) {
    const auto in_chunk = [&](int64_t tokens) {
      return std::clamp<int64_t>(tokens - chunk, 0, workspace.max_num_tokens_);
    };
    group_tokens.clear();  // a group with fewer tokens takes part until the longest is done
    for (const int64_t tokens : input.group_tokens)
      group_tokens.push_back(in_chunk(tokens));
    const int64_t begin = std::min(chunk, input.num_tokens);
    DeviceMoeInput part = input;
    part.num_tokens = in_chunk(input.num_tokens);
    part.group_tokens = group_tokens;
    part.hidden_states = from(input.hidden_states, begin * spec.hidden_size);
    part.router_hidden_states = from(input.router_hidden_states, begin * spec.hidden_size);
    part.router_logits = from(input.router_logits, begin * spec.routing.num_experts);
    part.topk_ids = from(input.topk_ids, begin * k);
    part.topk_weights = from(input.topk_weights, begin * k);
    part.token_ids = from(input.token_ids, begin);
    DeviceForward(*weights_, *experts, options_, *plan_, exchange_.get(), *workspace.scratch_,
                  stream)
        .run(part, exact, from(out, begin * spec.hidden_size));
  }
}

// The most tokens of any token group: all ranks run as many chunks.
int64_t DeviceMoeLayer::check_groups(const DeviceMoeInput& input) const {
  const ParallelConfig& parallel = weights_->parallel;
  if (parallel.dp_size == 1) return input.num_tokens;
  GANTRY_CHECK(input.group_tokens.size() == static_cast<size_t>(parallel.dp_size),
               ErrorCode::kInvalidArgument,
               "group_tokens: expected those of {} token groups, found {}", parallel.dp_size,
               input.group_tokens.size());
  const int64_t own = input.group_tokens[static_cast<size_t>(parallel.dp_rank())];
  GANTRY_CHECK(own == input.num_tokens, ErrorCode::kInvalidArgument,
               "group_tokens: {} for token group {}, whose batch has {}", own, parallel.dp_rank(),
               input.num_tokens);
  return *std::max_element(input.group_tokens.begin(), input.group_tokens.end());
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
  std::vector<int64_t> group_tokens;
  int64_t longest = num_tokens;
  if (exchange_ != nullptr) {
    group_tokens = exchange_->gather_counts(num_tokens, scratch, stream.handle());
    longest = *std::max_element(group_tokens.begin(), group_tokens.end());
  }
  std::vector<int64_t> chunk_tokens(group_tokens.size());
  for (int64_t chunk = 0; chunk < longest; chunk += workspace.max_num_tokens_) {
    const auto in_chunk = [&](int64_t tokens) {
      return std::clamp<int64_t>(tokens - chunk, 0, workspace.max_num_tokens_);
    };
    std::transform(group_tokens.begin(), group_tokens.end(), chunk_tokens.begin(), in_chunk);
    const int64_t begin = std::min(chunk, num_tokens);
    const int64_t count = in_chunk(num_tokens);
    DeviceMoeInput part;
    part.num_tokens = count;
    part.group_tokens = chunk_tokens;
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
    if (exchange_ != nullptr && exchange_->overflows(scratch, stream.handle()))
      run(part, workspace, scratch.host_out, /*exact=*/true, stream.handle());
    device_->copy_out(out.data() + begin * h, scratch.host_out,
                      static_cast<size_t>(count * h) * sizeof(float), stream.handle());
    if (exchange_ != nullptr) {
      exchange_->world().wait(stream.handle());  // not for ever
    } else {
      device_->synchronize(stream.handle());
    }
  }
}

int64_t DeviceMoeLayer::lost_tokens(DeviceWorkspace& workspace, StreamHandle stream) const {
  return exchange_ == nullptr ? 0 : exchange_->lost_tokens(*workspace.scratch_, stream);
}

std::vector<int64_t> DeviceMoeLayer::last_tokens_per_expert(
    const DeviceWorkspace& workspace) const {
  const DeviceScratch& scratch = *workspace.scratch_;
  std::vector<int64_t> tokens(static_cast<size_t>(weights_->spec.num_experts), 0);
  std::vector<int32_t> rows(static_cast<size_t>(scratch.last_choices));
  std::vector<int32_t> ids(rows.size());
  if (rows.empty() || weights_->parallel.tp_rank() != 0) return tokens;
  const size_t bytes = rows.size() * sizeof(int32_t);
  device_->copy_out(rows.data(), scratch.choice_row, bytes, nullptr);
  device_->copy_out(ids.data(), scratch.last_ids, bytes, nullptr);
  device_->synchronize(nullptr);
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i] >= 0) ++tokens[static_cast<size_t>(ids[i])];
  return tokens;
}

}  // namespace gantry
