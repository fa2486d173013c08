#include "kernels/transpose/transpose.h"

#include "kernels/base/check.h"

namespace gantry {
namespace {

constexpr TransposeKernel kKernels[] = {{"avx512", Isa::kAvx512, avx512::transpose},
                                        {"avx2", Isa::kAvx2, avx2::transpose},
                                        {"scalar", Isa::kScalar, scalar::transpose}};

}  // namespace

std::span<const TransposeKernel> transpose_kernels() noexcept { return kKernels; }

const TransposeKernel& select_transpose(IsaSet available) {
  for (const TransposeKernel& kernel : kKernels) {
    if (available.contains(kernel.isa)) return kernel;
  }
  fail(ErrorCode::kInternal, "no transpose for {}", to_string(available));
}

void transpose(const TransposeCall& call) {
  GANTRY_CHECK(call.rows >= 0 && call.cols >= 0, ErrorCode::kInvalidArgument,
               "transpose: expected sizes >= 0, found {} x {}", call.rows, call.cols);
  GANTRY_CHECK(call.element_bytes == 1 || call.element_bytes == 2 || call.element_bytes == 4,
               ErrorCode::kInvalidArgument,
               "transpose: expected elements of 1, 2 or 4 bytes, found {}", call.element_bytes);
  static const TransposeKernel& kernel = select_transpose(host_isas());
  kernel.run(call);
}

}  // namespace gantry
