#include "kernels/cuda/device.h"

#include <charconv>

#include "kernels/base/check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_kernels.h"
#include "kernels/cuda/weight_fragments.h"

namespace gantry {
namespace {

int device_index(std::string_view name) {
  if (name == "cuda") return 0;
  int index = -1;
  constexpr std::string_view kPrefix = "cuda:";
  if (name.starts_with(kPrefix)) {
    const char* end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, index);
    if (error != std::errc() || rest != end) index = -1;
  }
  GANTRY_CHECK(index >= 0, ErrorCode::kInvalidArgument,
               "device: expected cuda, cuda:N, emulated or emulated:90, found '{}'", name);
  return index;
}

}  // namespace

std::shared_ptr<Device> open_device(std::string_view name) {
  if (name == "emulated") return open_emulated_device();
  if (name == "emulated:90") return open_emulated_device(1, 90);
  return open_cuda_device(device_index(name));
}

std::string launch_problem(const LaunchShape& shape, const DeviceAttributes& attributes) {
  constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;  // of gridDim.x, on every GPU
  if (shape.blocks < 0 || shape.blocks > kMostBlocks) {
    return fmt::format("{} blocks, the limit is {}", shape.blocks, kMostBlocks);
  }
  if (shape.threads < 32 || shape.threads % 32 != 0 ||
      shape.threads > attributes.max_threads_per_block) {
    return fmt::format("{} threads a block, the limit is {}", shape.threads,
                       attributes.max_threads_per_block);
  }
  if (shape.shared_bytes > attributes.shared_bytes_per_block) {
    return fmt::format("{} bytes of shared memory a block, {} has {}", shape.shared_bytes,
                       attributes.name, attributes.shared_bytes_per_block);
  }
  return "";
}

bool takes_wide_tiles(const DeviceMatrix& matrix) noexcept {
  return bits_of(matrix.element) == 16 || folds_scales(matrix);
}

bool takes_rows8(const DeviceMatrix& matrix) noexcept {
  return matrix.element == DeviceElement::kE4M3 && (matrix.group == 0 || matrix.group == 128);
}

int choose_gemm(int64_t num_choices, int64_t num_slots, PrefillKernels prefill) noexcept {
  const int64_t used = num_choices < num_slots ? num_choices : num_slots;
  const int64_t rows = used > 0 ? ceil_div(num_choices, used) : 0;
  // The tiled kernel pays once it is half full; below, one more pass over the weights is cheaper.
  // wgmma costs 64 tokens at least and reads weights once.
  constexpr int64_t kTiledFrom = 64;
  constexpr int64_t kWgmmaFrom = 33;
  constexpr int64_t kWideFrom = 129;
  if (prefill == PrefillKernels::kWideWgmma && rows >= kWideFrom) return kWideWgmmaGemm;
  if (prefill != PrefillKernels::kMma && rows >= kWgmmaFrom) return kWgmmaGemm;
  if (rows >= kTiledFrom) return kTiledGemm;
  return rows <= 8 ? 0 : (rows <= 16 ? 1 : 2);
}

int64_t most_gemm_blocks(const DeviceAttributes& attributes) noexcept {
  constexpr int64_t kBlocksOfSm = 16;  // 4 warps each: 64 warps are what an SM holds
  return attributes.num_sms * kBlocksOfSm;
}

}  // namespace gantry
