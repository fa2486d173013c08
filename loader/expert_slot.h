#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/grouped_gemm/grouped_gemm.h"
#include "loader/family_spec.h"

namespace gantry {

/// A byte range of a slot.
struct SlotSection {
  int64_t offset = 0;
  int64_t bytes = 0;
};

/// Where the state of one expert stands inside its slot: one contiguous byte range, the unit that
/// is loaded, moved between ranks and digested.
///
/// ```
///   | w13: w1 rows 0..J-1, then w3 rows 0..J-1   [S*J, H] | w2 [H, J] | b13 [S*J] f32 | b2 [H] f32
///   |
/// ```
/// J = this rank's part of the intermediate size; S = 2 with a gate, else 1. Every section starts
/// at a multiple of 256 bytes, and so does the next slot: all slots of a layer share one layout.
/// Weights keep the checkpoint's dtype; biases are widened to f32.
struct SlotLayout {
  DType dtype = DType::kBF16;
  PackedLayout packed = PackedLayout::kRowMajor;
  bool gated = true;
  bool bias = false;
  int64_t intermediate_size = 0;  ///< J
  int64_t hidden_size = 0;        ///< H
  SlotSection w13;
  SlotSection w2;
  SlotSection b13;
  SlotSection b2;
  int64_t stride_bytes = 0;  ///< from one slot to the next

  /// @throws Error kInvalidArgument for sizes that do not fit 64 bits
  static SlotLayout create(DType dtype, bool gated, bool bias, int64_t intermediate_size,
                           int64_t hidden_size);

  [[nodiscard]] int64_t w13_rows() const noexcept { return (gated ? 2 : 1) * intermediate_size; }
  /// Bytes of one slot that hold something, without the gaps of alignment.
  [[nodiscard]] int64_t owned_bytes() const noexcept {
    return w13.bytes + w2.bytes + b13.bytes + b2.bytes;
  }

  /// The GEMM operands of `num_slots` slots that start at `slots`.
  [[nodiscard]] ExpertWeights w13_weights(const std::byte* slots, int64_t num_slots) const;
  [[nodiscard]] ExpertWeights w2_weights(const std::byte* slots, int64_t num_slots,
                                         bool with_bias) const;

  friend bool operator==(const SlotLayout& a, const SlotLayout& b) {
    return a.dtype == b.dtype && a.packed == b.packed && a.gated == b.gated && a.bias == b.bias &&
           a.intermediate_size == b.intermediate_size && a.hidden_size == b.hidden_size;
  }
};

/// Where one part of an expert goes inside a slot: a row-major matrix of `rows` x `cols`.
struct SlotTarget {
  int64_t offset = 0;  ///< bytes from the start of the slot
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::kBF16;
};

/// @param part kW1, kW3 or kW2
SlotTarget slot_target(const SlotLayout& layout, Part part, TensorKind kind);

/// Unpacks a slot's logical view of w13 [S*J, H] or w2 [H, J], widened to f32.
std::vector<float> read_w13(const SlotLayout& layout, const std::byte* slot);
std::vector<float> read_w2(const SlotLayout& layout, const std::byte* slot);

}  // namespace gantry
