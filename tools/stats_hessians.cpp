#include "tools/stats_hessians.h"

#include <algorithm>
#include <vector>

#include "kernels/base/check.h"
#include "loader/safetensors.h"
#include "loader/tensor_geometry.h"
#include "runtime/calibration.h"

namespace gantry::cli {

namespace {

// The stack of Hessians [E or 1, n, n] in a layer's file.
struct Stack {
  SafetensorsFile file;
  const TensorInfo* info;
  int64_t n;
  [[nodiscard]] bool shared() const { return info->shape[0] == 1; }
};

Stack open_stack(const std::filesystem::path& directory, const MoeLayerSpec& spec, bool down) {
  Stack stack{SafetensorsFile(directory / calibration_file_name(spec.layer)), nullptr,
              part_size(down ? Part::kW2 : Part::kW1, spec).in};
  const std::string name = down ? "down.hessian" : "gate_up.hessian";
  stack.info = stack.file.find(name);
  GANTRY_CHECK(stack.info != nullptr, ErrorCode::kInvalidArgument,
               "{}: no {}: run gantry calibrate with --hessians", stack.file.path().string(), name);
  const TensorInfo& info = *stack.info;
  const int64_t n = stack.n;
  const int64_t count = info.shape.empty() ? 0 : info.shape[0];
  GANTRY_CHECK(info.dtype == DType::kF32 && info.shape == std::vector<int64_t>({count, n, n}) &&
                   (count == spec.num_experts || (!down && count == 1)),
               ErrorCode::kFormat, "{}: {}: expected [{}, {}, {}] f32, found {}",
               stack.file.path().string(), name, down ? "E" : "1 or E", n, n, describe(info));
  return stack;
}

}  // namespace

std::vector<float> StatsHessians::read(const MoeLayerSpec& spec, int expert, bool down) const {
  const Stack stack = open_stack(directory_, spec, down);
  std::vector<float> hessian(static_cast<size_t>(stack.n * stack.n));
  const int64_t bytes = stack.n * stack.n * 4;
  const bool first = stack.shared() && !down;
  stack.file.read(stack.info->begin + (first ? 0 : expert * bytes), hessian.data(), bytes);
  for (int64_t i = 0; i < stack.n; ++i) {
    if (hessian[static_cast<size_t>(i * stack.n + i)] != 0.0F) return hessian;
  }
  return {};
}

bool StatsHessians::shares_gate_up(const MoeLayerSpec& spec) const {
  return open_stack(directory_, spec, /*down=*/false).shared();
}

std::shared_ptr<const GptqHessian> StatsHessians::factors(const MoeLayerSpec& spec, int expert,
                                                          bool down) {
  std::unique_lock lock(mutex_, std::defer_lock);
  const bool shared = !down && shares_gate_up(spec);
  if (shared) {
    lock.lock();  // while one thread factorizes what experts share, the others need the result
    if (const auto known = shared_.find(spec.layer); known != shared_.end()) return known->second;
    shared_.clear();  // experts come layer by layer
  }
  const std::vector<float> hessian = read(spec, expert, down);
  if (hessian.empty()) return nullptr;
  const int64_t n = part_size(down ? Part::kW2 : Part::kW1, spec).in;
  auto factors = std::make_shared<const GptqHessian>(hessian, n, settings_,
                                                     Threads{.count = 1, .executor = {}});
  if (shared) shared_.emplace(spec.layer, factors);
  return factors;
}

}  // namespace gantry::cli
