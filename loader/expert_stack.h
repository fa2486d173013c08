#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/base/export.h"
#include "kernels/base/parallel_for.h"
#include "loader/family_spec.h"
#include "loader/strided_copy.h"

namespace gantry GANTRY_API {

/// A tensor in memory that holds one or two projections of all experts, as engines keep them:
/// gate_up_proj [E, 2 * out, in] or [E, in, 2 * out], down_proj [E, out, in] or [E, in, out].
/// The layout is declared (see TensorPattern), never inferred from a shape. Not owning.
struct ExpertStack {
  std::byte* data = nullptr;  ///< aligned to an element
  int64_t element_bytes = 2;  ///< 1, 2, 4 or 8
  int num_experts = 0;        ///< E
  int64_t out = 0;            ///< of one projection: I of gate and up, H of down
  int64_t in = 0;
  Orientation orientation = Orientation::kOutIn;
  GateUp gate_up = GateUp::kSeparate;  ///< kSeparate: one projection

  [[nodiscard]] int64_t num_bytes() const noexcept {
    return num_experts * out * in * element_bytes * (gate_up == GateUp::kSeparate ? 1 : 2);
  }
};

/// One expert's projection inside the stack, without a copy: element (o, i) is at
/// data + (o * row_stride + i * col_stride) * element_bytes.
/// @param part kW1 or kW3 where the stack holds both; whatever else where it holds one projection
/// @throws Error kInvalidArgument for an expert that is not there, or kW2 of a stack of two
StridedTarget expert_view(const ExpertStack& stack, int expert, Part part);

/// Whether expert_view is a dense row-major matrix [out, in]: it can be used, or given away, as a
/// tensor of its own.
bool is_dense(const ExpertStack& stack) noexcept;

/// Copies a projection of every expert out of the stack, each into a dense matrix [out, in].
/// @param targets [E], out * in * element_bytes bytes each; must not overlap the stack
/// @throws Error kInvalidArgument
void unfuse_experts(const ExpertStack& stack, Part part, std::span<std::byte* const> targets,
                    const Threads& threads);

/// Gate and up of every expert in one pass: the source is read once even where they are
/// interleaved.
/// @param gates, ups [E] each, as in unfuse_experts
/// @throws Error kInvalidArgument, also for a stack of one projection
void unfuse_gate_up(const ExpertStack& stack, std::span<std::byte* const> gates,
                    std::span<std::byte* const> ups, const Threads& threads);

/// The other direction: dense matrices [out, in] into the stack.
void fuse_experts(std::span<const std::byte* const> sources, const ExpertStack& stack, Part part,
                  const Threads& threads);
void fuse_gate_up(std::span<const std::byte* const> gates, std::span<const std::byte* const> ups,
                  const ExpertStack& stack, const Threads& threads);

}  // namespace gantry
