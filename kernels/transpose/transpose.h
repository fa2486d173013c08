#pragma once

#include <span>
#include <string_view>

#include "kernels/base/cpu_features.h"
#include "kernels/base/export.h"
#include "kernels/transpose/transpose_call.h"

namespace gantry GANTRY_API {

/// A transpose written for an instruction set.
struct TransposeKernel {
  std::string_view name;
  Isa isa;
  void (*run)(const TransposeCall& call) noexcept;
};

/// All of them, best first; the last one runs everywhere and is the reference.
std::span<const TransposeKernel> transpose_kernels() noexcept;

/// The first kernel of the list that this machine can run.
const TransposeKernel& select_transpose(IsaSet available);

/// Transposes a matrix of bytes, halfwords or words, whole cache lines at a time on both sides.
/// @throws Error kInvalidArgument for another element size or a negative size
void transpose(const TransposeCall& call);

}  // namespace gantry
