#include "tools/stats_hessians.h"

#include <algorithm>
#include <vector>

#include "kernels/base/check.h"
#include "loader/safetensors.h"
#include "loader/tensor_geometry.h"
#include "runtime/calibration.h"

namespace gantry::cli {

std::shared_ptr<const GptqHessian> StatsHessians::factors(const MoeLayerSpec& spec, int expert,
                                                          bool down) {
  std::unique_lock lock(mutex_, std::defer_lock);
  if (!down) {
    lock.lock();  // while one thread factorizes what experts share, the others need the result
    if (const auto known = shared_.find(spec.layer); known != shared_.end()) return known->second;
  }
  const SafetensorsFile file(directory_ / calibration_file_name(spec.layer));
  const std::string name = down ? "down.hessian" : "gate_up.hessian";
  const int64_t n = part_size(down ? Part::kW2 : Part::kW1, spec).in;
  const TensorInfo* info = file.find(name);
  GANTRY_CHECK(info != nullptr, ErrorCode::kInvalidArgument,
               "{}: no {}: run gantry calibrate with --hessians", file.path().string(), name);
  const int64_t count = info->shape.empty() ? 0 : info->shape[0];
  GANTRY_CHECK(info->dtype == DType::kF32 && info->shape == std::vector<int64_t>({count, n, n}) &&
                   (count == spec.num_experts || (!down && count == 1)),
               ErrorCode::kFormat, "{}: {}: expected [{}, {}, {}] f32, found {}",
               file.path().string(), name, down ? "E" : "1 or E", n, n, describe(*info));
  const bool shared = !down && count == 1;
  if (shared) {
    shared_.clear();  // experts come layer by layer
  } else if (lock.owns_lock()) {
    lock.unlock();
  }
  std::vector<float> hessian(static_cast<size_t>(n * n));
  const int64_t bytes = n * n * 4;
  file.read(info->begin + (shared ? 0 : expert * bytes), hessian.data(), bytes);
  bool reached = false;
  for (int64_t i = 0; i < n; ++i)
    reached = reached || hessian[static_cast<size_t>(i * n + i)] != 0.0F;
  if (!reached) return nullptr;
  auto factors = std::make_shared<const GptqHessian>(hessian, n, settings_,
                                                     Threads{.count = 1, .executor = {}});
  if (shared) shared_.emplace(spec.layer, factors);
  return factors;
}

}  // namespace gantry::cli
