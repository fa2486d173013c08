#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/buffer.h"
#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "kernels/grouped_gemm/panel_gemm_kernels.h"

namespace gantry GANTRY_API {

/// What an error of weights does to the outputs: with H = sum of x x^T over samples x, rows d of
/// W - Wq have the squared output error d H d^T, summed over the samples. No sample is needed.
///
/// Holds half of the symmetric matrix in panels: panel p is [n - 32 p, 32], its rows below the
/// diagonal block doubled, so that one product of d with each panel gives the whole sum. Immutable:
/// any thread may use it.
class OutputError {
 public:
  /// @param hessian [n, n] f32, symmetric
  /// @param begin, count the columns that are looked at: errors elsewhere are zero
  /// @throws Error kInvalidArgument if sizes do not fit
  OutputError(std::span<const float> hessian, int64_t n, int64_t begin, int64_t count,
              IsaSet isas = host_isas());
  OutputError(std::span<const float> hessian, int64_t n) : OutputError(hessian, n, 0, n) {}

  /// The error of each row of `difference` [rows, count], added up in f32.
  /// @param errors [rows], written
  void rows(std::span<const float> difference, std::span<double> errors) const;
  /// The sum over all rows.
  [[nodiscard]] double total(std::span<const float> difference) const;

 private:
  [[nodiscard]] int64_t panel_offset(int64_t panel) const noexcept {
    return kPanelWidth * (panel * padded_ - kPanelWidth * panel * (panel - 1) / 2);
  }

  int64_t n_;
  int64_t padded_;
  const PanelGemmKernel& kernel_;
  Buffer<float> panels_;
};

}  // namespace gantry
