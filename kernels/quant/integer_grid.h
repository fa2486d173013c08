#pragma once

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/quant/gptq.h"

namespace gantry GANTRY_API {

/// Integers of `bits` bits, stored as codes 0 .. 2^bits - 1.
///
///   symmetric:   step = 2 max|w| / (2^bits - 1), zero = 2^(bits - 1)
///   asymmetric:  step = (max(w, 0) - min(w, 0)) / (2^bits - 1), zero = round(-min(w, 0) / step)
///
/// A group of zeros has step 1. Steps are rounded to `scale_dtype` before anything is divided by
/// them.
/// @source the quantizers of GPTQ and compressed-tensors
class IntegerGrid final : public GptqGrid {
 public:
  /// @throws Error kInvalidArgument unless bits are 2 .. 8 and the dtype is f32, f16 or bf16
  IntegerGrid(int bits, bool symmetric, DType scale_dtype = DType::kF32);

  [[nodiscard]] GptqScale choose(std::span<const float> weights) const override;
  void round(int64_t count, const float* weights, const GptqScale* scales, uint8_t* codes,
             float* values) const override;

 private:
  int largest_;
  bool symmetric_;
  DType scale_dtype_;
};

}  // namespace gantry
