#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/export.h"
#include "kernels/fused_moe/fused_experts.h"
#include "kernels/grouped_gemm/packed_layout.h"
#include "loader/family_spec.h"

namespace gantry GANTRY_API {

/// A byte range of a slot.
struct SlotSection {
  int64_t offset = 0;
  int64_t bytes = 0;
};

/// Which sections slots have for what inputs go through before they meet a quantized matrix.
struct InputTransforms {
  bool order = false;        ///< of w13's inputs, [H] i32: the input at each k
  bool factors = false;      ///< of w13's inputs, [H] f32 by k
  bool mid_factors = false;  ///< of w2's inputs, [J] f32 by k
  bool mid_order = false;    ///< [J] i32: the file's neuron at each row of w13 and k of w2

  friend bool operator==(const InputTransforms&, const InputTransforms&) = default;
};

/// Where the state of one expert stands inside its slot: one contiguous byte range, the unit that
/// is loaded, moved between ranks and digested.
///
/// ```
///   | w13 panels of [S*J, H] | w2 panels of [H, J] | b13 [S*J] f32 | b2 [H] f32 | input scales |
///   | order of x [H] i32 | factors of x [H] f32 | factors of the intermediate [J] f32 |
///   | order of neurons [J] i32 |
/// ```
/// J = this rank's part of the intermediate size; S = 2 with a gate (w1 rows, then w3 rows),
/// else 1. The order inside the panels is that of PackedLayout. Every section starts at a multiple
/// of 256 bytes, and so does the next slot: all slots of a layer share one layout. Weights keep the
/// checkpoint's dtype, or its codes and scales (WeightFormat); biases are widened to f32. Static
/// scales of the inputs of w1, w2 and w3 (with a gate) are f32 each, where the checkpoint has them.
/// With an activation order w13's columns, and w13's rows with w2's columns, stand sorted by group.
/// The padding of panels is zero.
struct SlotLayout {
  DType dtype = DType::kBF16;  ///< of plain weights; f32 where they are coded
  bool gated = true;
  bool bias = false;
  bool static_inputs = false;  ///< slots hold the static scales of their inputs
  InputTransforms transforms;
  int64_t intermediate_size = 0;  ///< J
  int64_t hidden_size = 0;        ///< H
  PackedLayout w13_panels;
  PackedLayout w2_panels;
  SlotSection w13;
  SlotSection w2;
  SlotSection b13;
  SlotSection b2;
  SlotSection input_scales;
  SlotSection x_order;
  SlotSection x_factors;
  SlotSection mid_factors;
  SlotSection mid_order;
  int64_t stride_bytes = 0;  ///< from one slot to the next

  /// @throws Error kInvalidArgument for sizes that do not fit 64 bits
  static SlotLayout create(DType dtype, bool gated, bool bias, int64_t intermediate_size,
                           int64_t hidden_size, bool static_inputs = false);
  /// For coded weights.
  static SlotLayout create(const WeightFormat& w13, const WeightFormat& w2, bool gated, bool bias,
                           int64_t intermediate_size, int64_t hidden_size,
                           bool static_inputs = false, const InputTransforms& transforms = {});

  /// Bytes from the start of a slot to the f32 scale of the input of kW1, kW3 or kW2.
  [[nodiscard]] int64_t input_scale_offset(Part part) const;

  [[nodiscard]] int64_t w13_rows() const noexcept { return (gated ? 2 : 1) * intermediate_size; }
  /// Bytes of one slot that come from the checkpoint: without padding and the gaps of alignment.
  [[nodiscard]] int64_t owned_bytes() const noexcept {
    return w13_panels.owned_bytes() + w2_panels.owned_bytes() + b13.bytes + b2.bytes +
           input_scales.bytes + x_order.bytes + x_factors.bytes + mid_factors.bytes +
           mid_order.bytes;
  }

  /// What the kernels read of `num_slots` slots that start at `slots`.
  [[nodiscard]] PackedExperts experts(const std::byte* slots, int64_t num_slots) const noexcept;

  friend bool operator==(const SlotLayout& a, const SlotLayout& b) {
    return a.dtype == b.dtype && a.gated == b.gated && a.bias == b.bias &&
           a.static_inputs == b.static_inputs && a.transforms == b.transforms &&
           a.intermediate_size == b.intermediate_size && a.hidden_size == b.hidden_size &&
           a.w13_panels.format == b.w13_panels.format && a.w2_panels.format == b.w2_panels.format;
  }

 private:
  void place_sections(const WeightFormat& w13_format, const WeightFormat& w2_format);
};

/// Where one part of an expert goes inside a slot: rows of a packed matrix, or of a bias (which is
/// a column of f32).
struct SlotTarget {
  int64_t offset = 0;     ///< bytes from the start of the slot to the matrix or the bias
  int64_t first_row = 0;  ///< of the matrix, or element of the bias
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::kBF16;
  std::optional<PackedLayout> panels;  ///< none for a bias
};

/// @param part kW1, kW3 or kW2
SlotTarget slot_target(const SlotLayout& layout, Part part, TensorKind kind);

/// Unpacks a slot's logical view of w13 [S*J, H] or w2 [H, J], widened to f32: what meets inputs
/// that went through no order and no factors. With an activation order of w2 tensor parallel ranks
/// own neurons here and there: those then stand in the slot's own order in both.
std::vector<float> read_w13(const SlotLayout& layout, const std::byte* slot);
std::vector<float> read_w2(const SlotLayout& layout, const std::byte* slot);

}  // namespace gantry
